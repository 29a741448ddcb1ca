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
FLOAT32_RANGE = (1.2e-38, 3.4e38)  # of positive numbers with all their digits
MAX_EXPERTS = 512  # llama.cpp's own bound
# "su" is longrope's first name; "yarn" in early configs means the same with another attention factor.
LONGROPE_TYPES = ("longrope", "su", "yarn")


@dataclass(frozen=True)
class Family:
    """Models of one architecture, and what transformers takes where their config.json is silent.

    classes          names in `architectures`; model_type: the name that stands in for them
    norm_eps         fields that may hold the epsilon of the norms, the first one counts
    context_length   in tokens; rotary: the part of each head that is rotated
    """

    architecture: str
    classes: tuple[str, ...]
    model_type: str
    activation: str
    norm_eps: tuple[str, ...]
    context_length: int
    rope_theta: float
    rotary: float


FAMILIES = (
    Family(
        "phi2",
        ("PhiForCausalLM",),
        "phi",
        "gelu_new",
        ("layer_norm_epsilon", "layer_norm_eps"),
        context_length=2048,
        rope_theta=1e4,
        rotary=0.5,
    ),
    Family(
        "phi3",
        ("Phi3ForCausalLM",),
        "phi3",
        "silu",
        ("rms_norm_eps",),
        context_length=4096,
        rope_theta=1e4,
        rotary=1.0,
    ),
    # The first class is that of Microsoft's own code on the Hub, the second that of transformers.
    Family(
        "phimoe",
        ("PhiMoEForCausalLM", "PhimoeForCausalLM"),
        "phimoe",
        "silu",
        ("rms_norm_eps",),
        context_length=131072,
        rope_theta=1e6,
        rotary=1.0,
    ),
)
ARCHITECTURES = tuple(family.architecture for family in FAMILIES)
# Relatives that one may well try, and why they are refused.
REFUSED = {
    "Phi3SmallForCausalLM": "GGUF has no place for its block-sparse attention and its tiktoken vocabulary",
    "Phi3VForCausalLM": "its vision tower has no place in GGUF",
    "Phi4MMForCausalLM": "it needs adapters for each of its senses, which GGUF cannot switch",
    "Phi4MultimodalForCausalLM": "it needs adapters for each of its senses, which GGUF cannot switch",
    "Phi4ForCausalLMV": "only models of text are read here",
    "Phi4FlashForCausalLM": "its layers with a state in place of attention have no place in GGUF",
}


@dataclass(frozen=True)
class PhiConfig:
    """Hyperparameters of a Phi model; creating one checks them.

    `architecture` is GGUF's name: phi2 (Phi-1, Phi-1.5, Phi-2), phi3, phimoe (Phi-3.5-MoE). Sizes are counted
    in numbers, not bytes; `context_length` and `sliding_window` in tokens. `rope_size` is how many dimensions
    of each head are rotated. `short_factor` and `long_factor` hold one frequency divisor per rotated pair, and
    `attention_factor` multiplies cosine and sine (1.0 without LongRoPE): the config gives it, or else the formula
    of `rope_type` (default, longrope, yarn). phimoe has numbers of its own for that, `short_mscale` and
    `long_mscale`. `norm_eps` is that of RMSNorm, or of phi2's and phimoe's LayerNorm.
    phi2 always has biases; `attention_bias` and `output_bias` say whether a phimoe has them. `n_experts` is 0
    in a dense model; `router_jitter` bounds which experts phimoe's router compares.
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
    rope_type: str = "default"
    sliding_window: int | None = None
    tie_embeddings: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    attention_bias: bool = False
    output_bias: bool = False
    n_experts: int = 0
    n_experts_used: int = 0
    router_jitter: float = 0.01
    short_mscale: float | None = None
    long_mscale: float | None = None

    def __post_init__(self) -> None:
        """Check every field by itself, then the fields against each other."""
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"config: architecture {_show(self.architecture)} is not supported, only"
                f" {', '.join(ARCHITECTURES)} are"
            )
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
        self._check_experts()

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

        if self.architecture == "phi2" and self.short_factor is not None:
            raise CheckpointError("config: a phi2 model has no LongRoPE, but short_factor is given")

    def _check_experts(self) -> None:
        if self.architecture != "phimoe":
            if self.n_experts or self.n_experts_used:
                raise CheckpointError(
                    f"config: a {self.architecture} model has no experts, but n_experts is"
                    f" {_show(self.n_experts)} and n_experts_used {_show(self.n_experts_used)}"
                )
            return
        _check_integer("n_experts", self.n_experts, 1, MAX_EXPERTS)
        _check_integer("n_experts_used", self.n_experts_used, 1, self.n_experts)
        for name in ("router_jitter", "short_mscale", "long_mscale"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))

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
    family = _find_family(document)
    rope = _rope_parameters(document, family)
    hidden, heads = _integer(document, "hidden_size"), _integer(document, "num_attention_heads")
    vocabulary = _integer(document, "vocab_size")
    context = _integer(document, "max_position_embeddings", family.context_length)
    unscaled = context if family.architecture == "phi2" else 4096
    original = _integer(rope, "original_max_position_embeddings", unscaled)
    rotated_part = _number(rope, "partial_rotary_factor", family.rotary)
    if not 0 < rotated_part <= 1:
        raise CheckpointError(f"partial_rotary_factor must be above 0 and at most 1, not {rotated_part}")
    short, long = _factors(rope)
    return PhiConfig(
        architecture=family.architecture,
        hidden_size=hidden,
        n_layers=_integer(document, "num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=_integer(document, "num_key_value_heads", heads),
        head_size=_integer(document, "head_dim", hidden // heads),
        ffn_size=_integer(document, "intermediate_size"),
        vocab_size=vocabulary,
        context_length=context,
        original_context_length=original,
        norm_eps=_norm_eps(document, family),
        rope_theta=_number(rope, "rope_theta", family.rope_theta),
        rope_size=int(rotated_part * hidden) // heads,
        short_factor=short,
        long_factor=long,
        attention_factor=_number(
            rope, "attention_factor", attention_factor_of(rope["rope_type"], context, original)
        ),
        rope_type=rope["rope_type"],
        sliding_window=_optional_integer(document, "sliding_window") or None,
        tie_embeddings=_flag(document, "tie_word_embeddings"),
        bos_id=_token_id(document, "bos_token_id", vocabulary),
        eos_id=_token_id(document, "eos_token_id", vocabulary),
        **_of_family(document, rope, family),
    )


def _norm_eps(document: Mapping[str, Any], family: Family) -> float:
    name = next((name for name in family.norm_eps if document.get(name) is not None), family.norm_eps[-1])
    return _number(document, name, 1e-5)


def _of_family(document: Mapping[str, Any], rope: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Read the fields that only one architecture has."""
    if family.architecture == "phi2":
        if _flag(document, "qk_layernorm"):
            raise CheckpointError(
                "qk_layernorm is not supported: no released Phi uses it, GGUF has no such norm"
            )
        return {"attention_bias": True, "output_bias": True}
    if family.architecture == "phimoe":
        mscales = ("short_mscale", "long_mscale") if rope["rope_type"] != "default" else ()
        return {
            "attention_bias": _flag(document, "attention_bias"),
            "output_bias": _flag(document, "lm_head_bias"),
            "n_experts": _integer(document, "num_local_experts", 16),
            "n_experts_used": _integer(document, "num_experts_per_tok", 2),
            "router_jitter": _number(document, "router_jitter_noise", 0.01),
            **{name: _number(rope, name, 1.0) for name in mscales if rope.get(name) is not None},
        }
    return {}


def longrope_attention_factor(context_length: int, original_context_length: int) -> float:
    """LongRoPE's factor on cosine and sine: sqrt(1 + ln s / ln L) with s = context / L, 1 where s <= 1."""
    scale = context_length / original_context_length
    if scale <= 1 or original_context_length < 2:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(original_context_length))


def yarn_attention_factor(context_length: int, original_context_length: int) -> float:
    """YaRN's factor on cosine and sine: 0.1 ln s + 1 with s = context / original context, 1 where s <= 1."""
    return 0.1 * math.log(max(1.0, context_length / original_context_length)) + 1


def attention_factor_of(rope_type: str, context_length: int, original_context_length: int) -> float:
    """Return the factor on cosine and sine by the formula of a rope type; a config may give another."""
    if rope_type == "default":
        return 1.0
    formula = yarn_attention_factor if rope_type == "yarn" else longrope_attention_factor
    return formula(context_length, original_context_length)


def _find_family(document: Mapping[str, Any]) -> Family:
    """Return the family that a config is of; one line says why it is of none."""
    names = document.get("architectures")
    name = names[0] if isinstance(names, list) and names else document.get("model_type")
    family = next((family for family in FAMILIES if name in (*family.classes, family.model_type)), None)
    if family is None:
        supported = ", ".join(name for family in FAMILIES for name in family.classes)
        reason = f": {REFUSED[name]}" if isinstance(name, str) and name in REFUSED else ""
        raise CheckpointError(
            f"model architecture {_show(name)} is not supported, only {supported} are{reason}"
        )
    activation = document.get("hidden_act", family.activation)
    if activation != family.activation:
        raise CheckpointError(
            f"hidden_act {_show(activation)} is not supported: a {family.classes[0]} uses {family.activation}"
        )
    return family


def _rope_parameters(document: Mapping[str, Any], family: Family) -> dict[str, Any]:
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
    known = ("default",) if family.architecture == "phi2" else ("default", *LONGROPE_TYPES)
    if kind not in known:
        raise CheckpointError(
            f"rope type {_show(kind)} is not one that a {family.classes[0]} uses ({', '.join(known[:2])})"
        )
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
    if not 0 < value < 1 << 53:  # above, a float would not hold it
        raise CheckpointError(f"{name} must be positive and no larger than any model, not {_show(value)}")
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
    """Check for a positive number that float32, in which GGUF keeps it, holds, too."""
    low, high = FLOAT32_RANGE
    if not isinstance(value, (int, float)) or not _is_number(value) or not low <= value <= high:
        raise CheckpointError(f"config: {name} must be a positive number, not {_show(value)}")
