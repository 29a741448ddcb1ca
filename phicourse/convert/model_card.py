"""Reads the front matter of a model card: the YAML between two lines `---` at the top of README.md.

Only what model cards use for the facts we take: `key: text`, `key: [a, b]`, and lists of texts below a key.
Deeper structures (`widget`, `model-index`), anchors and folded texts are stepped over. Every value stays the text
that it is: a version 1.0 is "1.0" and the language `no` is Norwegian.
"""

import re
from pathlib import Path

from phicourse.errors import ConvertError

SIZE_LIMIT = 16 << 20  # bytes; cards have some 50 KB
_KEY = re.compile(r"(?P<key>[A-Za-z_][\w-]*) *:(?: +(?P<value>.*))?")
_ITEM = re.compile(r" *- +(?P<value>.*)")
_NULLS = {"", "~", "null", "Null", "NULL"}
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "/": "/"}

Card = dict[str, str | list[str] | None]


def read_card(folder: Path) -> Card:
    """Return the texts and lists of texts of a folder's README.md; empty where there is none, or no front matter."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise ConvertError(f"{path}: {path.stat().st_size:,} bytes are too many for a model card")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConvertError(f"{path}: cannot be read as text ({error})") from error
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    return parse_card(lines[1:end])


def parse_card(lines: list[str]) -> Card:
    """Parse front matter, see the module; the last of two equal keys wins, as in YAML."""
    card: Card = {}
    key = ""
    items: list[str] | None = None  # the list that is being read
    for line in (line.replace("\t", "  ").rstrip() for line in lines):
        if (match := _KEY.fullmatch(line)) is not None:
            key, text = match["key"], _without_comment(match["value"] or "")
            items = [] if text == "" else None
            card[key] = _flow_list(text) if text.startswith("[") else _scalar(text)
        elif items is not None and (match := _ITEM.fullmatch(line)) is not None:
            if (item := _item(match["value"])) is not None:
                items.append(item)
                card[key] = items
        elif items is not None and line.startswith("  ") and not items:
            items = None  # an object below the key
    return card


def _item(text: str) -> str | None:
    """Return a list's element if it is a text: `- role: user` starts an object."""
    text = _without_comment(text)
    is_object = text[:1] not in "'\"" and (": " in text or text.endswith(":"))
    return None if is_object else _scalar(text)


def _without_comment(text: str) -> str:
    """Cut ` # …` off, except inside quotes."""
    if text[:1] in ("'", '"'):
        end = _closing_quote(text)
        return text[: end + 1] if end > 0 else text
    return re.split(r"(?:^| +)#", text, maxsplit=1)[0].strip()


def _closing_quote(text: str) -> int:
    """Where the quotation that starts the text ends, or -1."""
    pattern = r"'(?:[^']|'')*'" if text[0] == "'" else r'"(?:[^"\\]|\\.)*"'
    match = re.match(pattern, text)
    return match.end() - 1 if match else -1


def _scalar(text: str) -> str | None:
    """Return the text that a scalar stands for; None for null and for what is more than a text."""
    if text in _NULLS or text[0] in "|>&*!{[":
        return None
    if text[0] == "'" and _closing_quote(text) == len(text) - 1:
        return text[1:-1].replace("''", "'")
    if text[0] == '"' and _closing_quote(text) == len(text) - 1:
        return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), text[1:-1])
    return text


def _flow_list(text: str) -> list[str] | None:
    """Parse `[a, "b"]`; None where it does not end on this line or holds more than texts."""
    if not text.endswith("]"):
        return None
    pieces = re.findall(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|[^,'"\[\]{}]+""", text[1:-1])
    items = [_scalar(piece.strip()) for piece in pieces]
    return [item for item in items if item is not None]
