"""JSON files of a checkpoint folder, read with a limit on their size."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from phicourse.errors import CheckpointError

SIZE_LIMIT = 256 << 20  # bytes; the largest tokenizer.json in use is about 20 MB


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    raises   CheckpointError where the file is missing, over 256 MiB, not UTF-8, not JSON, or not an object
    """
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise CheckpointError(f"{path}: larger than {SIZE_LIMIT >> 20} MiB, too large for a model's JSON")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_json_object(content, str(path))


def parse_json_object(content: bytes, source: str) -> dict[str, Any]:
    """Parse bytes as one JSON object without duplicate keys; `source` names them in errors."""
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{source}: not valid JSON: {reason}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{source}: the top level must be a JSON object, not {type(document).__name__}")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a key given twice would mean different things to different readers."""
    members = dict(pairs)
    if len(members) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {repeated[:100]!r} appears twice in one object")
    return members
