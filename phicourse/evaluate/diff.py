"""`phicourse diff`: what differs between two GGUF files: keys, tensors, types, bytes, and by how much the weights.

Both files are read once, a chunk of rows at a time; a split set counts as one file.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from phicourse.errors import GGUFError
from phicourse.gguf import GGUFFile, TensorInfo, Value
from phicourse.gguf.describe import WIDTH, bits_per_weight, printable
from phicourse.gguf.describe import _plain as plain
from phicourse.progress_bar import byte_bar
from phicourse.quantize.registry import DEQUANTIZERS, dequantize_rows

CHUNK = 1 << 20  # weights at once
SHOWN = 8  # elements of an array that are shown


@dataclass(frozen=True)
class ChangedKey:
    """A key that both files have, with different values."""

    key: str
    a: Value
    b: Value

    def as_dict(self) -> dict[str, Any]:
        """The fields of `--json`; of arrays the elements around the first that differs."""
        at = first_difference(self.a, self.b)
        return {"key": self.key, "a": value_summary(self.a, at), "b": value_summary(self.b, at)}


@dataclass(frozen=True)
class WeightError:
    """How far the weights of b are from those of a; NaN where one of them is not finite.

    rmse     root of the mean squared difference
    size     root of the mean square of a
    max_abs  the largest difference
    """

    n: int
    rmse: float
    size: float
    max_abs: float

    @property
    def relative_rmse(self) -> float:
        """The error as a part of the weights' size; infinite where a is all zero and b is not."""
        if self.size == 0 and not math.isnan(self.rmse):
            return 0.0 if self.rmse == 0 else math.inf
        return self.rmse / self.size


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that both files have, in different shape, type or bytes; `error` where the values compare."""

    a: TensorInfo
    b: TensorInfo
    error: WeightError | None

    @property
    def types(self) -> str:
        """Both types, or the one that both have."""
        a, b = self.a.type.name, self.b.type.name
        return a if a == b else f"{a} -> {b}"

    def as_dict(self) -> dict[str, Any]:
        """The fields of `--json`; null where a number cannot be told."""
        error = self.error
        return {
            "name": self.a.name,
            "shape_a": list(self.a.shape),
            "shape_b": list(self.b.shape),
            "type_a": self.a.type.name,
            "type_b": self.b.type.name,
            "relative_rmse": None if error is None else finite(error.relative_rmse),
            "max_abs": None if error is None else finite(error.max_abs),
        }


@dataclass(frozen=True)
class Difference:
    """What differs between two files, a and b."""

    a: GGUFFile
    b: GGUFFile
    changed_keys: list[ChangedKey]
    changed_tensors: list[TensorDifference]

    @property
    def keys_only_a(self) -> list[str]:
        """Keys that b lacks."""
        return [key for key in self.a.metadata if key not in self.b.metadata]

    @property
    def keys_only_b(self) -> list[str]:
        """Keys that a lacks."""
        return [key for key in self.b.metadata if key not in self.a.metadata]

    @property
    def tensors_only_a(self) -> list[TensorInfo]:
        """Tensors that b lacks."""
        return [tensor for name, tensor in self.a.tensors.items() if name not in self.b.tensors]

    @property
    def tensors_only_b(self) -> list[TensorInfo]:
        """Tensors that a lacks."""
        return [tensor for name, tensor in self.b.tensors.items() if name not in self.a.tensors]

    @property
    def in_order(self) -> bool:
        """Whether what both have comes in the same order, keys and tensors."""
        return same_order(self.a.metadata, self.b.metadata) and same_order(self.a.tensors, self.b.tensors)

    @property
    def areas(self) -> list[str]:
        """What differs, in words; empty when the files are equal."""
        pairs = [(change.a, change.b) for change in self.changed_tensors]
        same_type = [(a, b) for a, b in pairs if a.type == b.type and a.shape == b.shape]
        headers = [(file.version, file.alignment, file.n_shards) for file in (self.a, self.b)]
        found = {
            "keys": self.changed_keys or self.keys_only_a or self.keys_only_b,
            "tensors": self.tensors_only_a or self.tensors_only_b,
            "shapes": any(a.shape != b.shape for a, b in pairs),
            "types": any(a.type != b.type for a, b in pairs),
            "bytes": same_type,
            "order": not self.in_order,
            "version, alignment or number of files": headers[0] != headers[1],
        }
        return [area for area, differs in found.items() if differs]

    @property
    def verdict(self) -> str:
        """The last line: equal, or where not."""
        if self.areas:
            return f"the files differ in {', '.join(self.areas)}"
        return "the files are equal: the same keys, tensors and bytes, in the same order"

    def as_dict(self) -> dict[str, Any]:
        """The document of `phicourse diff --json`."""
        return {
            "a": str(self.a.path),
            "b": str(self.b.path),
            "equal": not self.areas,
            "differs_in": self.areas,
            "keys": {
                "same": len(self.a.metadata) - len(self.keys_only_a) - len(self.changed_keys),
                "only_a": self.keys_only_a,
                "only_b": self.keys_only_b,
                "changed": [change.as_dict() for change in self.changed_keys],
            },
            "tensors": {
                "same": len(self.a.tensors) - len(self.tensors_only_a) - len(self.changed_tensors),
                "only_a": [tensor_summary(tensor) for tensor in self.tensors_only_a],
                "only_b": [tensor_summary(tensor) for tensor in self.tensors_only_b],
                "changed": [change.as_dict() for change in self.changed_tensors],
                "by_type": by_type(self.changed_tensors),
            },
        }

    def __str__(self) -> str:
        return "\n\n".join(
            part for part in (headline(self), key_table(self), tensor_table(self), self.verdict) if part
        )


def diff(a: Path | str | GGUFFile, b: Path | str | GGUFFile, *, progress: bool = True) -> Difference:
    """Compare two GGUF files; errors are those of b's weights, measured against a's.

    progress  draw a bar on standard error after a second, where that is a terminal
    raises    GGUFError where a file is broken
    """
    a, b = (file if isinstance(file, GGUFFile) else GGUFFile.open(file) for file in (a, b))
    keys = [
        ChangedKey(key, value, b.metadata[key])
        for key, value in a.metadata.items()
        if key in b.metadata and not same_value(value, b.metadata[key])
    ]
    common = [(tensor, b.tensors[name]) for name, tensor in a.tensors.items() if name in b.tensors]
    with byte_bar(sum(tensor.nbytes for tensor, _ in common), progress) as bar:
        compared = [compare_tensor(a, b, *pair, bar) for pair in common]
    return Difference(a, b, keys, [tensor for tensor in compared if tensor is not None])


# ---- keys ------------------------------------------------------------------------------------------------


def same_value(a: Value, b: Value) -> bool:
    """Whether two values have the same type and bits; a NaN equals itself."""
    if (a.type, a.element) != (b.type, b.element):
        return False
    if isinstance(a.value, np.ndarray):
        return bool(a.value.tobytes() == b.value.tobytes())
    if isinstance(a.value, float):
        return np.float64(a.value).tobytes() == np.float64(b.value).tobytes()
    return bool(a.value == b.value)


def first_difference(a: Value, b: Value) -> int:
    """Where two arrays begin to differ; 0 for what are no two arrays."""
    if a.element is None or b.element is None:
        return 0
    n = min(len(a.value), len(b.value))
    if isinstance(a.value, np.ndarray) and isinstance(b.value, np.ndarray):
        unequal = np.flatnonzero(a.value[:n] != b.value[:n])
        return int(unequal[0]) if unequal.size else n
    return next((i for i in range(n) if a.value[i] != b.value[i]), n)


def value_summary(value: Value, at: int) -> dict[str, Any]:
    """Type and value; of an array the length and the elements from `at` on."""
    if value.element is None:
        return {"type": value.type_name, "value": plain(value.value)}
    elements = [plain(element) for element in value.value[at : at + SHOWN]]
    return {"type": value.type_name, "length": len(value.value), "from": at, "value": elements}


def same_order(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether the names that both have come in the same order."""
    return [name for name in a if name in b] == [name for name in b if name in a]


# ---- tensors ---------------------------------------------------------------------------------------------


def compare_tensor(
    a: GGUFFile, b: GGUFFile, of_a: TensorInfo, of_b: TensorInfo, bar: "tqdm[Any]"
) -> TensorDifference | None:
    """Compare a tensor of both files; None where shape, type and bytes are the same."""
    bar.set_description(printable(of_a.name, 40), refresh=False)
    if of_a.shape != of_b.shape:
        bar.update(of_a.nbytes)
        return TensorDifference(of_a, of_b, None)
    same = of_a.type == of_b.type
    can_compare = readable(of_a) and readable(of_b)
    total = Sums()
    for chunk_a, chunk_b in chunks(a, b, of_a, of_b):
        equal = of_a.type == of_b.type and np.array_equal(chunk_a, chunk_b)
        same = same and equal
        if can_compare:
            x = widen(chunk_a, of_a)
            total.add(x, x if equal else widen(chunk_b, of_b))
        bar.update(chunk_a.nbytes)
    if same:
        return None
    return TensorDifference(of_a, of_b, total.error() if can_compare else None)


class Sums:
    """Adds up the error of weights that come in chunks, in float64."""

    def __init__(self) -> None:
        self.n = 0
        self.squares = 0.0  # of the weights of a
        self.squared_error = 0.0
        self.max_abs = 0.0

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Take in weights of a and b, of the same shape."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(x - y)
            self.n += x.size
            self.squares += float(np.square(x).sum())
            self.squared_error += float(np.square(error).sum())
            self.max_abs = float(np.maximum(self.max_abs, error.max(initial=0.0)))  # keeps a NaN

    def error(self) -> WeightError:
        """The error over all that came."""
        n = max(self.n, 1)
        return WeightError(
            self.n, math.sqrt(self.squared_error / n), math.sqrt(self.squares / n), self.max_abs
        )


def readable(tensor: TensorInfo) -> bool:
    """Whether the values of a tensor can be read: types that we dequantize, and plain numbers."""
    return tensor.type.name in DEQUANTIZERS or tensor.type.dtype.kind in "if"


def widen(rows: NDArray[np.uint8], tensor: TensorInfo) -> NDArray[Any]:
    """Return the values of some rows: (rows, bytes of a row) uint8 -> (rows, n)."""
    if tensor.type.name in DEQUANTIZERS:
        return dequantize_rows(rows, tensor.type.name)
    return rows.view(tensor.type.dtype)


def chunks(
    a: GGUFFile, b: GGUFFile, of_a: TensorInfo, of_b: TensorInfo
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield the same rows of a tensor of both files, about a million weights at a time."""
    step = max(1, CHUNK // (of_a.shape[-1] if of_a.shape else 1))
    for start in range(0, of_a.rows, step):
        end = min(start + step, of_a.rows)
        yield read_rows(a, of_a, start, end), read_rows(b, of_b, start, end)


def read_rows(file: GGUFFile, tensor: TensorInfo, start: int, end: int) -> NDArray[np.uint8]:
    """Read some rows: (end - start, bytes of a row) uint8. Read, not mapped: pages of a map count as memory."""
    row_bytes = tensor.nbytes // tensor.rows
    at, n_bytes = tensor.offset + start * row_bytes, (end - start) * row_bytes
    raw = np.fromfile(file.paths[tensor.shard], np.uint8, n_bytes, offset=at)
    if raw.size != n_bytes:
        raise GGUFError(f"{file.path}: has become shorter while it was read")
    return raw.reshape(end - start, row_bytes)


def tensor_summary(tensor: TensorInfo) -> dict[str, Any]:
    """What a tensor is, for `--json`."""
    return {
        "name": tensor.name,
        "type": tensor.type.name,
        "shape": list(tensor.shape),
        "bytes": tensor.nbytes,
    }


def by_type(changes: list[TensorDifference]) -> list[dict[str, Any]]:
    """Add up the tensors that went from one type to another: how many, and the error over all their weights."""
    groups: dict[str, list[TensorDifference]] = {}
    for change in changes:
        groups.setdefault(change.types, []).append(change)
    return [{"types": types, "tensors": len(group), **total_error(group)} for types, group in groups.items()]


def total_error(changes: list[TensorDifference]) -> dict[str, Any]:
    """The error over all weights of several tensors, of those whose values compare."""
    errors = [change.error for change in changes if change.error is not None]
    if not errors:
        return {"relative_rmse": None, "max_abs": None}
    n = max(sum(error.n for error in errors), 1)
    rmse, size = (
        math.sqrt(sum(error.n * square**2 for error, square in zip(errors, squares, strict=True)) / n)
        for squares in ([error.rmse for error in errors], [error.size for error in errors])
    )
    total = WeightError(n, rmse, size, float(np.max([error.max_abs for error in errors])))
    return {"relative_rmse": finite(total.relative_rmse), "max_abs": finite(total.max_abs)}


def finite(number: float) -> float | None:
    """A number for JSON, which has no NaN and no infinity."""
    return number if math.isfinite(number) else None


# ---- text ------------------------------------------------------------------------------------------------


def headline(difference: Difference) -> str:
    """Which file is a and which b."""
    lines = []
    for letter, file in (("a", difference.a), ("b", difference.b)):
        about = f"{file.size:,} bytes, {bits_per_weight(file.tensors.values()):.4g} bits per weight"
        path, room = printable(str(file.path)), WIDTH - 5 - len(about)
        lines.append(f"{letter}  {path if len(path) <= room else '…' + path[1 - room :]}  {about}")
    return "\n".join(lines)


def key_table(difference: Difference) -> str:
    """The keys that differ: - only in a, + only in b, ~ changed."""
    lines = []
    for change in difference.changed_keys:
        entry = change.as_dict()
        lines.append(printable(f"~ {change.key}", WIDTH))
        lines += [f"    {letter}  {short(entry[letter], WIDTH - 7)}" for letter in "ab"]
    for sign, keys, file in (
        ("-", difference.keys_only_a, difference.a),
        ("+", difference.keys_only_b, difference.b),
    ):
        for key in keys:
            start = f"{sign} {printable(key, 50)}  "
            lines.append(start + short(value_summary(file.metadata[key], 0), WIDTH - len(start)))
    if not lines:
        return ""
    same = len(difference.a.metadata) - len(difference.keys_only_a) - len(difference.changed_keys)
    return "\n".join(
        [
            f"keys: {same:,} the same, {len(difference.changed_keys):,} changed (~), "
            f"{len(difference.keys_only_a):,} only in a (-), {len(difference.keys_only_b):,} only in b (+)",
            *lines,
        ]
    )


def short(summary: dict[str, Any], width: int) -> str:
    """A value on one line of at most `width` characters, with its type."""
    if "length" not in summary:
        shown = str(summary["value"])[: 4 * width]
    else:
        elements = ", ".join(str(element)[:width] for element in summary["value"])
        shown = f"{summary['length']:,}, from {summary['from']:,}: {elements}"
    return printable(f"{summary['type'].lower()} {shown}", width)


def tensor_table(difference: Difference) -> str:
    """The tensors that differ, and the error of each pair of types."""
    changes = difference.changed_tensors
    only = [("-", tensor) for tensor in difference.tensors_only_a]
    only += [("+", tensor) for tensor in difference.tensors_only_b]
    if not changes and not only:
        return ""
    same = len(difference.a.tensors) - len(difference.tensors_only_a) - len(changes)
    lines = [
        f"tensors: {same:,} the same, {len(changes):,} changed (~), "
        f"{len(difference.tensors_only_a):,} only in a (-), {len(difference.tensors_only_b):,} only in b (+)"
    ]
    if changes:
        lines.append(row("", "", "types", "relative RMSE", "largest"))
    lines += [row("~", change.a.name, *cells(change)) for change in changes]
    for sign, tensor in only:
        lines.append(row(sign, tensor.name, tensor.type.name, "×".join(map(str, tensor.shape)), ""))
    if changes:
        lines += ["", row("", "all of a type", "", "", "")]
        lines += [
            row(
                "",
                f"{group['tensors']:,} tensors",
                group["types"],
                number(group["relative_rmse"]),
                number(group["max_abs"]),
            )
            for group in by_type(changes)
        ]
    return "\n".join(line.rstrip() for line in lines)


def row(sign: str, name: str, types: str, error: str, largest: str) -> str:
    """One line of the tensor table, at most 80 columns."""
    return f"{sign:<1} {printable(name, 32):<32} {types:<18} {error:>14} {largest:>10}"


def cells(change: TensorDifference) -> tuple[str, str, str]:
    """Types and error of a tensor; shapes in place of the error where they differ."""
    if change.a.shape != change.b.shape:
        return change.types, "shape differs", ""
    if change.error is None:
        return change.types, "bytes differ", ""
    return change.types, number(change.error.relative_rmse), number(change.error.max_abs)


def number(value: float | None) -> str:
    """Four digits; words for what is none."""
    if value is None or math.isnan(value):
        return "not finite"
    return f"{value:.4g}"
