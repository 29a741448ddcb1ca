"""Reads the front matter of a model card: the YAML between two lines `---` at the top of README.md.

Every scalar but null stays the text that it is: a version 1.0 is "1.0", and the language `no` is Norwegian. Objects
(`widget`, `model-index`) are not kept: no fact that we take is one.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from phicourse.errors import ConvertError

SIZE_LIMIT = 16 << 20  # bytes of a card; real ones have some 50 KB
FRONT_MATTER_LIMIT = 1 << 18  # characters: PyYAML takes a second for a quarter of a million

Card = dict[str, str | list[str] | None]


class _TextLoader(yaml.BaseLoader):  # type: ignore[misc]
    """Makes texts, lists and objects, and None of null; `BaseLoader` makes nothing else, whatever a tag says."""


_NULL = "tag:yaml.org,2002:null"
_TextLoader.add_implicit_resolver(_NULL, re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_TextLoader.add_constructor(_NULL, lambda loader, node: None)


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
    try:
        return parse_card("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConvertError(
            f"{path}: the lines between --- are no YAML ({reason}); mend them or move the file away"
        ) from error


def parse_card(text: str) -> Card:
    """Parse front matter; the last of two equal keys wins, and tabs count as two spaces, as with llama.cpp.

    raises   yaml.YAMLError, ValueError or RecursionError for what is no YAML, or too much of it
    """
    if len(text) > FRONT_MATTER_LIMIT:
        raise ValueError(f"{len(text):,} characters are too many")
    document = yaml.load(text.replace("\t", "  "), Loader=_TextLoader)
    if not isinstance(document, dict):
        return {}
    return {key: _plain(value) for key, value in document.items() if isinstance(key, str)}


def _plain(value: Any) -> str | list[str] | None:
    """Return a text, the texts of a list, or None."""
    return _texts(value) if isinstance(value, list) else next(iter(_texts([value])), None)


def _texts(values: Iterable[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]
