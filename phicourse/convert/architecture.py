"""What the table of an architecture is made of, and the list of tensors that follows from it and a checkpoint.

A table says where each tensor of the checkpoint goes. No weight changes its place within a row, and rows keep
their order; only experts, each a tensor of its own on the Hub, are stacked into one.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint import Checkpoint, PhiConfig
from phicourse.convert.metadata import Pair
from phicourse.errors import ConvertError
from phicourse.gguf import ValueType

Number = tuple[str, Any, ValueType]  # a metadata key, its value and its type

# Buffers that old versions of transformers saved among the weights; they follow from the config.
_DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_LAYER = re.compile(r"(?<=^model\.layers\.)(0|[1-9]\d{0,4})(?=\.)")
_EXPERT = re.compile(r"(?<=\.experts\.)(0|[1-9]\d{0,4})(?=\.)")


@dataclass(frozen=True)
class Rule:
    """A tensor of the checkpoint, its name in GGUF, and the shape that the config asks for.

    source       "N" stands for the layer, "E" for the expert: experts are stacked
    shape        of the tensor in GGUF: (n,), (rows, columns) or (experts, rows, columns)
    part         (i, n): the tensor holds the i-th of n equal parts of an expert's rows
    is_optional  whether the checkpoint may lack it
    """

    source: str
    target: str
    shape: Callable[[PhiConfig], tuple[int, ...]]
    part: tuple[int, int] = (0, 1)
    is_optional: Callable[[PhiConfig], bool] = lambda config: False

    def source_shape(self, config: PhiConfig) -> tuple[int, ...]:
        """Return the shape that each source must have."""
        shape = self.shape(config)
        if ".E." in self.source:
            return shape[1:]
        n_parts = self.part[1]
        return shape if n_parts == 1 else (*shape[:-2], n_parts * shape[-2], shape[-1])

    def n_layers(self, config: PhiConfig) -> int:
        """Count the tensors in GGUF: one for each layer, or one."""
        return config.n_layers if ".N." in self.source else 1

    def n_experts(self, config: PhiConfig) -> int:
        """Count the sources of each."""
        return config.n_experts if ".E." in self.source else 1

    def sources(self, layer: int, config: PhiConfig) -> list[str]:
        """Name the sources in a layer; the layer does not matter where the name has none."""
        name = self.source.replace(".N.", f".{layer}.")
        return [name.replace(".E.", f".{expert}.") for expert in range(self.n_experts(config))]


Table = tuple[Rule, ...]


def weight_and_bias(
    source: str,
    target: str,
    shape: Callable[[PhiConfig], tuple[int, ...]],
    has_bias: Callable[[PhiConfig], bool] = lambda config: True,
) -> Table:
    """Make the rules of a matrix or a norm of this shape, and of the bias that is added to what it gives."""
    return (
        Rule(f"{source}.weight", f"{target}.weight", shape),
        Rule(
            f"{source}.bias",
            f"{target}.bias",
            lambda config: shape(config)[:1],
            is_optional=lambda config: not has_bias(config),
        ),
    )


@dataclass(frozen=True)
class Architecture:
    """How one kind of model is stored.

    name             in GGUF; class_name: in config.json
    tables           one for each way in which checkpoints of this kind name their tensors
    hyperparameters  the numbers that describe a model and the file's type, in the converter's order
    own              pairs that llama.cpp's converter does not write
    as_reference     the config as llama.cpp's converter takes it, where that is not what it says
    place            what a tensor's name is sorted by within a shard
    """

    name: str
    class_name: str
    tables: tuple[Table, ...]
    hyperparameters: Callable[[PhiConfig, int], tuple[Number, ...]]
    own: Callable[[PhiConfig], tuple[Number, ...]] = lambda config: ()
    as_reference: Callable[[PhiConfig], PhiConfig] = lambda config: config
    place: Callable[[str], str] = lambda name: name


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a tensor of the checkpoint; more than two dimensions count as one long matrix."""

    source: str
    start: int
    stop: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the GGUF file: pieces of the checkpoint, one below the other, or `values` from the config."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()
    values: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def is_always_f32(self) -> bool:
        """Whether the tensor stays F32 in every file: vectors and the router, which are small and sensitive."""
        return len(self.shape) == 1 or self.name.endswith(".ffn_gate_inp.weight")


# ---- tensors --------------------------------------------------------------------------------------------


def tensors(architecture: Architecture, checkpoint: Checkpoint) -> list[Tensor]:
    """List the file's tensors in its order: the rope factors, then the checkpoint's, shard by shard, by name.

    The stacked experts of a layer come where the last of them is. Raises ConvertError for a tensor that is
    missing, that the architecture does not have, or whose shape is not the config's.
    """
    config, names = checkpoint.config, _in_order(architecture, checkpoint)
    table = max(architecture.tables, key=lambda table: _n_known(table, names))
    _check_known(architecture, checkpoint, table, names)
    _check_complete(checkpoint, table, names)
    place = {_group(name): i for i, name in enumerate(names)}
    found = [
        (place[_group(sources[0])], _tensor(rule, layer, sources, config))
        for rule in table
        for layer in range(rule.n_layers(config))
        if _group((sources := rule.sources(layer, config))[0]) in place
    ]
    return _rope_tensors(config) + [tensor for _, tensor in sorted(found, key=itemgetter(0))]


def _in_order(architecture: Architecture, checkpoint: Checkpoint) -> list[str]:
    return [
        name
        for shard in checkpoint.shards
        for name in sorted(shard.tensors, key=architecture.place)
        if not _DERIVED.fullmatch(name)
    ]


def _group(name: str) -> str:
    """Return what has one place in the order: a tensor, or all experts of a layer."""
    return name.partition(".experts.")[0]


def _tensor(rule: Rule, layer: int, sources: list[str], config: PhiConfig) -> Tensor:
    shape = rule.shape(config)
    return Tensor(rule.target.replace(".N.", f".{layer}."), shape, tuple(_pieces(rule, shape, sources)))


def _pieces(rule: Rule, shape: tuple[int, ...], sources: list[str]) -> Iterator[Piece]:
    """Say which rows of the sources make up a tensor."""
    part, n_parts = rule.part
    if n_parts == 1:
        rows = prod(shape[:-1]) // len(sources)
        yield from (Piece(source, 0, rows) for source in sources)
        return
    n_experts, rows, _ = shape
    for start in range(part * rows, n_experts * n_parts * rows, n_parts * rows):
        yield Piece(sources[0], start, start + rows)


def _general(name: str) -> str:
    """Return a tensor's name as the tables have it: N for the layer, E for the expert."""
    return _EXPERT.sub("E", _LAYER.sub("N", name))


def _n_known(table: Table, names: list[str]) -> int:
    sources = {rule.source for rule in table}
    return sum(_general(name) in sources for name in names)


def _check_known(architecture: Architecture, checkpoint: Checkpoint, table: Table, names: list[str]) -> None:
    """Check that the architecture has all tensors that are there, in these shapes."""
    config = checkpoint.config
    rules = {rule.source: rule for rule in table}
    for name in names:
        rule = rules.get(_general(name))
        if (
            rule is None
            or _index(_LAYER, name) >= config.n_layers
            or (_index(_EXPERT, name) >= max(config.n_experts, 1))
        ):
            experts = f" of {config.n_experts} experts" if config.n_experts else ""
            raise ConvertError(
                f"{checkpoint.folder}: the tensor {name[:100]!r} is none of a {architecture.class_name} with "
                f"{config.n_layers} layers{experts}; adapters, quantized and multimodal checkpoints cannot be "
                "converted"
            )
        shape, expected = checkpoint.tensors[name][1].shape, rule.source_shape(config)
        if shape != expected:
            raise ConvertError(
                f"{checkpoint.folder}: {name} has the shape {shape}, config.json asks for {expected}"
            )


def _index(pattern: re.Pattern[str], name: str) -> int:
    match = pattern.search(name)
    return int(match[0]) if match else 0


def _check_complete(checkpoint: Checkpoint, table: Table, names: list[str]) -> None:
    """Check that nothing is missing. All that is there belongs, so counting is enough to know it."""
    config, found = checkpoint.config, set(names)
    needed = {rule.source: rule for rule in table if not rule.is_optional(config)}
    n_needed = sum(rule.n_layers(config) * rule.n_experts(config) for rule in needed.values())
    n_missing = n_needed - sum(_general(name) in needed for name in names)
    if n_missing:
        missing = next(
            name
            for rule in needed.values()
            for layer in range(rule.n_layers(config))
            for name in rule.sources(layer, config)
            if name not in found
        )
        more = f" and {n_missing - 1} more tensors are" if n_missing > 1 else " is"
        raise ConvertError(f"{checkpoint.folder}: {missing}{more} missing; incomplete download?")


def _rope_tensors(config: PhiConfig) -> list[Tensor]:
    """LongRoPE's factors are weights in GGUF, one divisor for each rotated pair."""
    return [
        Tensor(name, (len(factors),), values=np.array(factors, dtype=np.float32))
        for name, factors in (
            ("rope_factors_long.weight", config.long_factor),
            ("rope_factors_short.weight", config.short_factor),
        )
        if factors is not None
    ]


# ---- metadata -------------------------------------------------------------------------------------------


def leading_pairs(config: PhiConfig) -> list[Pair]:
    """List the pairs that come before `general.type`."""
    name = config.architecture
    pairs: list[Pair] = [("general.architecture", name, ValueType.STRING, None)]
    if config.long_factor is not None:
        pairs.append((f"{name}.rope.scaling.attn_factor", config.attention_factor, ValueType.FLOAT32, None))
    return pairs


def hyperparameter_pairs(architecture: Architecture, config: PhiConfig, file_type: int) -> list[Pair]:
    """List the numbers that describe the model, in the converter's order."""
    numbers = architecture.hyperparameters(config, file_type)
    return _pairs((*numbers, ("general.quantization_version", 2, ValueType.UINT32)))


def own_pairs(architecture: Architecture, config: PhiConfig) -> list[Pair]:
    """List what llama.cpp's converter leaves out."""
    return _pairs(architecture.own(config))


def _pairs(numbers: tuple[Number, ...]) -> list[Pair]:
    return [(key, value, type, None) for key, value, type in numbers]
