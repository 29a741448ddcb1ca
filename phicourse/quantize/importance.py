"""The importance matrix: how much each column of a weight counts, measured on text.

In y = W·x an error in column j of W is multiplied by x[j]. Its weight in the squared error of y, over many
tokens, is therefore the mean of x[j]². That mean is the column's importance; all rows share it. The experts of
a mixture see different tokens, so each of them has its own sums and its own count.

Two file formats hold it, both llama.cpp's: a GGUF file of sums and counts, and the older .dat of scaled means.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GGUFError, QuantizeError
from phicourse.gguf import GGUFFile, GGUFWriter, ValueType, atomic_output

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]

FORMATS = ("gguf", "dat")
DEFAULT_CHUNK_SIZE = 512
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_INT32 = (1 << 31) - 1
_EMBEDDING = "token_embd.weight"


@dataclass(frozen=True, eq=False)
class Squares:
    """What was summed up for one tensor.

    sums    (n_matrices, columns) float32, squares of the numbers that met each column
    counts  (n_matrices,) int64, how many tokens that were
    """

    sums: Float32Array
    counts: Int64Array

    @classmethod
    def of(cls, sums: NDArray[Any], counts: NDArray[Any], where: str) -> Self:
        """Check numbers from outside: any shape, as many sums for each count. QuantizeError begins with `where`."""
        counts = np.asarray(counts).reshape(-1)
        with np.errstate(over="ignore"):
            sums = np.asarray(sums, np.float32)
        if not counts.size or not sums.size or sums.size % counts.size:
            raise QuantizeError(f"{where}: {sums.size:,} sums cannot belong to {counts.size:,} counts")
        if not (np.isfinite(sums).all() and np.isfinite(counts).all()):
            raise QuantizeError(f"{where}: has infinite or undefined numbers; gather it again")
        if sums.min() < 0 or counts.min() < 0:
            raise QuantizeError(f"{where}: has negative numbers, which sums of squares cannot have")
        if counts.max() > _MAX_INT32:
            raise QuantizeError(f"{where}: says that it has seen {counts.max():,.0f} tokens")
        rounded = np.floor(np.asarray(counts, np.float64) + 0.5).astype(np.int64)
        return cls(sums.reshape(counts.size, -1), rounded)

    @cached_property
    def mean(self) -> Float32Array:
        """Mean squares (n_matrices, columns); 1 for a matrix that no token has met. In float32, as llama.cpp."""
        counts = self.counts.astype(np.float32)[:, None]  # (n_matrices, 1)
        means: Float32Array = np.where(counts > 0, self.sums / np.maximum(counts, 1), np.float32(1))
        return means

    def __add__(self, other: "Squares") -> "Squares":
        """Both together. One count for several matrices stands for each of them."""
        n = max(len(self.counts), len(other.counts))
        if self.sums.size != other.sums.size or min(len(self.counts), len(other.counts)) not in (1, n):
            raise ValueError(f"{self.sums.shape} and {other.sums.shape} cannot be added")
        with np.errstate(over="ignore"):  # the caller checks
            sums = self.sums.reshape(n, -1) + other.sums.reshape(n, -1)
        return Squares(sums, np.broadcast_to(self.counts, n) + np.broadcast_to(other.counts, n))


@dataclass(frozen=True, eq=False)
class ImportanceMatrix:
    """The importance of all columns of a model's weights.

    path        the file that it was read from; None for one made here
    datasets    names of the texts that it was measured on
    n_chunks    how many chunks of text that were
    chunk_size  tokens of a chunk; 0 where it is not known, as in .dat files, which count in chunks
    squares     tensor name -> what was summed up
    """

    path: Path | None
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int
    squares: Mapping[str, Squares] = field(repr=False)

    @cached_property
    def entries(self) -> dict[str, Float32Array]:
        """Tensor name -> mean squares (n_matrices, columns) float32, the numbers that llama-quantize computes.

        Of a .dat file the experts of a tensor are not known: they come as one row. Use `for_tensor`.
        """
        return {name: squares.mean for name, squares in self.squares.items()}

    def for_tensor(self, name: str, columns: int, n_matrices: int = 1) -> Float32Array | None:
        """The importance of a tensor's columns, (n_matrices, columns) float32; None where it is not known.

        Raises QuantizeError where it is of another size: it was measured with another model.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if entry.size == columns * n_matrices:
            return entry.reshape(n_matrices, columns)
        if (
            name == _EMBEDDING
        ):  # an output weight that shares its numbers with the embedding has another importance
            return None
        raise QuantizeError(
            f"{self.path or 'importance matrix'}: {name} has {entry.size:,} columns, this model "
            f"{columns * n_matrices:,}: it was measured with another model"
        )

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a file of either format.

        Raises QuantizeError, or GGUFError where the GGUF container itself is broken.
        """
        path = Path(path)
        if not path.is_file():
            raise QuantizeError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        matrix = cls._read_gguf(path) if is_gguf else cls._read_dat(path)
        if not matrix.squares:
            raise QuantizeError(f"{path}: is no importance matrix, or an empty one")
        return matrix

    @classmethod
    def _read_gguf(cls, path: Path) -> Self:
        """Read pairs of tensors NAME.in_sum2 (n_matrices, columns) and NAME.counts (n_matrices, 1)."""
        file = GGUFFile.open(path)
        try:
            datasets = file.get("imatrix.datasets", list)
            n_chunks = file.get("imatrix.chunk_count", int)
            chunk_size = file.get("imatrix.chunk_size", int)
        except GGUFError as error:
            raise QuantizeError(f"{error}: this is no importance matrix (phicourse imatrix)") from None
        if not (0 <= n_chunks <= _MAX_INT32 and 0 < chunk_size <= _MAX_INT32):
            raise QuantizeError(f"{path}: {n_chunks:,} chunks of {chunk_size:,} tokens are not possible")
        names = {name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in file.tensors}
        squares = {name: _read_pair(file, name) for name in sorted(names)}
        return cls(path, tuple(datasets), n_chunks, chunk_size, squares)

    @classmethod
    def _read_dat(cls, path: Path) -> Self:
        """Read the older format: of each tensor the mean squares times the number of chunks, in one row."""
        file = _DatFile(path)
        squares: dict[str, Squares] = {}
        for i in range(file.number("the number of tensors")):
            name = file.text(file.number(f"the length of name {i}"), f"name {i}")
            n_chunks = file.number(f"the chunks of {name}")
            sums = file.floats(file.number(f"the columns of {name}"), name)
            if name in squares:
                raise QuantizeError(f"{path}: {name} is there twice")
            # 0 chunks: the numbers are the means themselves
            squares[name] = Squares.of(sums, np.array([n_chunks or 1]), f"{path}: {name}")
        n_chunks = 0 if file.at_end else file.number("the number of chunks")
        length = 0 if file.at_end else file.number("the length of the dataset's name")
        datasets = (file.text(length, "the dataset's name"),) if length else ()
        if not file.at_end:
            raise QuantizeError(f"{path}: is no importance matrix, or bytes were added at its end")
        return cls(path, datasets, n_chunks, 0, squares)

    @classmethod
    def merge(cls, *matrices: "ImportanceMatrix", chunk_size: int | None = None) -> Self:
        """Add up matrices of the same model, as if all their texts had been read in one go.

        chunk_size  of the result, and of matrices that do not know theirs; None: the first that is known
        raises      QuantizeError where they are of different models
        """
        known = (matrix.chunk_size for matrix in matrices if matrix.chunk_size)
        size = chunk_size or next(known, DEFAULT_CHUNK_SIZE)
        total: dict[str, Squares] = {}
        for matrix in matrices:
            for name, squares in matrix.in_tokens(size).squares.items():
                total[name] = _add(total.get(name), squares, f"{matrix.path}: {name}")
        most = max((int(squares.counts.max()) for squares in total.values()), default=0)
        datasets = tuple(dataset for matrix in matrices for dataset in matrix.datasets)
        return cls(None, datasets, most // size, size, total)

    def in_tokens(self, chunk_size: int) -> "ImportanceMatrix":
        """The same, counted in tokens: what a .dat file has of a chunk is taken for `chunk_size` tokens."""
        if self.chunk_size:
            return self
        with np.errstate(over="ignore"):
            squares = {
                name: Squares.of(
                    s.sums * np.float32(chunk_size), s.counts * chunk_size, f"{self.path}: {name}"
                )
                for name, s in self.squares.items()
            }
        return replace(self, chunk_size=chunk_size, squares=squares)

    def write(
        self, path: Path | str, format: str = "gguf", *, force: bool = False, inputs: Iterable[Path] = ()
    ) -> Path:
        """Write a file that llama-quantize reads; it appears whole or not at all.

        format  "gguf", or "dat" for tools of before 2025, which keeps no tensor that no token has met
        force   replace a file that is there, unless it is one of the `inputs`
        raises  QuantizeError for another format, GGUFError where the file cannot be written
        """
        if format not in FORMATS:
            raise QuantizeError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
        matrix = self.in_tokens(DEFAULT_CHUNK_SIZE)
        if format == "gguf":
            matrix._write_gguf(Path(path), force, inputs)
        else:
            with atomic_output(path, force, inputs) as temporary:
                temporary.write_bytes(matrix._dat_bytes())
        return Path(path)

    def _write_gguf(self, path: Path, force: bool, inputs: Iterable[Path]) -> None:
        arrays: dict[str, NDArray[Any]] = {}
        for name, squares in sorted(self.squares.items()):
            arrays[name + _SUMS] = squares.sums
            arrays[name + _COUNTS] = squares.counts[:, None].astype(np.float32)
        with GGUFWriter(path, force, inputs) as writer:
            writer.add("general.type", "imatrix", ValueType.STRING)
            writer.add("imatrix.datasets", list(self.datasets), ValueType.ARRAY, ValueType.STRING)
            writer.add("imatrix.chunk_count", self.n_chunks, ValueType.UINT32)
            writer.add("imatrix.chunk_size", self.chunk_size, ValueType.UINT32)
            for name, array in arrays.items():
                # ggml stores no outer dimension of 1
                writer.declare(name, array.shape if len(array) > 1 else array.shape[1:], "F32")
            for name, array in arrays.items():
                writer.write(name, array)

    def _dat_bytes(self) -> bytes:
        kept = [(name, s) for name, s in sorted(self.squares.items()) if s.counts.any()]
        parts = [struct.pack("<i", len(kept))]
        for name, squares in kept:
            n_chunks = -(-int(squares.counts.max()) // self.chunk_size)  # rounded up: never 0
            values = squares.mean * np.float32(n_chunks)
            parts += [_dat_string(name), struct.pack("<ii", n_chunks, values.size), values.tobytes()]
        dataset = self.datasets[-1] if self.datasets else ""  # the format has room for one
        return b"".join((*parts, struct.pack("<i", self.n_chunks), _dat_string(dataset)))

    def __str__(self) -> str:
        of = f" of {self.chunk_size:,} tokens" if self.chunk_size else ""
        return f"importance of {len(self.squares)} tensors, measured on {self.n_chunks:,} chunks{of}"


def _read_pair(file: GGUFFile, name: str) -> Squares:
    """Read the sums and counts of one tensor."""
    pair = []
    for part in (name + _SUMS, name + _COUNTS):
        if part not in file.tensors:
            raise QuantizeError(
                f"{file.path}: {part} is missing; this is no importance matrix, or half of one"
            )
        if (type := file.tensor(part).type.name) != "F32":
            raise QuantizeError(f"{file.path}: {part} is {type}, it must be F32")
        pair.append(file.blocks(part).reshape(-1))
    return Squares.of(pair[0], pair[1], f"{file.path}: {name}")


def _add(total: Squares | None, more: Squares, where: str) -> Squares:
    """Add the sums of one more file."""
    if total is None:
        return more
    try:
        both = total + more
    except ValueError as error:
        raise QuantizeError(f"{where}: belongs to another model than the matrix before ({error})") from None
    return Squares.of(both.sums, both.counts, where)


def _dat_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<i", len(raw)) + raw


class _DatFile:
    """The bytes of a .dat file, and a position that cannot leave them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.at = 0

    @property
    def at_end(self) -> bool:
        return self.at == len(self.data)

    def take(self, n_bytes: int, what: str) -> bytes:
        """Return the next n bytes and step over them."""
        if not 0 <= n_bytes <= (left := len(self.data) - self.at):
            raise QuantizeError(
                f"{self.path}: is no importance matrix, or incomplete: "
                f"byte {self.at:,}: {what} needs {n_bytes:,} bytes, {left:,} are left"
            )
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def number(self, what: str) -> int:
        """Read a little-endian int32; all that this format has are counts."""
        at, number = self.at, int(struct.unpack("<i", self.take(4, what))[0])
        if number < 0:
            raise QuantizeError(f"{self.path}: is no importance matrix: byte {at:,}: {what} is {number:,}")
        return number

    def text(self, n_bytes: int, what: str) -> str:
        """Read UTF-8."""
        try:
            return self.take(n_bytes, what).decode()
        except UnicodeDecodeError:
            raise QuantizeError(f"{self.path}: is no importance matrix: {what} is not UTF-8") from None

    def floats(self, n: int, what: str) -> Float32Array:
        """Read n float32."""
        return np.frombuffer(self.take(4 * n, f"{n:,} numbers of {what}"), np.float32)
