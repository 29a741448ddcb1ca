"""How many bytes the engine's keys and values take, told before they are taken."""

from phicourse.checkpoint import PhiConfig
from phicourse.errors import GenerateError
from phicourse.gguf import tensor_type
from phicourse.gguf.reader import padded
from phicourse.memory import available_memory

CACHE_TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "F32")
"""How keys and values can be kept. Q8_0 halves the memory of F16 and is hardly told from it; Q4_0 costs quality."""

POSITIONS = 32
"""The engine makes room for this many positions at a time."""


def kv_cache_bytes(
    config: PhiConfig, n_ctx: int, cache_type: str = "F16", n_layers: int | None = None
) -> int:
    """Return the bytes of keys and values of n_ctx positions in n_layers (None: all), as the engine lays them out.

    A key or value of one head is a row of head_size numbers, padded to whole blocks; values to 16 numbers at least.
    """
    kind = tensor_type(cache_type)
    positions = padded(n_ctx, POSITIONS)
    value = padded(config.head_size, max(kind.block, 16))
    key = value if kind.block > 1 else config.head_size
    layers = config.n_layers if n_layers is None else n_layers
    return layers * config.n_kv_heads * positions * (kind.row_bytes(key) + kind.row_bytes(value))


def check_cache_fits(
    config: PhiConfig, n_ctx: int, cache_type: str, n_layers: int | None = None, n_sequences: int = 1
) -> None:
    """GenerateError where the keys and values of full contexts would need more memory than is free."""
    needed, free = n_sequences * kv_cache_bytes(config, n_ctx, cache_type, n_layers), available_memory()
    if free is not None and needed > free:
        texts = f"{n_sequences:,} texts of {n_ctx:,} tokens" if n_sequences > 1 else f"{n_ctx:,} tokens"
        fewer = ", for fewer of them (n_sequences)" if n_sequences > 1 else ""
        raise GenerateError(
            f"the keys and values of {texts} need {needed / 1e9:.1f} GB as {cache_type}, {free / 1e9:.1f} GB "
            f"of memory are free: ask for a smaller context (--ctx, n_ctx){fewer}, or for another cache type "
            "(--cache-type)"
        )
