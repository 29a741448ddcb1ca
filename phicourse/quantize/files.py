"""A GGUF file in, a smaller one out: the pipeline around the quantizers.

Tensors stream through in chunks of rows, so memory does not grow with the file. Keys and tensors come out
in llama.cpp's order, and the whole file has the same bytes as llama-quantize writes (ggml 0.25.3).
"""

import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.convert.streaming import default_folder
from phicourse.errors import QuantizeError
from phicourse.gguf import GGUFWriter, TensorInfo, TensorType, Value, ValueType
from phicourse.gguf.shards import SPLIT_KEYS
from phicourse.progress_bar import byte_bar
from phicourse.quantize.checks import Where, check_blocks
from phicourse.quantize.importance import ImportanceMatrix
from phicourse.quantize.mixes import COPY, Mix, Overrides, choose_types, find_mix, n_dimensions
from phicourse.quantize.plan import Plan, PlannedTensor
from phicourse.quantize.registry import DEQUANTIZERS, Backend, Search, is_compiled, quantize_data
from phicourse.quantize.sources import Source, open_source
from phicourse.quantize.weighting import Weighting

_VERSION = Value(ValueType.UINT32, 2)  # of the quantized types' layouts, since 2023
_ALIGNMENT = Value(ValueType.UINT32, 32)

Convert = Callable[..., NDArray[Any]]  # `quantize_data` with threads, backend and search
Rows = Generator[tuple[NDArray[Any], int], None, None]  # new rows, and how many bytes of the source they took


def quantize(
    source: Path | str,
    out: Path | str | None = None,
    mix: str = "Q4_K_M",
    *,
    via: str | None = None,
    imatrix: ImportanceMatrix | Path | str | None = None,
    include_weights: Collection[str] = (),
    exclude_weights: Collection[str] = (),
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
    search: Search = "reference",
    progress: bool = True,
) -> Path | Plan:
    """Quantize a model: a GGUF file, or a checkpoint folder in one pass, straight from its own weights.

    out                   the new file, or a folder for it; None: the source's folder. In a folder it is named
                          ggml-model-MIX.gguf
    mix                   a name of MIXES or ALIASES, in any case; COPY keeps every tensor as it is
    via                   "f16": round a checkpoint's matrices to float16 first, for the bytes of `convert` to
                          float16 and then this, which are those of llama.cpp's two tools
    imatrix               how much each column counts: a matrix, or a file that has one. Some mixes need it
    include_weights       parts of tensor names: use `imatrix` for tensors with one of these only
    exclude_weights       parts of tensor names: do not use it for tensors with one of these
    threads               for the compiled quantizers; None: one for each processor
    force                 replace a file that is there
    dry_run               write nothing, return the plan
    pure                  every matrix in the mix's default type
    leave_output_tensor   keep output.weight as it is
    output_tensor_type    type of output.weight; token_embedding_type: of token_embd.weight
    tensor_types          REGEX=TYPE; the first expression that is found in a tensor's name decides
    allow_requantize      take weights that are quantized already: their errors add up
    backend, search       see `quantize_rows`
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
    weighting = Weighting.load(imatrix, include_weights, exclude_weights)
    source = Path(source)
    target = _target(source, out, f"ggml-model-{chosen.name}.gguf")
    with open_source(source, via) as model:
        plan = _plan(model, chosen, overrides, weighting)
        _check_types(model, plan, allow_requantize)
        if dry_run:
            return plan
        if plan.needs():
            raise QuantizeError(f"{model.path}: {plan.needs()}")
        with GGUFWriter(target, force=force, inputs=model.inputs) as writer:
            _write_metadata(writer, model, chosen, weighting)
            convert = partial(quantize_data, threads=threads, backend=backend, search=search)
            ahead = partial(is_compiled, backend=backend, search=search)
            _write_tensors(writer, model, plan, convert, ahead, progress)
    return target


def _plan(source: Source, mix: Mix, overrides: Overrides, weighting: Weighting | None) -> Plan:
    """Choose the types of a model's tensors, in the order in which they will be written."""
    types = choose_types(
        source.tensors.values(),
        mix,
        n_layers=source.n_layers,
        n_gqa=_n_gqa(source),
        n_experts=source.n_experts,
        has_importance=weighting is not None,
        overrides=overrides,
    )
    for pattern, _ in overrides.tensor_types:
        if not any(pattern.search(name) for name in types):
            print(f"phicourse: {pattern.pattern!r} is in the name of no tensor", file=sys.stderr)
    if weighting is not None:
        weighting.check(types)
    return Plan(mix, tuple(_planned(source.tensors[name], type, weighting) for name, type in types.items()))


def _planned(tensor: TensorInfo, type: TensorType, weighting: Weighting | None) -> PlannedTensor:
    changes = type != tensor.type
    return PlannedTensor(tensor, type, weighting.of(tensor) if weighting is not None and changes else None)


def _n_gqa(source: Source) -> int:
    """Return how many query heads share a head of keys and values; 1 where the file does not say.

    Where layers differ, the first one speaks for all, as in llama.cpp.
    """
    architecture = source.metadata["general.architecture"].value
    heads, kv_heads = (
        source.metadata.get(f"{architecture}.attention.{key}") for key in ("head_count", "head_count_kv")
    )
    if heads is None or kv_heads is None:
        return 1
    first = [np.asarray(value.value).reshape(-1)[:1] for value in (heads, kv_heads)]
    if any(value.dtype.kind not in "iu" or not value.size for value in first):
        raise QuantizeError(
            f"{source.path}: {architecture}.attention.head_count and head_count_kv must be whole numbers"
        )
    n_heads, n_kv_heads = (int(value[0]) for value in first)
    return n_heads // n_kv_heads if n_kv_heads else 0


def _target(source: Path, out: Path | str | None, name: str) -> Path:
    """Where the new file goes: `out`, or a file of this name in the folder `out`, or beside the source."""
    if out is None:
        out = default_folder(source if source.is_dir() else source.parent)
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


def _write_metadata(writer: GGUFWriter, model: Source, mix: Mix, weighting: Weighting | None) -> None:
    """Write the input's pairs, then how this file is stored; those of a split set stay behind."""
    file_type = Value(ValueType.UINT32, mix.file_type)
    if mix is COPY:
        file_type = model.metadata.get("general.file_type", file_type)
    own = {"general.quantization_version": _VERSION, "general.file_type": file_type}
    if weighting is not None:
        own |= weighting.metadata()
    kept = {key: value for key, value in model.metadata.items() if key not in (*SPLIT_KEYS, *own)}
    if kept.get("general.alignment", _ALIGNMENT) != _ALIGNMENT:
        del kept["general.alignment"]  # the output has the default one
    for key, value in (kept | own).items():
        writer.add(key, value.value, value.type, value.element)


def _write_tensors(
    writer: GGUFWriter,
    model: Source,
    plan: Plan,
    convert: Convert,
    can_go_ahead: Callable[[str], bool],
    progress: bool,
) -> None:
    """Write every tensor, some rows at a time.

    The compiled module makes the next rows while the last ones are written. A function of Python stays in this
    thread, where Ctrl-C ends it at once.
    """
    for tensor in plan.tensors:
        writer.declare(tensor.source.name, _stored_shape(tensor.source), tensor.type)
    with byte_bar(plan.source_bytes, progress) as bar:
        for tensor in plan.tensors:
            bar.set_description(tensor.source.name, refresh=False)
            ahead = tensor.type != tensor.source.type and can_go_ahead(tensor.type.name)
            chunks = _converted_chunks(model, tensor, convert)
            # Closed here, so that after an error nobody still reads the source when it is closed.
            with closing(_one_ahead(chunks) if ahead else chunks) as parts:
                for rows, n_bytes in parts:
                    writer.write(tensor.source.name, rows)
                    bar.update(n_bytes)


def _converted_chunks(model: Source, tensor: PlannedTensor, convert: Convert) -> Rows:
    """Yield rows of a tensor in its new type, and how many bytes of the source these took."""
    for first_row, data in model.chunks(tensor.source):
        n_bytes = data.nbytes
        for rows in _converted(data, tensor, first_row, convert):
            yield rows, n_bytes
            n_bytes = 0


def _one_ahead(items: Rows) -> Rows:
    """Yield the same items; a second thread makes each of them while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _stored_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """Return the shape without outermost sizes of 1, which ggml does not write."""
    return tensor.shape[-n_dimensions(tensor) :] or (1,)


def _converted(
    data: NDArray[Any], tensor: PlannedTensor, first_row: int, convert: Convert
) -> Iterator[NDArray[Any]]:
    """Yield the bytes of some rows in the type that was chosen for them; each expert has its own importance."""
    source, importance = tensor.source, tensor.importance
    if tensor.type == source.type:
        check_blocks(data, tensor.type, Where(source.name, first_row))
        yield data
    elif importance is None:
        yield convert(data, source.type, tensor.type.name, name=source.name, first_row=first_row)
    else:
        for matrix, start, stop in _by_matrix(first_row, len(data), source.shape[-2]):
            yield convert(
                data[start:stop],
                source.type,
                tensor.type.name,
                importance=importance[matrix],
                name=source.name,
                first_row=first_row + start,
            )


def _by_matrix(first_row: int, n_rows: int, rows_of_matrix: int) -> Iterator[tuple[int, int, int]]:
    """Cut n_rows of a stack of matrices, from first_row on, where matrices end: yield matrix, start, stop."""
    start = 0
    while start < n_rows:
        matrix, row = divmod(first_row + start, rows_of_matrix)
        stop = min(n_rows, start + rows_of_matrix - row)
        yield matrix, start, stop
        start = stop
