"""A GGUF file in, a smaller one out: the pipeline around the quantizers.

Tensors stream through in chunks of rows, so memory does not grow with the file. Keys and tensors come out
in llama.cpp's order, and the whole file has the same bytes as llama-quantize writes (ggml 0.25.3).
"""

import html
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from phicourse.errors import QuantizeError
from phicourse.gguf import GGUFWriter, TensorInfo, TensorType, Value, ValueType
from phicourse.progress import byte_bar
from phicourse.quantize.checks import Where, check_blocks
from phicourse.quantize.mixes import Mix, Overrides, choose_types, find_mix, n_dimensions
from phicourse.quantize.registry import DEQUANTIZERS, Backend, quantize_data
from phicourse.quantize.sources import Source, open_source

_VERSION = 2  # of the quantized types' layouts, since 2023
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_ALIGNMENT = Value(ValueType.UINT32, 32)


_COLUMNS = ("tensor", "shape", "from", "to", "MiB")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor, and the type that it will have."""

    source: TensorInfo
    type: TensorType

    @property
    def nbytes(self) -> int:
        """The bytes it will take."""
        return self.source.rows * self.type.row_bytes(self.source.shape[-1])

    def row(self) -> tuple[str, str, str, str, str]:
        """Its row in the plan's table."""
        shape = " × ".join(map(str, self.source.shape))
        return self.source.name, shape, self.source.type.name, self.type.name, _mib(self.nbytes)


@dataclass(frozen=True)
class Plan:
    """What `quantize` is about to do; prints as a table."""

    mix: Mix
    tensors: tuple[PlannedTensor, ...]

    @property
    def source_bytes(self) -> int:
        """The bytes of all tensors as they are."""
        return sum(tensor.source.nbytes for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors as they will be."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight will take on average."""
        return 8 * self.nbytes / sum(tensor.source.n_weights for tensor in self.tensors)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return the table's cells: tensor, shape, type before, type after, MiB after."""
        return [tensor.row() for tensor in self.tensors]

    def total(self) -> str:
        """Return the sizes in a line."""
        return (
            f"{self.mix.name}: {_mib(self.source_bytes)} MiB -> {_mib(self.nbytes)} MiB, "
            f"{self.bits_per_weight:.2f} bits per weight"
        )

    def __str__(self) -> str:
        table = [_COLUMNS, *self.rows()]
        name, shape, *types = (max(len(row[i]) for row in table) for i in range(4))
        lines = (
            f"{a:<{name}}  {b:>{shape}}  {c:<{types[0]}}  {d:<{types[1]}}  {e:>10}" for a, b, c, d, e in table
        )
        return "\n".join((*lines, self.total()))

    def _repr_html_(self) -> str:
        top = "".join(f"<th>{title}</th>" for title in _COLUMNS)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<p>{self.total()}</p><table><tr>{top}</tr>{body}</table>"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.2f}"


def quantize(
    source: Path | str,
    out: Path | str | None = None,
    mix: str = "Q4_K_M",
    *,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    pure: bool = False,
    leave_output_tensor: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    tensor_types: Iterable[str] = (),
    allow_requantize: bool = False,
    backend: Backend = "auto",
    progress: bool = True,
) -> Path | Plan:
    """Quantize a model: a GGUF file, or a checkpoint folder, with the bytes of `convert` to float16 and then this.

    out                   the new file, or a folder for it; None: the source's folder. In a folder it is named
                          ggml-model-MIX.gguf
    mix                   a name of MIXES or ALIASES, in any case
    threads               for the compiled quantizers; None: one for each processor
    force                 replace a file that is there
    dry_run               write nothing, return the plan
    pure                  every matrix in the mix's default type
    leave_output_tensor   keep output.weight as it is
    output_tensor_type    type of output.weight; token_embedding_type: of token_embd.weight
    tensor_types          REGEX=TYPE; the first expression that is found in a tensor's name decides
    allow_requantize      take weights that are quantized already: their errors add up
    backend               see `quantize_rows`
    returns               the path of the new file, or the plan
    raises                QuantizeError, GGUFError and, for a folder, CheckpointError and ConvertError
    """
    chosen = find_mix(mix)
    overrides = Overrides.parse(
        pure=pure,
        leave_output_tensor=leave_output_tensor,
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        tensor_types=tensor_types,
    )
    source = Path(source)
    target = _target(source, out, f"ggml-model-{chosen.name}.gguf")
    with open_source(source, chosen.name) as model:
        plan = _plan(model, chosen, overrides)
        _check_types(model, plan, allow_requantize)
        if dry_run:
            return plan
        with GGUFWriter(target, force=force, inputs=model.inputs) as writer:
            _write(writer, model, plan, threads, backend, progress)
    return target


def _plan(source: Source, mix: Mix, overrides: Overrides) -> Plan:
    """Choose the types of a model's tensors, in the order in which they will be written."""
    types = choose_types(
        source.tensors.values(),
        mix,
        n_layers=source.n_layers,
        n_experts=source.n_experts,
        overrides=overrides,
    )
    for pattern, _ in overrides.tensor_types:
        if not any(pattern.search(name) for name in types):
            print(f"phicourse: {pattern.pattern!r} is in the name of no tensor", file=sys.stderr)
    return Plan(mix, tuple(PlannedTensor(source.tensors[name], type) for name, type in types.items()))


def _target(source: Path, out: Path | str | None, name: str) -> Path:
    """Where the new file goes: `out`, or a file of this name in the folder `out`, or beside the source."""
    if out is None:
        out = source if source.is_dir() else source.parent
    return Path(out) / name if Path(out).is_dir() else Path(out)


def _check_types(model: Source, plan: Plan, allow_requantize: bool) -> None:
    """Refuse weights that were rounded before, unless the caller insists, and types that cannot be read."""
    for tensor in plan.tensors:
        source = tensor.source.type
        if source == tensor.type:
            continue
        if source.name not in DEQUANTIZERS:
            raise QuantizeError(
                f"{model.path}: {tensor.source.name} is {source.name}, which cannot be widened here"
            )
        if source.block > 1 and not allow_requantize:
            raise QuantizeError(
                f"{model.path}: {tensor.source.name} is {source.name} already, errors would add up; start from the "
                "F32, F16 or BF16 file, or insist with --allow-requantize (allow_requantize=True)"
            )


def _write(
    writer: GGUFWriter, model: Source, plan: Plan, threads: int | None, backend: Backend, progress: bool
) -> None:
    """Write the new file: metadata, then every tensor."""
    for key, value in _metadata(model, plan.mix).items():
        writer.add(key, value.value, value.type, value.element)
    for tensor in plan.tensors:
        writer.declare(tensor.source.name, _stored_shape(tensor.source), tensor.type)
    with byte_bar(plan.source_bytes, progress) as bar:
        for tensor in plan.tensors:
            bar.set_description(tensor.source.name, refresh=False)
            for first_row, data in model.chunks(tensor.source):
                writer.write(tensor.source.name, _convert(data, tensor, first_row, threads, backend))
                bar.update(data.nbytes)


def _metadata(model: Source, mix: Mix) -> dict[str, Value]:
    """Return the input's pairs, then how this file is stored; those of a split set stay behind."""
    kept = {key: value for key, value in model.metadata.items() if key not in _SPLIT_KEYS}
    if kept.get("general.alignment", _ALIGNMENT) != _ALIGNMENT:
        del kept["general.alignment"]  # the output has the default one
    for key, number in (("general.quantization_version", _VERSION), ("general.file_type", mix.file_type)):
        kept.pop(key, None)  # so that it comes last
        kept[key] = Value(ValueType.UINT32, number)
    return kept


def _stored_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """Return the shape without outermost sizes of 1, which ggml does not write."""
    return tensor.shape[-n_dimensions(tensor) :] or (1,)


def _convert(
    data: NDArray[Any], tensor: PlannedTensor, first_row: int, threads: int | None, backend: Backend
) -> NDArray[Any]:
    """Return the bytes of some rows in the type that was chosen for them."""
    if tensor.type == tensor.source.type:
        check_blocks(data, tensor.type, Where(tensor.source.name, first_row))
        return data
    return quantize_data(
        data,
        tensor.source.type,
        tensor.type.name,
        backend=backend,
        threads=threads,
        name=tensor.source.name,
        first_row=first_row,
    )
