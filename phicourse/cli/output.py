"""What verbs print beside their text: JSON on standard output, a progress bar on standard error."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def print_json(document: Any) -> None:
    """Print one JSON document. JSON has no infinity and no NaN: null stands for them."""
    print(json.dumps(finite(document), indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """The value with None for every number in it that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def progress_bar(unit: str) -> Iterator[Any]:
    """Give a function (done, total, value if any) that draws a bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(unit=unit, file=sys.stderr, disable=None, leave=False) as bar:

        def show(done: int, total: int, value: float | None = None) -> None:
            bar.total = total
            bar.set_postfix_str("" if value is None else f"{value:.4f}", refresh=False)
            bar.update(done - bar.n)

        yield show
