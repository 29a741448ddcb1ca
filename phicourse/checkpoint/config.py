"""The shape of a Phi model: what config.json says, in one checked form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicourse.checkpoint.json_file import read_json_object
from phicourse.errors import CheckpointError

# Upper bounds that no language model comes near; they keep a made-up config from sizing huge buffers.
LIMITS = {
    "hidden_size": 1 << 20,
    "n_layers": 4096,
    "n_heads": 1 << 16,
    "n_kv_heads": 1 << 16,
    "head_size": 1 << 16,
    "ffn_size": 1 << 24,
    "vocab_size": 1 << 24,
    "context_length": 1 << 31,
    "original_context_length": 1 << 31,
    "rope_size": 1 << 16,
}
# "su" is longrope's first name; "yarn" in early configs means the same with another attention factor.
LONGROPE_TYPES = ("longrope", "su", "yarn")


@dataclass(frozen=True)
class PhiConfig:
    """Hyperparameters of a Phi-3 family model; creating one checks them.

    Sizes are counted in numbers, not bytes; `context_length` and `sliding_window` in tokens. `rope_size` is
    how many dimensions of each head are rotated. `short_factor` and `long_factor` hold one frequency divisor
    per rotated pair, and `attention_factor` multiplies cosine and sine (1.0 without LongRoPE).
    raises   CheckpointError that names the field
    """

    architecture: str
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    ffn_size: int
    vocab_size: int
    context_length: int
    original_context_length: int
    norm_eps: float
    rope_theta: float
    rope_size: int
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    attention_factor: float = 1.0
    sliding_window: int | None = None
    tie_embeddings: bool = False
    bos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        """Check every field by itself, then the fields against each other."""
        for name, limit in LIMITS.items():
            _check_integer(name, getattr(self, name), 1, limit)
        for name in ("norm_eps", "rope_theta", "attention_factor"):
            _check_positive(name, getattr(self, name))
        if self.sliding_window is not None:
            _check_integer("sliding_window", self.sliding_window, 1, 1 << 31)
        for name in ("bos_id", "eos_id"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 0, self.vocab_size - 1)
        self._check_heads()
        self._check_rope_factors()

    def _check_heads(self) -> None:
        if self.n_heads * self.head_size != self.hidden_size:
            raise CheckpointError(
                f"config: head_size {self.head_size} times n_heads {self.n_heads}"
                f" is not hidden_size {self.hidden_size}"
            )
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"config: n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}"
            )
        if self.rope_size % 2 or self.rope_size > self.head_size:
            raise CheckpointError(
                f"config: rope_size must be even and at most head_size {self.head_size}, not {self.rope_size}"
            )

    def _check_rope_factors(self) -> None:
        if (self.short_factor is None) != (self.long_factor is None):
            raise CheckpointError("config: short_factor and long_factor must be given together")
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if factors is None:
                continue
            if len(factors) != self.rope_size // 2:
                raise CheckpointError(
                    f"config: {name} has {len(factors)} numbers, rope_size needs {self.rope_size // 2}"
                )
            for factor in factors:
                _check_positive(name, factor)

    @property
    def group_size(self) -> int:
        """How many query heads share one key and value head."""
        return self.n_heads // self.n_kv_heads


def read_config(folder: Path | str) -> tuple[PhiConfig, dict[str, Any]]:
    """Read config.json of a checkpoint folder, in the old form or that of transformers 5.

    returns  the checked configuration, and the document as it is in the file
    raises   CheckpointError where the file is missing, broken, or of another kind of model
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: not found; a checkpoint is a folder with config.json and *.safetensors"
        )
    document = read_json_object(path)
    try:
        return parse_config(document), document
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def parse_config(document: Mapping[str, Any]) -> PhiConfig:
    """Turn the contents of a config.json into a `PhiConfig`; CheckpointError names what is wrong."""
    _check_architecture(document)
    rope = _rope_parameters(document)
    hidden, heads = _integer(document, "hidden_size"), _integer(document, "num_attention_heads")
    vocabulary = _integer(document, "vocab_size")
    context = _integer(document, "max_position_embeddings", 4096)
    original = _integer(rope, "original_max_position_embeddings", 4096)
    head_size = _integer(document, "head_dim", hidden // heads)
    rotated_part = _number(rope, "partial_rotary_factor", 1.0)
    if not 0 < rotated_part <= 1:
        raise CheckpointError(f"partial_rotary_factor must be above 0 and at most 1, not {rotated_part}")
    short, long = _factors(rope)
    return PhiConfig(
        architecture="phi3",
        hidden_size=hidden,
        n_layers=_integer(document, "num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=_integer(document, "num_key_value_heads", heads),
        head_size=head_size,
        ffn_size=_integer(document, "intermediate_size"),
        vocab_size=vocabulary,
        context_length=context,
        original_context_length=original,
        norm_eps=_number(document, "rms_norm_eps", 1e-5),
        rope_theta=_number(rope, "rope_theta", 10000.0),
        rope_size=int(rotated_part * hidden) // heads,
        short_factor=short,
        long_factor=long,
        attention_factor=_attention_factor(rope, context, original),
        sliding_window=_optional_integer(document, "sliding_window") or None,
        tie_embeddings=_flag(document, "tie_word_embeddings"),
        bos_id=_token_id(document, "bos_token_id", vocabulary),
        eos_id=_token_id(document, "eos_token_id", vocabulary),
    )


def longrope_attention_factor(context_length: int, original_context_length: int) -> float:
    """LongRoPE's factor on cosine and sine: sqrt(1 + ln s / ln L) with s = context / L, 1 where s <= 1."""
    scale = context_length / original_context_length
    if scale <= 1 or original_context_length < 2:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(original_context_length))


def yarn_attention_factor(context_length: int, original_context_length: int) -> float:
    """YaRN's factor on cosine and sine: 0.1 ln s + 1 with s = context / original context, 1 where s <= 1."""
    return 0.1 * math.log(max(1.0, context_length / original_context_length)) + 1


def _attention_factor(rope: Mapping[str, Any], context: int, original: int) -> float:
    """Take the config's own factor where it gives one, else the formula of its rope type."""
    if rope["rope_type"] == "default":
        return 1.0
    formula = yarn_attention_factor if rope["rope_type"] == "yarn" else longrope_attention_factor
    return _number(rope, "attention_factor", formula(context, original))


def _check_architecture(document: Mapping[str, Any]) -> None:
    """Only the dense Phi-3 family is read: Phi-3-mini, -medium, Phi-3.5-mini, phi-4 and phi-4-mini."""
    names = document.get("architectures")
    name = names[0] if isinstance(names, list) and names else document.get("model_type")
    if name not in ("Phi3ForCausalLM", "phi3"):
        raise CheckpointError(f"model architecture {_show(name)} is not supported, only Phi3ForCausalLM is")
    activation = document.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"hidden_act {_show(activation)} is not supported: a Phi3ForCausalLM uses silu")


def _rope_parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings from whichever of three places, by year, they are in; `rope_type` is always set.

    Phi-3 keeps the original context length beside the rope settings; that place wins, as in transformers.
    """
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        section = document.get(name)
        if section is not None and not isinstance(section, dict):
            raise CheckpointError(f"{name} must be an object or null, not {_show(section)}")
        rope |= section or {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if rope.get(name) is None and document.get(name) is not None:
            rope[name] = document[name]
    if document.get("original_max_position_embeddings") is not None:
        rope["original_max_position_embeddings"] = document["original_max_position_embeddings"]
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", *LONGROPE_TYPES):
        raise CheckpointError(f"rope type {_show(kind)} is not one that Phi models use (default, longrope)")
    rope["rope_type"] = kind
    return rope


def _factors(rope: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """LongRoPE's short and long factors, or two times None where the model does not use LongRoPE."""
    if rope["rope_type"] == "default":
        return None, None
    lists = []
    for name in ("short_factor", "long_factor"):
        values = rope.get(name)
        if not isinstance(values, list) or not values or not all(_is_number(value) for value in values):
            raise CheckpointError(f"{name} must be a list of numbers where the rope type is longrope")
        lists.append(tuple(float(value) for value in values))
    return lists[0], lists[1]


def _integer(document: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = _optional_integer(document, name)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"{name} is missing")
    if value <= 0:
        raise CheckpointError(f"{name} must be positive, not {_show(value)}")
    return value


def _optional_integer(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise CheckpointError(f"{name} must be a whole number, not {_show(value)}")
    return value


def _number(document: Mapping[str, Any], name: str, default: float) -> float:
    value = document.get(name)
    if value is None:
        return default
    if not _is_number(value):
        raise CheckpointError(f"{name} must be a finite number, not {_show(value)}")
    return float(value)


def _flag(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{name} must be true or false, not {_show(value)}")
    return bool(value)


def _token_id(document: Mapping[str, Any], name: str, vocabulary: int) -> int | None:
    """Read a token id; None where it is not given.

    A list (several end tokens) belongs to generation, and an id outside the vocabulary is a default that a
    small model has inherited: llama.cpp's converter leaves both out.
    """
    value = None if isinstance(document.get(name), list) else _optional_integer(document, name)
    return value if value is not None and 0 <= value < vocabulary else None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= 1e300  # refuses NaN and infinities, and integers that no float holds


def _show(value: object) -> str:
    """Shorten a value for an error message: it may come from a file that means harm."""
    text = repr(value) if not isinstance(value, (list, dict)) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CheckpointError(
            f"config: {name} must be a whole number from {low} to {high}, not {_show(value)}"
        )


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not _is_number(value) or not value > 0:
        raise CheckpointError(f"config: {name} must be a positive number, not {_show(value)}")
