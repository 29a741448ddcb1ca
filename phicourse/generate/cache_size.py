"""How many bytes the engine takes for keys and values, and to work in, told before they are taken."""

from phicourse.checkpoint import PhiConfig
from phicourse.errors import GenerateError
from phicourse.gguf import tensor_type
from phicourse.gguf.reader import padded
from phicourse.memory import available_memory
from phicourse.sizes import size_text

CACHE_TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "F32")
"""How keys and values can be kept. Q8_0 halves the memory of F16 and is hardly told from it; Q4_0 costs quality."""

POSITIONS = 32
"""The engine makes room for this many positions at a time."""

BATCH = 512
"""Tokens of a long prompt that go through the engine together."""

TILE_QUERIES = 32
"""Queries that attention works on together."""


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


def engine_work_bytes(config: PhiConfig, n_ctx: int, threads: int, cache_type: str = "F16") -> int:
    """Return the bytes of all else that the engine makes room for (engine.hpp): a batch's vectors, threads' scratch.

    A vector is there as floats and coded for both kinds of blocks; a coding that no weight asks for is not touched.
    """
    tokens, hidden, ffn = min(n_ctx, BATCH), config.hidden_size, config.ffn_size
    query, kv = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
    used = config.n_experts_used
    passes, up = max(used, 1), ffn if config.architecture == "phi2" else 2 * ffn
    rows = [
        (tokens, hidden),
        (tokens, hidden),
        (tokens, query),
        (tokens * passes, ffn),
        (tokens * used, hidden),
    ]
    floats = [query + 2 * kv, hidden, passes * up, config.rope_size, config.n_experts, used * hidden]
    picks = 12 * tokens * used
    kind = tensor_type(cache_type)
    attention = 4 * (TILE_QUERIES + 2 * POSITIONS) * padded(config.head_size, max(kind.block, 16))
    scratch = max(_product_scratch(max(hidden, query, ffn)), attention)
    return sum(_vectors(n, cols) for n, cols in rows) + 4 * tokens * sum(floats) + picks + threads * scratch


def _vectors(n: int, cols: int) -> int:
    """Floats; codes, sums and scales in blocks of 32, and of 256 with sums of 16 and two peaks."""
    numbers = n * cols
    blocks_of_32 = numbers + 2 * (numbers // 32) + 4 * (numbers // 32)
    blocks_of_256 = numbers + 2 * (numbers // 16) + 4 * (numbers // 256) + 2 * (numbers // 128)
    return 4 * numbers + blocks_of_32 + blocks_of_256


def _product_scratch(cols: int) -> int:
    """What a thread needs for products (kernels.hpp): unpacked panels, or copies of floats, whatever is more.

    Panels of 16 rows take half a megabyte at least; behind them are the sums of 8 tokens and a byte for each block.
    Floats are 4 rows of weights and vectors: those of a tile, or three quarters of a megabyte.
    """
    panel = 16 * (cols + cols // 16 * 10) + 64
    panels = max(1 << 19, panel // 64 * 64 + 64 if panel > 1 << 19 else 0) + 8 * (cols // 16) * 4 + cols // 32
    floats = 16 * (cols + 16) + max(3 << 18, 24 * (cols + 16))
    return max(panels, floats)


def check_cache_fits(
    config: PhiConfig, n_ctx: int, cache_type: str, n_layers: int | None = None, n_sequences: int = 1
) -> None:
    """GenerateError where the keys and values of full contexts would need more memory than is free."""
    needed, free = n_sequences * kv_cache_bytes(config, n_ctx, cache_type, n_layers), available_memory()
    if free is not None and needed > free:
        texts = f"{n_sequences:,} texts of {n_ctx:,} tokens" if n_sequences > 1 else f"{n_ctx:,} tokens"
        fewer = ", for fewer of them (n_sequences)" if n_sequences > 1 else ""
        raise GenerateError(
            f"the keys and values of {texts} need {size_text(needed)} as {cache_type}, {size_text(free)} "
            f"of memory are free: ask for a smaller context (--ctx, n_ctx){fewer}, or for another cache type "
            "(--cache-type)"
        )
