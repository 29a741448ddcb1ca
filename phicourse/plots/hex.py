"""A file as its bytes, in HTML: sixteen a row, coloured by what they are, and a table of the parts.

Backgrounds are light and the ink on them black, so they read the same in a light and a dark theme; the first
byte of a part has a thick left edge, so no colour is needed to see where a part begins.
"""

import html
from collections.abc import Sequence

from phicourse.gguf.anatomy import Part, part_at

ROW = 16  # bytes
COLOURS = {
    "signature": "#e8e8e8",
    "count": "#f0e442",
    "name": "#8fd0f5",
    "type": "#e6b8d0",
    "value": "#6fcfae",
    "shape": "#f5c26b",
    "offset": "#f0a07a",
    "padding": "#b0b0b0",
    "weights": "#a9b8d8",
    "scale": "#f0a07a",
    "minimum": "#e6b8d0",
    "sub-scales": "#f0e442",
    "codes": "#8fd0f5",
    "high bits": "#6fcfae",
    "fault": "#d55e00",
    "unread": "#8c8c8c",
}
_EDGE = "3px solid #000"
_MANY = 12  # parts in the table below a page


def hex_page(raw: bytes, parts: Sequence[Part], first: int = 0, rows: int = 8) -> str:
    """Draw some rows of a file, a legend and what the bytes mean; pointing at a byte names its part.

    first  byte from which on; it is rounded down to a whole row
    """
    start = first - first % ROW
    stop = min(len(raw), start + rows * ROW)
    lines = "".join(_line(raw, parts, at, min(at + ROW, stop)) for at in range(start, stop, ROW))
    shown = [part for part in parts if part.offset < stop and part.end > start]
    style = "border-collapse:collapse;font-family:monospace;margin:.3em 0"
    return f"<div><table style='{style}'>{lines}</table>{legend(shown)}{part_table(shown)}</div>"


def _line(raw: bytes, parts: Sequence[Part], start: int, stop: int) -> str:
    cells = "".join(_cell(raw[at], part_at(parts, at), at) for at in range(start, stop))
    empty = "<td></td>" * (ROW - (stop - start))
    text = html.escape(ascii_text(raw[start:stop]))
    return f"<tr><th style='text-align:right'>{start:,}</th>{cells}{empty}<td style='text-align:left'>{text}</td></tr>"


def _cell(byte: int, part: Part, at: int) -> str:
    edge = f"border-left:{_EDGE};" if at == part.offset else ""
    style = f"background:{COLOURS[part.kind]};color:#000;{edge}padding:2px 4px"
    return f"<td style='{style}' title='{html.escape(describe_part(part), quote=True)}'>{byte:02x}</td>"


def ascii_text(raw: bytes) -> str:
    """Show bytes as ASCII; what has no sign there is a dot."""
    return "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in raw)


def describe_part(part: Part) -> str:
    """Say in one line where a part is, what it is and what it says."""
    plural = "" if part.nbytes == 1 else "s"
    value = f" = {part.value}" if part.value else ""
    return f"byte {part.offset:,}, {part.nbytes:,} byte{plural}: {part.what}{value}"


def legend(parts: Sequence[Part]) -> str:
    """Draw a square for each kind of part."""
    squares = "".join(
        f"<span style='background:{COLOURS[kind]};color:#000;padding:1px 6px;margin-right:6px'>{kind}</span>"
        for kind in dict.fromkeys(part.kind for part in parts)
    )
    return f"<p>{squares}</p>"


def part_table(parts: Sequence[Part]) -> str:
    """List parts: where, how long, what, and what they say."""
    rows = "".join(
        f"<tr><td>{part.offset:,}</td><td>{part.nbytes:,}</td><td>{part.kind}</td>"
        f"<td style='text-align:left'>{html.escape(part.what)}</td>"
        f"<td style='text-align:left'>{html.escape(part.value)}</td></tr>"
        for part in parts
    )
    heads = ("byte", "bytes", "kind", "what", "says")
    head = "".join(f"<th>{name}</th>" for name in heads)
    is_open = " open" if len(parts) <= _MANY else ""
    return (
        f"<details{is_open}><summary>{len(parts)} parts</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>"
    )
