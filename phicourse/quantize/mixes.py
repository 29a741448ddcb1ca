"""Which tensor gets which type: what `Q4_K_M` means.

A mix is a default type and a few exceptions for the tensors that suffer most: the output matrix, the values
of attention, the way down out of the feed-forward part, and of those the first and the last layers.
Nobody derived these rules; they were found by trying. They follow llama.cpp's (tree of ggml 0.25.3), so that
the files are the same to the byte; older releases treated the fused `attn_qkv` of Phi-3 differently.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from phicourse.errors import QuantizeError
from phicourse.gguf.reader import TensorInfo
from phicourse.gguf.types import TENSOR_TYPES, TensorType
from phicourse.quantize.registry import supported_type


@dataclass(frozen=True)
class Mix:
    """A named choice of types.

    file_type  the number that stands for it in `general.file_type`
    default    the type of every matrix without a rule of its own
    """

    name: str
    file_type: int
    default: str

    @property
    def is_quantized(self) -> bool:
        """Whether there are blocks to speak of; F32, F16 and BF16 have none, and no exceptions either."""
        return TENSOR_TYPES[self.default].block > 1


MIXES: dict[str, Mix] = {
    mix.name: mix
    for mix in (
        Mix("F32", 0, "F32"),
        Mix("F16", 1, "F16"),
        Mix("BF16", 32, "BF16"),
        Mix("Q4_0", 2, "Q4_0"),
        Mix("Q4_1", 3, "Q4_1"),
        Mix("Q5_0", 8, "Q5_0"),
        Mix("Q5_1", 9, "Q5_1"),
        Mix("Q8_0", 7, "Q8_0"),
        Mix("Q4_K_S", 14, "Q4_K"),
        Mix("Q4_K_M", 15, "Q4_K"),
        Mix("Q5_K_S", 16, "Q5_K"),
        Mix("Q5_K_M", 17, "Q5_K"),
        Mix("Q6_K", 18, "Q6_K"),
    )
}
ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def find_mix(name: str) -> Mix:
    """Look a mix up by name or alias, in any case; QuantizeError lists the names."""
    upper = name.upper()
    mix = MIXES.get(ALIASES.get(upper, upper))
    if mix is None:
        raise QuantizeError(f"unknown mix {name!r}; known are {', '.join((*MIXES, *ALIASES))}")
    return mix


# ---- what a tensor is for -------------------------------------------------------------------------------


class Role(Enum):
    """What a tensor does in the model, as far as the rules care."""

    TOKEN_EMBEDDING = auto()
    OUTPUT = auto()
    ATTENTION_VALUE = auto()
    ATTENTION_KEY = auto()
    ATTENTION_OUTPUT = auto()
    FFN_DOWN = auto()
    OTHER = auto()


# The first part that is in the name decides. Phi-3's fused query-key-value matrix counts as a value matrix.
_ROLE_OF_PART = {
    "attn_qkv.weight": Role.ATTENTION_VALUE,
    "attn_kv_b.weight": Role.ATTENTION_VALUE,
    "attn_v.weight": Role.ATTENTION_VALUE,
    "attn_k.weight": Role.ATTENTION_KEY,
    "attn_output.weight": Role.ATTENTION_OUTPUT,
    "ffn_down": Role.FFN_DOWN,
}


def role(name: str) -> Role:
    """Tell from its name what a tensor does."""
    if name == "output.weight":
        return Role.OUTPUT
    if name == "token_embd.weight":
        return Role.TOKEN_EMBEDDING
    return next((role for part, role in _ROLE_OF_PART.items() if part in name), Role.OTHER)


# ---- the exceptions -------------------------------------------------------------------------------------


def first_four(layer: int, n_layers: int) -> bool:
    """Return whether a layer is one of the first four."""
    return layer < 4


def first_eighth(layer: int, n_layers: int) -> bool:
    """Return whether a layer is in the first eighth of the model."""
    return layer < n_layers // 8


def ends_and_every_third(layer: int, n_layers: int) -> bool:
    """Return whether a layer is in the first or the last eighth, or a third one in between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


@dataclass(frozen=True)
class Better:
    """Another type in some layers."""

    type: str
    layers: Callable[[int, int], bool]


EXCEPTIONS: dict[str, dict[Role, Better]] = {
    "Q4_K_S": {Role.ATTENTION_VALUE: Better("Q5_K", first_four), Role.FFN_DOWN: Better("Q5_K", first_eighth)},
    "Q4_K_M": {
        Role.ATTENTION_VALUE: Better("Q6_K", ends_and_every_third),
        Role.FFN_DOWN: Better("Q6_K", ends_and_every_third),
    },
    "Q5_K_M": {
        Role.ATTENTION_VALUE: Better("Q6_K", ends_and_every_third),
        Role.FFN_DOWN: Better("Q6_K", ends_and_every_third),
    },
}

# Models with exactly eight experts: attention is small beside them, so more bits there cost little.
EIGHT_EXPERTS: dict[Role, str] = {Role.ATTENTION_VALUE: "Q8_0", Role.ATTENTION_KEY: "Q8_0"}
EIGHT_EXPERTS_4_BITS: dict[Role, str] = {**EIGHT_EXPERTS, Role.ATTENTION_OUTPUT: "Q5_K"}  # Q4_K_S and Q4_K_M

# Blocks of 256 do not divide every row. Then a type with blocks of 32 steps in, of no fewer bits; then F16.
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


# ---- the choice ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overrides:
    """What the caller wants otherwise.

    pure                  the default type for every matrix, no exceptions
    leave_output_tensor   keep `output.weight` as it is
    output_tensor_type    type of `output.weight`; of `token_embd.weight` where the model has no output matrix
    token_embedding_type  type of `token_embd.weight`
    tensor_types          (regular expression, type) pairs; the first expression found in a name decides
    """

    pure: bool = False
    leave_output_tensor: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    tensor_types: tuple[tuple[re.Pattern[str], str], ...] = ()

    @classmethod
    def parse(
        cls,
        *,
        pure: bool = False,
        leave_output_tensor: bool = False,
        output_tensor_type: str | None = None,
        token_embedding_type: str | None = None,
        tensor_types: Iterable[str] = (),
    ) -> "Overrides":
        """Check the wishes as a user writes them, `tensor_types` as REGEX=TYPE; QuantizeError names the bad one."""
        return cls(
            pure,
            leave_output_tensor,
            None if output_tensor_type is None else supported_type(output_tensor_type).name,
            None if token_embedding_type is None else supported_type(token_embedding_type).name,
            tuple(_parse_tensor_type(text) for text in tensor_types),
        )


def _parse_tensor_type(text: str) -> tuple[re.Pattern[str], str]:
    """Read REGEX=TYPE; the last = counts."""
    pattern, equals, type_name = text.rpartition("=")
    if not equals or not pattern:
        raise QuantizeError(f"{text!r}: expected REGEX=TYPE, as in ffn_down=q6_k")
    try:
        return re.compile(pattern), supported_type(type_name).name
    except re.error as error:
        raise QuantizeError(f"{text!r}: {pattern!r} is no regular expression ({error})") from None


def choose_types(
    tensors: Iterable[TensorInfo],
    mix: Mix,
    *,
    n_layers: int,
    n_experts: int = 0,
    overrides: Overrides = Overrides(),
) -> dict[str, TensorType]:
    """Choose the type of every tensor.

    tensors              of the whole model, in any order
    n_layers, n_experts  of the model; 0 experts where it has none
    returns              name -> type, in the order in which llama.cpp writes the tensors: those outside the layers
                         first, then layer by layer, by name in each
    raises               QuantizeError where a type that was asked for does not divide a tensor's rows
    """
    ordered = sorted(tensors, key=lambda tensor: file_order(tensor.name))
    roles = [role(tensor.name) for tensor in ordered]
    n_values, tied = roles.count(Role.ATTENTION_VALUE), Role.OUTPUT not in roles
    chooser = _Chooser(mix, n_layers, n_experts, overrides, n_values, tied)
    return {tensor.name: chooser.choose(tensor) for tensor in ordered}


def file_order(name: str) -> tuple[int, bytes]:
    """Sort key of a tensor: its layer (-1 outside), then its name."""
    layer = re.match(r"blk\.(\d+)", name)
    return (int(layer[1]) if layer else -1, name.encode())


def can_be_quantized(tensor: TensorInfo) -> bool:
    """Return whether a tensor is a matrix of weights; norms, biases, factors and routers stay as they are."""
    return (
        n_dimensions(tensor) > 1
        and tensor.name.endswith("weight")
        and "_norm.weight" not in tensor.name
        and "ffn_gate_inp.weight" not in tensor.name
    )


def n_dimensions(tensor: TensorInfo) -> int:
    """Count the dimensions as ggml does: outermost ones of size 1 are none."""
    return next((len(tensor.shape) - i for i, size in enumerate(tensor.shape) if size > 1), 1)


@dataclass
class _Chooser:
    """Goes through the tensors in file order and counts the layers that it has seen of each role."""

    mix: Mix
    n_layers: int
    n_experts: int
    overrides: Overrides
    n_values: int  # attention value matrices in the model
    tied: bool  # the token embedding is the output matrix, too
    seen: dict[Role, int] = field(default_factory=dict)

    def choose(self, tensor: TensorInfo) -> TensorType:
        left_out = self.overrides.leave_output_tensor and tensor.name == "output.weight"
        if left_out or not can_be_quantized(tensor):
            return tensor.type
        if (asked := self._asked_by_role(tensor)) is not None:
            return _must_divide(tensor, asked)
        if not self.mix.is_quantized:
            return TENSOR_TYPES[self.mix.default]
        return fallback(tensor, self._asked_by_pattern(tensor) or self._by_rule(tensor))

    def _asked_by_role(self, tensor: TensorInfo) -> str | None:
        """Return the type that was asked for by name of the option."""
        asked = {
            Role.TOKEN_EMBEDDING: self.overrides.token_embedding_type,
            Role.OUTPUT: self.overrides.output_tensor_type,
        }
        return asked.get(role(tensor.name))

    def _asked_by_pattern(self, tensor: TensorInfo) -> str | None:
        """Return the type of the first regular expression that is found in the tensor's name."""
        patterns = self.overrides.tensor_types
        return next((type for pattern, type in patterns if pattern.search(tensor.name)), None)

    def _by_rule(self, tensor: TensorInfo) -> str:
        """Return the type that the mix gives a tensor."""
        of = role(tensor.name)
        if self.overrides.pure:
            return self.mix.default
        if of is Role.OUTPUT or (of is Role.TOKEN_EMBEDDING and self.tied):
            return self._output_type(tensor)
        layer, n_layers = self._layer(tensor, of)
        if self.n_experts == 8:
            bigger = EIGHT_EXPERTS_4_BITS if self.mix.name in ("Q4_K_S", "Q4_K_M") else EIGHT_EXPERTS
            if of in bigger:
                return bigger[of]
        better = EXCEPTIONS.get(self.mix.name, {}).get(of)
        return better.type if better is not None and better.layers(layer, n_layers) else self.mix.default

    def _output_type(self, tensor: TensorInfo) -> str:
        """Return the type of the matrix that makes the logits: every error in it is an error of a logit."""
        if self.overrides.output_tensor_type is not None:  # asked for, but the token embedding does its work
            return self.overrides.output_tensor_type
        divides = tensor.shape[-1] % TENSOR_TYPES[self.mix.default].block == 0
        return "Q6_K" if divides and self.mix.default != "Q8_0" else "Q8_0"

    def _layer(self, tensor: TensorInfo, of: Role) -> tuple[int, int]:
        """Return the layer of a tensor, and of how many.

        As in llama.cpp this is how many of its role came before, not the number in its name: a tensor that
        took its type from a regular expression is not counted. Models of experts use the name after all.
        """
        layer = self.seen.get(of, 0)
        self.seen[of] = layer + 1
        if of is Role.ATTENTION_VALUE:
            return layer, self.n_values
        return (file_order(tensor.name)[0] if self.n_experts > 1 else layer), self.n_layers


def fallback(tensor: TensorInfo, type_name: str) -> TensorType:
    """Return the type, or the one that steps in where its blocks do not divide the tensor's rows."""
    for name in (type_name, FALLBACKS.get(type_name, type_name)):
        if tensor.shape[-1] % TENSOR_TYPES[name].block == 0:
            return TENSOR_TYPES[name]
    return TENSOR_TYPES["F16"]


def _must_divide(tensor: TensorInfo, type_name: str) -> TensorType:
    type = TENSOR_TYPES[type_name]
    if tensor.shape[-1] % type.block:
        raise QuantizeError(
            f"{tensor.name}: rows of {tensor.shape[-1]} weights cannot be {type_name}, "
            f"whose blocks have {type.block}; ask for another type"
        )
    return type
