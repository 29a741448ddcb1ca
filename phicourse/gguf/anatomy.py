"""Names every byte of a GGUF file, for pictures of it: the reader reads, and this takes notes.

A broken file has an anatomy, too: the parts up to the fault, the fault, and what nobody read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phicourse.errors import GGUFError
from phicourse.gguf.reader import Cursor, Header, read_header
from phicourse.gguf.types import Value, ValueType, tensor_type

# What the reader calls the things that it takes, by how that begins; the first that fits counts.
_KINDS = (
    ("the magic number", "signature"),
    ("the version", "signature"),
    ("the count of", "count"),
    ("the length of", "count"),
    ("the type of", "type"),
    ("key ", "name"),
    ("the name of", "name"),
    ("the dimensions of", "shape"),
    ("the shape of", "shape"),
    ("the offset of", "offset"),
    ("the value of", "value"),
)
KINDS = (
    "signature",
    "count",
    "name",
    "type",
    "value",
    "shape",
    "offset",
    "padding",
    "weights",
    "scale",
    "minimum",
    "sub-scales",
    "codes",
    "high bits",
    "fault",
    "unread",
)
_FAULT_BYTES = 8
_SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class Part:
    """Some bytes of a file that belong together; `kind` is one of KINDS, `value` what they say."""

    offset: int
    nbytes: int
    kind: str
    what: str
    value: str = ""

    @property
    def end(self) -> int:
        """The byte behind the last."""
        return self.offset + self.nbytes


def dissect(raw: bytes) -> list[Part]:
    """Cut a file into its parts, in order and without gaps; the last ones tell of a fault where there is one."""
    notes = _Notes(memoryview(raw))
    try:
        header = read_header(notes)
    except GGUFError as error:
        parts = _with_fault(notes, str(error).removeprefix(f"{notes.path}: "), len(raw))
    else:
        parts = notes.parts + _data_parts(notes.at, header, raw)
    rest = len(raw) - (parts[-1].end if parts else 0)
    return [*parts, Part(len(raw) - rest, rest, "unread", "not read")] if rest else parts


class _Notes(Cursor):
    """The reader's cursor, which writes down what it gives out."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(data, Path("file"))
        self.parts: list[Part] = []
        self.fault_at: int | None = None  # not every fault is at one byte

    def fail(self, what: str, at: int | None = None) -> GGUFError:
        self.fault_at = self.at if at is None else at
        return super().fail(what, at)

    def take(self, n_bytes: int, what: str) -> memoryview:
        taken = super().take(n_bytes, what)
        self._add(self.at - n_bytes, what)
        return taken

    def number(self, code: str, what: str) -> Any:
        number = super().number(code, what)
        self._say(_type_name(number) if what.startswith("the type of tensor ") else f"{number:,}")
        return number

    def string(self, what: str) -> str:
        at, text = self.at, super().string(what)
        if self.at > at + 8:  # else there is nothing behind the length
            self._say(repr(text))
        return text

    def value_type(self, what: str) -> ValueType:
        type = super().value_type(what)
        self._say(f"{int(type)}: {type.name}")
        return type

    def value(self, what: str) -> Value:
        value = super().value(what)
        if value.type is not ValueType.STRING and value.element is not ValueType.STRING:
            self._say(str(value.value))
        return value

    def _strings(self, what: str) -> list[str]:
        at, strings = self.at, super()._strings(what)
        if strings:  # the reader goes through them without asking for each
            self._add(at + 8, f"{what}: each string with its length")
            self._say(", ".join(map(repr, strings[:8])))
        return strings

    def _add(self, start: int, what: str) -> None:
        if self.at > start:
            kind = next(kind for beginning, kind in _KINDS if what.startswith(beginning))
            self.parts.append(Part(start, self.at - start, kind, what))

    def _say(self, value: str) -> None:
        shown = value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
        self.parts[-1] = replace(self.parts[-1], value=shown)


def _type_name(id: int) -> str:
    try:
        return f"{id}: {tensor_type(id).name}"
    except GGUFError:
        return str(id)


def _with_fault(notes: _Notes, message: str, size: int) -> list[Part]:
    """Return the parts before the fault, and the fault with the reader's message."""
    fault_at = notes.at if notes.fault_at is None else notes.fault_at
    before = [part for part in notes.parts if part.end <= fault_at]
    hit = next((part for part in notes.parts if part.end > fault_at), None)
    start = before[-1].end if before else 0
    end = hit.end if hit else min(size, fault_at + _FAULT_BYTES)
    return [*before, Part(start, end - start, "fault", message)] if end > start else before


def _data_parts(at: int, header: Header, raw: bytes) -> list[Part]:
    """Return what lies behind the header: tensors, and the zeros before and between them."""
    parts: list[Part] = []
    zeros = f"zeros up to a multiple of {header.alignment}"
    for tensor in header.tensors.values():
        if tensor.offset > at:
            parts.append(Part(at, tensor.offset - at, "padding", zeros))
        says = f"{' × '.join(map(str, tensor.shape))} {tensor.type.name}"
        parts.append(Part(tensor.offset, tensor.nbytes, "weights", f"the weights of {tensor.name!r}", says))
        at = tensor.offset + tensor.nbytes
    if at < len(raw):
        parts.append(Part(at, len(raw) - at, "padding", zeros))
    return parts


def part_at(parts: Sequence[Part], byte: int) -> Part:
    """Return the part that has a byte of the file."""
    return next(part for part in parts if part.offset <= byte < part.end)
