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
# Colours of the file map, readable on light and dark, with that of the text on them; by the bits of a weight.
_COLOURS = (
    (2.0, "#b2182b", "white"),
    (3.5, "#d6604d", "black"),
    (5.0, "#f4a582", "black"),
    (7.0, "#92c5de", "black"),
    (12.0, "#4393c3", "black"),
    (16.0, "#2166ac", "white"),
    (99.0, "#9970ab", "black"),
)
_HEADER_COLOUR = ("#999999", "black")
_LABELLED = 0.06  # of the file: narrower parts have no room for a name


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


def _colours(bits: float) -> tuple[str, str]:
    """Return the colour of a part of the map, and of text on it."""
    return next((colour, ink) for limit, colour, ink in _COLOURS if bits <= limit)


def file_map(file: GGUFFile) -> str:
    """Draw the file as HTML: a bar with parts as wide as their bytes, then a table of what lies where."""
    rows = "".join(
        f"<tr><td style='text-align:left'>{html.escape(tensor.name)}</td><td>{tensor.type.name}</td>"
        f"<td>{' × '.join(map(str, tensor.shape))}</td>"
        f"<td>{tensor.offset:,}</td><td>{tensor.nbytes:,}</td></tr>"
        for tensor in file.tensors.values()
    )
    return (
        f"<div>{_title(file)}{_bar(file)}{_legend(file)}"
        f"<details><summary>{len(file.metadata)} keys</summary>"
        f"<pre style='font-family:monospace'>{html.escape(_metadata_table(file))}</pre></details>"
        f"<details><summary>{len(file.tensors)} tensors</summary><table><thead><tr>"
        "<th style='text-align:left'>tensor</th><th>type</th><th>shape</th><th>offset</th><th>bytes</th>"
        f"</tr></thead><tbody>{rows}</tbody></table></details></div>"
    )


def _title(file: GGUFFile) -> str:
    name, *about = (html.escape(line) for line in _headline(file).split("\n"))
    return f"<p><strong>{name}</strong>: {'; '.join(about)}</p>"


def _bar(file: GGUFFile) -> str:
    hover = f"header and metadata, {file.data_offset:,} bytes"
    parts = [_bar_part(file.data_offset, _HEADER_COLOUR, "", hover)]
    for tensor in file.tensors.values():
        hover = f"{tensor.name}, {tensor.type.name}, {tensor.nbytes:,} bytes from {tensor.offset:,}"
        label = _short_name(tensor.name) if tensor.nbytes >= _LABELLED * file.size else ""
        parts.append(_bar_part(tensor.nbytes, _colours(tensor.type.bits_per_weight), label, hover))
    return f"<div style='display:flex;height:2em;margin:.5em 0'>{''.join(parts)}</div>"


def _short_name(name: str) -> str:
    """Return a tensor's name without its layer and its ending: ffn_up of blk.0.ffn_up.weight."""
    parts = [
        part for part in name.removesuffix(".weight").split(".") if part != "blk" and not part.isdecimal()
    ]
    return ".".join(parts)


def _bar_part(n_bytes: int, colours: tuple[str, str], label: str, hover: str) -> str:
    """One part of the bar; flex-grow makes its width follow its bytes."""
    style = (
        f"flex:{n_bytes} 1 0;min-width:1px;background:{colours[0]};border-right:1px solid #fff6;"
        f"color:{colours[1]};font-size:11px;line-height:2.4em;text-align:center;overflow:hidden"
    )
    return f"<span style='{style}' title='{html.escape(hover)}'>{html.escape(label)} </span>"


def _legend(file: GGUFFile) -> str:
    """The types as an HTML table, each after a square in the colour that it has in the bar."""
    if not file.tensors:
        return ""
    rows = ""
    for name, group in by_type(file).items():
        of_type = _type_summary(group)
        square = f"<span style='color:{_colours(group[0].type.bits_per_weight)[0]}'>■</span>"
        rows += (
            f"<tr><td style='text-align:left'>{square} {name}</td><td>{of_type['tensors']:,}</td>"
            f"<td>{of_type['weights']:,}</td><td>{of_type['bytes']:,}</td>"
            f"<td>{of_type['bits_per_weight']:.4f}</td></tr>"
        )
    head = "<th style='text-align:left'>type</th><th>tensors</th><th>weights</th><th>bytes</th><th>bits/weight</th>"
    return f"<table style='margin:0'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
