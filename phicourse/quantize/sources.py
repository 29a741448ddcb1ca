"""What is quantized: a GGUF file, or a checkpoint as the GGUF file that it would become, in chunks of rows."""

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint import Checkpoint
from phicourse.convert.streaming import plan_conversion
from phicourse.errors import QuantizeError
from phicourse.gguf import GGUFFile, TensorInfo, Value

# Weights in a chunk: 8 MiB of float16, enough to keep many threads busy, little enough for any machine.
_CHUNK = 1 << 22

Chunks = Iterator[tuple[int, NDArray[Any]]]  # number of the first row, (rows, n_blocks) blocks


@dataclass(frozen=True)
class Source:
    """A model to quantize.

    path      for error messages
    inputs    all files that are read
    metadata  the pairs of the GGUF file; tensors: its tensors
    chunks    gives a tensor's rows, some at a time and in order
    """

    path: Path
    inputs: list[Path]
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]
    n_layers: int
    n_experts: int
    chunks: Callable[[TensorInfo], Chunks]


@contextmanager
def open_source(path: Path, via: str | None = None) -> Iterator[Source]:
    """Open a GGUF file or a checkpoint folder.

    via  "f16": a checkpoint's matrices are rounded to float16 on the way, as by llama.cpp's two tools;
         None: they are taken as they are
    """
    if via not in (None, "f16"):
        raise QuantizeError(f"a checkpoint cannot be quantized via {via!r:.40}, only via 'f16'")
    if path.is_dir():
        yield _from_checkpoint(Checkpoint.open(path), via)
        return
    if via is not None:
        raise QuantizeError(f"{path}: is a file already: only a checkpoint folder can go via f16")
    with GGUFFile.open(path) as file:
        yield _from_file(file)


def _from_file(file: GGUFFile) -> Source:
    architecture = file.get("general.architecture", str)
    return Source(
        path=file.path,
        inputs=file.paths,
        metadata=file.metadata,
        tensors=file.tensors,
        n_layers=file.get(f"{architecture}.block_count", int),
        n_experts=file.get(f"{architecture}.expert_count", int, 0),
        chunks=lambda tensor: _mapped_chunks(file, tensor),
    )


def _from_checkpoint(checkpoint: Checkpoint, via: str | None) -> Source:
    conversion = plan_conversion(checkpoint, via)
    by_name = {tensor.name: (tensor, type) for tensor, type in conversion.tensors}

    def chunks(tensor: TensorInfo) -> Chunks:
        first_row = 0
        for rows in conversion.chunks(*by_name[tensor.name]):
            yield first_row, rows
            first_row += len(rows)

    return Source(
        path=checkpoint.folder,
        inputs=checkpoint.inputs,
        metadata={key: Value(kind, value, element) for key, value, kind, element in conversion.pairs},
        tensors={
            tensor.name: TensorInfo(
                tensor.name, tensor.shape, type, 0, prod(tensor.shape[:-1]) * type.row_bytes(tensor.shape[-1])
            )
            for tensor, type in conversion.tensors
        },
        n_layers=checkpoint.config.n_layers,
        n_experts=checkpoint.config.n_experts,
        chunks=chunks,
    )


def _mapped_chunks(file: GGUFFile, tensor: TensorInfo) -> Chunks:
    blocks = file.blocks(tensor.name)
    step = max(1, _CHUNK // (tensor.shape[-1] if tensor.shape else 1))
    for start in range(0, len(blocks), step):
        chunk = blocks[start : start + step]
        offset = tensor.offset + start * blocks[0].nbytes
        _advise(chunk, offset + chunk.nbytes, "MADV_WILLNEED")
        yield start, chunk
        _advise(chunk, offset, "MADV_DONTNEED")


def _advise(chunk: NDArray[Any], offset: int, advice: str) -> None:
    """Tell the system what becomes of as many bytes as the chunk has, from `offset` of its file on.

    MADV_WILLNEED: they are read next, so the disk may begin. MADV_DONTNEED: they are not read again; the system
    could take their pages back anyway, but until then they count as memory of this process.
    """
    mapping: Any = chunk
    while isinstance(mapping, np.ndarray):
        mapping = mapping.base
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, advice):
        start, end = (
            min(at, len(mapping)) // mmap.PAGESIZE * mmap.PAGESIZE for at in (offset, offset + chunk.nbytes)
        )
        if end > start:
            mapping.madvise(getattr(mmap, advice), start, end - start)
