"""Says what is in a GGUF file: a dictionary for programs, a text for terminals, a map for notebooks.

Names and texts come from the file, so they are never printed raw: control characters are shown as escapes in
text, and everything is escaped in HTML.
"""

import html
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from phicourse.gguf.reader import GGUFFile, TensorInfo
from phicourse.gguf.types import Value

WIDTH = 80
# Colours of the file map, readable on light and dark; by the bits that a weight takes.
_COLOURS = (
    (2.0, "#b2182b"),
    (3.5, "#d6604d"),
    (5.0, "#f4a582"),
    (7.0, "#92c5de"),
    (12.0, "#4393c3"),
    (99.0, "#2166ac"),
)


def bits_per_weight(tensors: Iterable[TensorInfo]) -> float:
    """Return the bits that a weight takes on average, scales included; 0 without tensors."""
    tensors = list(tensors)
    weights = sum(tensor.n_weights for tensor in tensors)
    return 8 * sum(tensor.nbytes for tensor in tensors) / weights if weights else 0.0


def by_type(file: GGUFFile) -> dict[str, list[TensorInfo]]:
    """Group the tensors by type, the type with the most bytes first."""
    groups: dict[str, list[TensorInfo]] = {}
    for tensor in file.tensors.values():
        groups.setdefault(tensor.type.name, []).append(tensor)
    return dict(sorted(groups.items(), key=lambda group: -sum(tensor.nbytes for tensor in group[1])))


def summary(file: GGUFFile, full_arrays: bool = False) -> dict[str, Any]:
    """Return what is in the file as plain values for `json.dumps`.

    full_arrays  give arrays whole; else their length and their first eight elements
    """
    tensors = list(file.tensors.values())
    return {
        "path": str(file.path),
        "bytes": file.size,
        "version": file.version,
        "alignment": file.alignment,
        "data_offset": file.data_offset,
        "files": file.n_shards,
        "architecture": _plain(file.metadata["general.architecture"].value) if _named(file) else None,
        "weights": sum(tensor.n_weights for tensor in tensors),
        "bits_per_weight": bits_per_weight(tensors),
        "types": {name: _type_summary(group) for name, group in by_type(file).items()},
        "metadata": {key: _value_summary(value, full_arrays) for key, value in file.metadata.items()},
        "tensors": [_tensor_summary(tensor) for tensor in tensors],
    }


def _named(file: GGUFFile) -> bool:
    return "general.architecture" in file.metadata


def _type_summary(tensors: list[TensorInfo]) -> dict[str, Any]:
    return {
        "tensors": len(tensors),
        "weights": sum(tensor.n_weights for tensor in tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "bits_per_weight": bits_per_weight(tensors),
    }


def _tensor_summary(tensor: TensorInfo) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": tensor.type.name,
        "shape": list(tensor.shape),
        "offset": tensor.offset,
        "bytes": tensor.nbytes,
        "file": tensor.shard,
        "bits_per_weight": tensor.type.bits_per_weight,
    }


def _value_summary(value: Value, full: bool) -> dict[str, Any]:
    if value.element is None:
        return {"type": value.type_name, "value": _plain(value.value)}
    shown = value.value if full else value.value[:8]
    return {"type": value.type_name, "length": len(value.value), "value": [_plain(item) for item in shown]}


def _plain(value: Any) -> Any:
    """Return a value that JSON has: NumPy numbers as Python's, NaN and infinities as text."""
    value = value.item() if isinstance(value, np.generic) else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def printable(text: str, width: int | None = None) -> str:
    """Show a text from a file on one line: control characters as escapes, cut with … to a width."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if width is None or len(shown) <= width else shown[: max(width - 1, 0)] + "…"


def _short(value: Value, width: int) -> str:
    """Return a value on one line of at most `width` characters."""
    if value.element is None:
        shown = f"{value.value:.7g}" if isinstance(value.value, float) else str(value.value)[: 4 * width]
        return printable(shown, width)
    first = ", ".join(str(_plain(item))[:width] for item in value.value[:8])
    return printable(f"{len(value.value):,}: {first}{', …' if len(value.value) > 8 else ''}", width)


def _type_label(value: Value) -> str:
    return value.type.name.lower() if value.element is None else f"[{value.element.name.lower()}]"


def describe(file: GGUFFile, tensors: bool = False) -> str:
    """Return what is in the file as text of at most 80 columns; with `tensors` a line for each of them."""
    parts = [_headline(file), _metadata_table(file), _type_table(file)]
    if tensors:
        parts.append(_tensor_table(file))
    return "\n\n".join(part for part in parts if part)


def _headline(file: GGUFFile) -> str:
    weights = sum(tensor.n_weights for tensor in file.tensors.values())
    files = f" in {file.n_shards} files" if file.n_shards > 1 else ""
    return (
        f"{printable(file.path.name, WIDTH)}\n"
        f"GGUF {file.version}, {file.size:,} bytes{files}, data from byte {file.data_offset:,}\n"
        f"{len(file.tensors):,} tensors, {weights:,} weights, "
        f"{bits_per_weight(file.tensors.values()):.4g} bits per weight"
    )


def _metadata_table(file: GGUFFile) -> str:
    if not file.metadata:
        return ""
    keys = {key: printable(key, 44) for key in file.metadata}
    key_width = max(map(len, keys.values()))
    rows = []
    for key, value in file.metadata.items():
        start = f"{keys[key]:<{key_width}}  {_type_label(value):<9} "
        rows.append(start + _short(value, WIDTH - len(start)))
    return "\n".join(row.rstrip() for row in rows)


def _type_table(file: GGUFFile) -> str:
    rows = [f"{'type':<8}{'tensors':>9}{'weights':>18}{'bytes':>18}{'bits/weight':>13}"]
    for name, group in by_type(file).items():
        of_type = _type_summary(group)
        rows.append(
            f"{name:<8}{of_type['tensors']:>9,}{of_type['weights']:>18,}{of_type['bytes']:>18,}"
            f"{of_type['bits_per_weight']:>13.4f}"
        )
    return "\n".join(rows) if file.tensors else ""


def _tensor_table(file: GGUFFile) -> str:
    rows = [f"{'tensor':<30} {'type':<7} {'shape':>13} {'offset':>13} {'bytes':>13}"]
    for tensor in file.tensors.values():
        shape = "×".join(map(str, tensor.shape))
        name = printable(tensor.name, max(WIDTH - 50 + 13 - max(len(shape), 13), 12))
        rows.append(f"{name:<30} {tensor.type.name:<7} {shape:>13} {tensor.offset:>13,} {tensor.nbytes:>13,}")
    return "\n".join(rows)


def _colour(bits: float) -> str:
    return next(colour for limit, colour in _COLOURS if bits <= limit)


def file_map(file: GGUFFile) -> str:
    """Draw the file as HTML: a bar with parts as wide as their bytes, then a table of what lies where."""
    parts = [_bar_part(file.data_offset, "#999999", f"header and metadata, {file.data_offset:,} bytes")]
    for tensor in file.tensors.values():
        label = f"{tensor.name}, {tensor.type.name}, {tensor.nbytes:,} bytes from {tensor.offset:,}"
        parts.append(_bar_part(tensor.nbytes, _colour(tensor.type.bits_per_weight), label))
    rows = "".join(
        f"<tr><td style='text-align:left'>{html.escape(tensor.name)}</td><td>{tensor.type.name}</td>"
        f"<td>{' × '.join(map(str, tensor.shape))}</td>"
        f"<td>{tensor.offset:,}</td><td>{tensor.nbytes:,}</td></tr>"
        for tensor in file.tensors.values()
    )
    return (
        f"<div><pre style='margin:0'>{html.escape(_headline(file))}</pre>"
        f"<div style='display:flex;height:2em;margin:.5em 0'>{''.join(parts)}</div>"
        f"<pre>{html.escape(_type_table(file))}</pre>"
        f"<details><summary>{len(file.metadata)} keys</summary>"
        f"<pre>{html.escape(_metadata_table(file))}</pre></details>"
        f"<details><summary>{len(file.tensors)} tensors</summary><table><thead><tr><th>tensor</th>"
        "<th>type</th><th>shape</th><th>offset</th><th>bytes</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></details></div>"
    )


def _bar_part(n_bytes: int, colour: str, label: str) -> str:
    """One part of the bar; flex-grow makes its width follow its bytes."""
    style = f"flex:{n_bytes} 1 0;min-width:1px;background:{colour};border-right:1px solid #fff6"
    return f"<div style='{style}' title='{html.escape(label)}'></div>"
