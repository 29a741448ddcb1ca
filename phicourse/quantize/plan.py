"""What `quantize` is about to do, as a table: every tensor, its type before and after, its size."""

import html
from dataclasses import dataclass, field

from phicourse.gguf import TensorInfo, TensorType
from phicourse.quantize.blocks import Float32
from phicourse.quantize.mixes import Mix
from phicourse.quantize.rules import needs_importance

_COLUMNS = ("tensor", "shape", "from", "to", "MiB")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor, the type that it will have, and what its columns count.

    importance  (n_matrices, n) float32: a stack of experts has one matrix each, other tensors have one;
                None where it is not known
    """

    source: TensorInfo
    type: TensorType
    importance: Float32 | None = field(default=None, compare=False, repr=False)

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

    @property
    def blind(self) -> tuple[PlannedTensor, ...]:
        """The tensors that must not be quantized without importance, and have none."""
        return tuple(
            tensor
            for tensor in self.tensors
            if tensor.importance is None
            and tensor.type != tensor.source.type
            and needs_importance(tensor.source.name, tensor.type.name, self.mix.name)
        )

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return the table's cells: tensor, shape, type before, type after, MiB after."""
        return [tensor.row() for tensor in self.tensors]

    def total(self) -> str:
        """Return the sizes in a line."""
        return (
            f"{self.mix.name}: {_mib(self.source_bytes)} MiB -> {_mib(self.nbytes)} MiB, "
            f"{self.bits_per_weight:.2f} bits per weight"
        )

    def needs(self) -> str:
        """Return what is missing, in a line; nothing where nothing is."""
        if not self.blind:
            return ""
        first = self.blind[0]
        return (
            f"{self.mix.name} needs an importance matrix: {first.source.name} would be {first.type.name}, too few "
            "bits to round without one; `phicourse imatrix MODEL -f TEXT -o F` makes it, --imatrix F uses it"
        )

    def __str__(self) -> str:
        table = [_COLUMNS, *self.rows()]
        name, shape, *types = (max(len(row[i]) for row in table) for i in range(4))
        lines = [
            f"{a:<{name}}  {b:>{shape}}  {c:<{types[0]}}  {d:<{types[1]}}  {e:>10}" for a, b, c, d, e in table
        ]
        return "\n".join((*lines, self.total(), self.needs())).rstrip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        top = "".join(f"<th>{title}</th>" for title in _COLUMNS)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        above = html.escape(f"{self.total()}. {self.needs()}".strip())
        return f"<p>{above}</p><table><tr>{top}</tr>{body}</table>"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.2f}"
