"""The importance matrix on its way to the quantizers: which tensor gets which numbers, and what the file says of it.

As llama-quantize uses it (ggml 0.25.3).
"""

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from phicourse.errors import QuantizeError
from phicourse.gguf import TensorInfo, Value, ValueType
from phicourse.quantize.blocks import Float32
from phicourse.quantize.importance import ImportanceMatrix

_MAX_TEXT = 127  # bytes that llama.cpp keeps of a text of its own


@dataclass(frozen=True)
class Weighting:
    """An importance matrix in use.

    file  where it came from, as the caller wrote it; may be empty
    """

    matrix: ImportanceMatrix
    file: str

    @classmethod
    def load(
        cls,
        imatrix: ImportanceMatrix | Path | str | None,
        include: Collection[str] = (),
        exclude: Collection[str] = (),
    ) -> "Weighting | None":
        """Read a matrix, unless it is there already, and keep the entries that the caller wants.

        include  a part of tensor names, or several: only tensors with one of them are kept; none: all
        exclude  the same: tensors with one of them are left out
        returns  None where there is no matrix, or nothing is left of it
        """
        if imatrix is None:
            return None
        if isinstance(imatrix, ImportanceMatrix):
            matrix, file = imatrix, str(imatrix.path or "")
        else:
            matrix, file = ImportanceMatrix.read(Path(imatrix)), os.fspath(imatrix)
        include, exclude = ((parts,) if isinstance(parts, str) else parts for parts in (include, exclude))
        kept = {
            name: squares
            for name, squares in matrix.squares.items()
            if not any(part in name for part in exclude)
            and (not include or any(part in name for part in include))
        }
        return cls(replace(matrix, squares=kept), file) if kept else None

    def check(self, tensors: Collection[str]) -> None:
        """Raise QuantizeError where no entry is of a tensor of the model."""
        entries = self.matrix.squares
        if entries.keys().isdisjoint(tensors):
            raise QuantizeError(
                f"{self.file or 'importance matrix'}: none of its {len(entries)} entries, as {next(iter(entries))}, "
                "is of a tensor of this model: it was measured with another model"
            )

    def of(self, tensor: TensorInfo) -> Float32 | None:
        """The importance of a tensor's columns: (n_matrices, n) float32, None where it was not measured.

        QuantizeError where there are other columns than the tensor has; those of the embedding are left alone.
        """
        return self.matrix.for_tensor(tensor.name, tensor.shape[-1], prod(tensor.shape[:-2]))

    def metadata(self) -> dict[str, Value]:
        """What the quantized file says of the matrix."""
        datasets, n_chunks = self.matrix.datasets, self.matrix.n_chunks
        pairs = {
            "file": _text(self.file) if self.file else None,
            "dataset": _text(datasets[0]) if datasets else None,
            "entries_count": Value(ValueType.UINT32, len(self.matrix.squares)),
            "chunks_count": Value(ValueType.UINT32, n_chunks) if n_chunks > 0 else None,
        }
        return {f"quantize.imatrix.{key}": value for key, value in pairs.items() if value is not None}


def _text(text: str) -> Value:
    """A text cut as llama.cpp cuts it, but between characters; bytes that are no UTF-8 become a replacement."""
    raw = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode()
    return Value(ValueType.STRING, raw[:_MAX_TEXT].decode("utf-8", "ignore"))
