"""What an importance matrix says about a model: how unequal the columns of each weight are, layer by layer.

The numbers are those of `llama-imatrix --show-statistics`, in float64 where it adds up in float32.
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.quantize.importance import Float32Array, ImportanceMatrix

_ACTIVE = 1e-5  # a column whose mean square is not above this is called inactive
_NAME = re.compile(r"(?:blk\.(\d{1,9})\.)?(.+?)(?:\.weight)?", re.DOTALL)
_COLUMNS = (
    "layer", "tensor", "Σ x²", "min", "max", "mean", "std", "active", "n", "entropy", "of max", "above", "cosine",
)  # fmt: skip


@dataclass(frozen=True)
class TensorStatistics:
    """The importance of one tensor's columns, in numbers; experts that no token met are left out.

    layer               None for a tensor outside the layers
    tensor              its name without layer and `weight`: attn_qkv
    total               sum of the mean squares; minimum, maximum, mean, std (of all, not of a sample) of them
    active              part of the columns above 1e-5
    columns             how many there are, of all matrices
    entropy             of the mean squares divided by their total, in bits; its maximum is log2(columns)
    normalized_entropy  entropy / log2(columns): 1 where all columns matter equally, towards 0 where few do
    above_deviation     part of the columns more than one standard deviation above the mean ("ZD")
    cosine              similarity with the same tensor one layer before; None where there is none
    """

    layer: int | None
    tensor: str
    total: float
    minimum: float
    maximum: float
    mean: float
    std: float
    active: float
    columns: int
    entropy: float
    normalized_entropy: float
    above_deviation: float
    cosine: float | None

    @classmethod
    def of(
        cls, name: str, means: NDArray[np.floating[Any]], cosine: float | None = None
    ) -> "TensorStatistics":
        """Compute them from mean squares of any shape."""
        layer, tensor = split_name(name)
        x = means.astype(np.float64).reshape(-1)
        parts = x[x > 0] / x.sum()
        entropy = float(-(parts * np.log2(parts)).sum())
        return cls(
            layer=layer,
            tensor=tensor,
            total=float(x.sum()),
            minimum=float(x.min()),
            maximum=float(x.max()),
            mean=float(x.mean()),
            std=float(x.std()),
            active=float((x > _ACTIVE).mean()),
            columns=x.size,
            entropy=entropy,
            normalized_entropy=entropy / float(np.log2(x.size)) if x.size > 1 else 0.0,
            above_deviation=float((x > x.mean() + x.std()).mean()),
            cosine=cosine,
        )

    def row(self) -> tuple[str, ...]:
        """Its cells in the table."""
        return (
            "-" if self.layer is None else str(self.layer),
            self.tensor,
            f"{self.total:.2f}",
            f"{self.minimum:.4f}",
            f"{self.maximum:.4f}",
            f"{self.mean:.2f}",
            f"{self.std:.2f}",
            f"{self.active:.2%}",
            str(self.columns),
            f"{self.entropy:.4f}",
            f"{self.normalized_entropy:.2%}",
            f"{self.above_deviation:.2%}",
            "-" if self.cosine is None else f"{self.cosine:.4f}",
        )


@dataclass(frozen=True)
class LayerStatistics:
    """Means over the tensors of a layer, each as often as it has columns; `cosine` as of the tensors."""

    layer: int
    total: float
    above_deviation: float
    cosine: float | None

    @classmethod
    def of(cls, layer: int, tensors: Sequence[TensorStatistics]) -> "LayerStatistics":
        """Average over the tensors of one layer."""
        known = [(tensor.cosine, tensor.columns) for tensor in tensors if tensor.cosine is not None]
        return cls(
            layer=layer,
            total=_mean((tensor.total, tensor.columns) for tensor in tensors),
            above_deviation=_mean((tensor.above_deviation, tensor.columns) for tensor in tensors),
            cosine=_mean(known) if known else None,
        )


@dataclass(frozen=True)
class ImportanceStatistics:
    """The statistics of a whole matrix; prints as a table."""

    matrix: ImportanceMatrix
    tensors: tuple[TensorStatistics, ...]
    layers: tuple[LayerStatistics, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "path": None if self.matrix.path is None else str(self.matrix.path),
            "datasets": list(self.matrix.datasets),
            "chunks": self.matrix.n_chunks,
            "chunk_size": self.matrix.chunk_size or None,
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        table = [_COLUMNS, *(tensor.row() for tensor in self.tensors)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = (
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table
        )
        return "\n".join((*lines, str(self.matrix)))

    def _repr_html_(self) -> str:
        top = "".join(f"<th>{title}</th>" for title in _COLUMNS)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in tensor.row()) for tensor in self.tensors)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<p>{html.escape(str(self.matrix))}</p><table><tr>{top}</tr>{body}</table>"


def importance_statistics(matrix: ImportanceMatrix) -> ImportanceStatistics:
    """Compute the statistics: tensors of a kind together, the one with the largest total first."""
    tensors = [
        TensorStatistics.of(name, squares.mean[squares.counts > 0], _cosine(matrix, name))
        for name, squares in matrix.squares.items()
        if squares.counts.any()
    ]
    tensors.sort(key=lambda tensor: (tensor.tensor, -tensor.total))
    layers = sorted({tensor.layer for tensor in tensors if tensor.layer is not None})
    return ImportanceStatistics(
        matrix,
        tuple(tensors),
        tuple(LayerStatistics.of(layer, [t for t in tensors if t.layer == layer]) for layer in layers),
    )


def split_name(name: str) -> tuple[int | None, str]:
    """The layer and the kind of a tensor: (3, "attn_qkv") for blk.3.attn_qkv.weight."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None, name
    return None if parts[1] is None else int(parts[1]), parts[2]


def importance_by_layer(matrix: ImportanceMatrix) -> dict[str, Float32Array]:
    """For a picture: kind of tensor -> (layers, columns) float32, the mean over the experts.

    Layers that have the kind in another size than the first, or not at all, are NaN.
    """
    found = {split_name(name): entry.mean(axis=0) for name, entry in matrix.entries.items()}
    layers = sorted({layer for layer, _ in found if layer is not None})
    kinds: dict[str, Float32Array] = {}
    for (layer, kind), row in sorted(found.items(), key=lambda item: (item[0][1], item[0][0] or 0)):
        n_rows, index = (1, 0) if layer is None else (len(layers), layers.index(layer))
        image = kinds.setdefault(kind, np.full((n_rows, row.size), np.nan, np.float32))
        if image.shape == (n_rows, row.size):
            image[index] = row
    return kinds


def _mean(pairs: Iterable[tuple[float, int]]) -> float:
    """The mean of the first numbers, weighted with the second."""
    values, weights = zip(*pairs, strict=True)
    return float(np.average(values, weights=weights))


def _cosine(matrix: ImportanceMatrix, name: str) -> float | None:
    """Cosine of the angle between a tensor's sums and those of the layer before."""
    layer, _ = split_name(name)
    if not layer:
        return None
    before = matrix.squares.get(name.replace(f"blk.{layer}.", f"blk.{layer - 1}.", 1))
    x = matrix.squares[name].sums.astype(np.float64).reshape(-1)
    if before is None or before.sums.size != x.size:
        return None
    y = before.sums.astype(np.float64).reshape(-1)
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / lengths if lengths else None
