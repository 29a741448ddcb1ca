"""Which tensor gets which type: what `Q4_K_M` means.

A mix is a default type and the exceptions of `rules.RULES` for the tensors that suffer most: the output matrix,
the values of attention, the way down out of the feed-forward part, and of those the first and the last layers.
What the caller wishes comes before the rules, and where blocks do not divide a row, another type steps in.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from phicourse.errors import QuantizeError
from phicourse.gguf.reader import TensorInfo
from phicourse.gguf.types import TENSOR_TYPES, TensorType
from phicourse.quantize.registry import supported_type
from phicourse.quantize.rules import (
    BELOW_3_BITS,
    FALLBACKS,
    OUTPUT_TYPE,
    Place,
    Role,
    cases,
    role,
)

_SMALL_BLOCK = 32  # where this does not divide a row, F16 steps in


@dataclass(frozen=True)
class Mix:
    """A named choice of types.

    file_type         the number that stands for it in `general.file_type`
    default           the type of every matrix without a rule of its own
    bits              bits per weight of a Phi-3.5-mini in this mix
    needs_importance  whether that model cannot have it without an importance matrix
    """

    name: str
    file_type: int
    default: str
    bits: float
    needs_importance: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether there are blocks to speak of; F32, F16 and BF16 have none, and no exceptions either."""
        return TENSOR_TYPES[self.default].block > 1


MIXES: dict[str, Mix] = {
    mix.name: mix
    for mix in (
        Mix("F32", 0, "F32", 32.0),
        Mix("F16", 1, "F16", 16.0),
        Mix("BF16", 32, "BF16", 16.0),
        Mix("Q8_0", 7, "Q8_0", 8.5),
        Mix("MXFP4_MOE", 38, "MXFP4", 8.5),
        Mix("Q6_K", 18, "Q6_K", 6.56),
        Mix("Q5_1", 9, "Q5_1", 6.02),
        Mix("Q5_K_M", 17, "Q5_K", 5.77),
        Mix("Q5_0", 8, "Q5_0", 5.53),
        Mix("Q5_K_S", 16, "Q5_K", 5.53),
        Mix("Q4_1", 3, "Q4_1", 5.04),
        Mix("Q4_K_M", 15, "Q4_K", 5.02),
        Mix("Q4_K_S", 14, "Q4_K", 4.61),
        Mix("Q3_K_L", 13, "Q3_K", 4.61),
        Mix("IQ4_NL", 25, "IQ4_NL", 4.58),
        Mix("Q4_0", 2, "Q4_0", 4.55),
        Mix("IQ4_XS", 30, "IQ4_XS", 4.34),
        Mix("Q3_K_M", 12, "Q3_K", 4.11),
        Mix("IQ3_M", 27, "IQ3_S", 3.88),
        Mix("Q3_K_S", 11, "Q3_K", 3.52),
        Mix("IQ3_S", 26, "IQ3_S", 3.52),
        Mix("IQ3_XS", 22, "IQ3_S", 3.4, needs_importance=True),
        Mix("IQ3_XXS", 23, "IQ3_XXS", 3.17, needs_importance=True),
        Mix("Q2_K", 10, "Q2_K", 3.16),
        Mix("IQ2_M", 29, "IQ2_S", 2.96, needs_importance=True),
        Mix("IQ2_S", 28, "IQ2_XS", 2.81, needs_importance=True),
        Mix("Q2_K_S", 21, "Q2_K", 2.78, needs_importance=True),
        Mix("IQ2_XS", 20, "IQ2_XS", 2.49, needs_importance=True),
        Mix("Q2_0", 41, "Q2_0", 2.42),
        Mix("IQ2_XXS", 19, "IQ2_XXS", 2.32, needs_importance=True),
        Mix("TQ2_0", 37, "TQ2_0", 2.24),
        Mix("IQ1_M", 31, "IQ1_M", 2.13, needs_importance=True),
        Mix("IQ1_S", 24, "IQ1_S", 2.01, needs_importance=True),
        Mix("TQ1_0", 36, "TQ1_0", 1.89),
        Mix("Q1_0", 40, "Q1_0", 1.27),
    )
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
# Every tensor and the file type stay as they are; only the order of the tensors changes.
COPY = Mix("COPY", 0, "F32", 0)


def find_mix(name: str) -> Mix:
    """Look a mix up by name or alias, in any case; QuantizeError lists the names."""
    upper = name.upper()
    if upper == COPY.name:
        return COPY
    mix = MIXES.get(ALIASES.get(upper, upper))
    if mix is None:
        raise QuantizeError(f"unknown mix {name!r}; known are {', '.join((*MIXES, *ALIASES, COPY.name))}")
    return mix


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


def read_tensor_types(path: Path) -> list[str]:
    """The REGEX=TYPE entries of a text file, with spaces or newlines between them.

    Raises OSError, and QuantizeError with the number of the line where an entry is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise QuantizeError(f"{path}: a list of REGEX=TYPE was expected, and this is no UTF-8 text") from None
    entries = []
    for number, line in enumerate(lines, 1):
        for entry in line.split():
            try:
                _parse_tensor_type(entry)
            except QuantizeError as error:
                raise QuantizeError(f"{path}: line {number}: {error}") from None
            entries.append(entry)
    return entries


def choose_types(
    tensors: Iterable[TensorInfo],
    mix: Mix,
    *,
    n_layers: int,
    n_gqa: int = 1,
    n_experts: int = 0,
    has_importance: bool = False,
    overrides: Overrides = Overrides(),
) -> dict[str, TensorType]:
    """Choose the type of every tensor.

    tensors         of the whole model, in any order
    n_layers        of the model; n_gqa: query heads for each head of keys and values; n_experts: 0 where it has none
    has_importance  whether an importance matrix will be used; some mixes choose otherwise then
    returns         name -> type, in the order in which llama.cpp writes the tensors: those outside the layers
                    first, then layer by layer, by name in each
    raises          QuantizeError where no type can be found whose blocks divide a tensor's rows
    """
    ordered = sorted(tensors, key=lambda tensor: file_order(tensor.name))
    roles = [role(tensor.name) for tensor in ordered]
    chooser = _Chooser(
        mix,
        overrides,
        Place(0, n_layers, n_gqa, n_experts, is_stack=False, has_importance=has_importance),
        n_values=roles.count(Role.ATTENTION_VALUE),
        tied=Role.OUTPUT not in roles,
    )
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
    overrides: Overrides
    model: Place  # what all places of the model have in common
    n_values: int  # attention value matrices in the model
    tied: bool  # the token embedding is the output matrix, too
    seen: Counter[Role] = field(default_factory=Counter)

    def choose(self, tensor: TensorInfo) -> TensorType:
        left_out = self.overrides.leave_output_tensor and tensor.name == "output.weight"
        if self.mix is COPY or left_out or not can_be_quantized(tensor):
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
        return self._by_case(of, self._place(tensor, of), self.mix.default)

    def _by_case(self, of: Role, place: Place, otherwise: str) -> str:
        """Return the type of the first case whose conditions all hold."""
        return next(
            (
                type
                for type, *conditions in cases(self.mix.name, of)
                if all(holds(place) for holds in conditions)
            ),
            otherwise,
        )

    def _output_type(self, tensor: TensorInfo) -> str:
        """Return the type of the matrix that makes the logits."""
        if self.overrides.output_tensor_type is not None:  # asked for, but the token embedding does its work
            return self.overrides.output_tensor_type
        if tensor.shape[-1] % TENSOR_TYPES[self.mix.default].block:
            return "Q8_0"
        return self._by_case(Role.OUTPUT, self.model, OUTPUT_TYPE)

    def _place(self, tensor: TensorInfo, of: Role) -> Place:
        """Return where a tensor is: in which layer, and of how many.

        As in llama.cpp the layer is how many of its role came before, not the number in its name: a tensor that
        took its type from a regular expression is not counted. Models of experts use the name after all, but
        for the values of attention, and not in the mixes below 3 bits.
        """
        layer, n_layers = self.seen[of], self.model.n_layers
        self.seen[of] += 1
        if of is Role.ATTENTION_VALUE:
            n_layers = self.n_values
        elif self.model.n_experts > 1 and self.mix.name not in BELOW_3_BITS:
            layer = file_order(tensor.name)[0]
        is_stack = len(tensor.shape) > 2 and tensor.shape[-3] > 1
        return replace(self.model, layer=layer, n_layers=n_layers, is_stack=is_stack)


def fallback(tensor: TensorInfo, type_name: str) -> TensorType:
    """Return the type, or the one that steps in where its blocks do not divide the tensor's rows.

    QuantizeError for types of which nobody says what should step in (those with blocks of 64 or 128).
    """
    columns, wanted = tensor.shape[-1], TENSOR_TYPES[type_name]
    if columns % wanted.block == 0:
        return wanted
    if type_name not in FALLBACKS and wanted.block > _SMALL_BLOCK:
        return _must_divide(tensor, type_name)
    smaller = TENSOR_TYPES[FALLBACKS.get(type_name, type_name)]
    return TENSOR_TYPES["F16"] if columns % smaller.block else smaller


def _must_divide(tensor: TensorInfo, type_name: str) -> TensorType:
    type = TENSOR_TYPES[type_name]
    if tensor.shape[-1] % type.block:
        raise QuantizeError(
            f"{tensor.name}: rows of {tensor.shape[-1]} weights cannot be {type_name}, "
            f"whose blocks have {type.block}; ask for another type"
        )
    return type
