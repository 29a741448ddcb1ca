"""What the user says of a model, in a JSON file of general.* keys: it counts instead of what the checkpoint says.

The file is that of convert_hf_to_gguf.py's --metadata, with the same effect. Source: gguf-py `metadata.py` (llama.cpp,
autumn 2026), which takes values of any kind; here a wrong one is an error.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from phicourse.checkpoint.json_file import read_json_object
from phicourse.convert.metadata import ORIGIN_FIELDS, SAMPLING, is_number
from phicourse.errors import CheckpointError, ConvertError

# Behind general.; the license is not among them, it is always the model card's.
_TEXTS = (
    *("name", "author", "version", "organization", "finetune", "basename", "description", "quantized_by"),
    *("size_label", "license.name", "license.link", "url", "doi", "uuid", "repo_url"),
    *("source.url", "source.doi", "source.uuid", "source.repo_url"),
)


def read_overrides(path: Path | str) -> dict[str, Any]:
    """Read a JSON object of general.* keys.

    returns  the keys that can be set, with their values; null takes a key away. Others are named on standard error
    raises   ConvertError where the file is missing, no such JSON, or a value is of another kind than its key's
    """
    try:
        document = read_json_object(Path(path))
    except CheckpointError as error:
        raise ConvertError(str(error)) from error
    others = [key for key in document if key not in _KINDS]
    if others:
        print(f"phicourse: {path}: cannot be set here: {', '.join(others)[:400]!r}", file=sys.stderr)
    known = {key: value for key, value in document.items() if key in _KINDS}
    for key, value in known.items():
        kind, is_right = _KINDS[key]
        if value is not None and not is_right(value):
            raise ConvertError(f"{path}: {key} is {value!r:.60}, it must be {kind}")
    return known


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_list_of_origins(value: Any) -> bool:
    """Whether a value describes models or datasets: objects with texts for what we know."""
    return isinstance(value, list) and all(
        isinstance(origin, dict) and all(_is_text(origin.get(field, "")) for field in ORIGIN_FIELDS)
        for origin in value
    )


# key -> what its value must be, in words and as a test
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{f"general.{key}": ("a text", _is_text) for key in _TEXTS},
    **dict.fromkeys(("general.tags", "general.languages"), ("a list of texts", _is_list_of_texts)),
    **dict.fromkeys(
        ("general.base_models", "general.datasets"),
        ("a list of objects with texts in them", _is_list_of_origins),
    ),
    **{f"general.sampling.{key}": (type.name, partial(is_number, type=type)) for _, key, type in SAMPLING},
}
