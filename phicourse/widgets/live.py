"""Whether widgets can live here, and what a widget that is a picture shows where none can."""

import os
import sys
from base64 import b64encode
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from matplotlib.figure import Figure

from phicourse.plots.style import png_of, size_of


def is_live() -> bool:
    """Say whether a kernel runs that a browser talks to, and ipywidgets is installed.

    PHICOURSE_STATIC=1 says no: saved outputs then hold the static twin, which needs no kernel to be seen.
    """
    wanted = os.environ.get("PHICOURSE_STATIC", "") in ("", "0")
    return wanted and "ipykernel" in sys.modules and find_spec("ipywidgets") is not None


def show_picture(text: str, figure: Figure, live: Callable[[], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build what `_repr_mimebundle_` gives back: the picture, and the widget where it can live.

    text     what a terminal shows
    figure   the static twin
    live     makes the widget
    returns  contents by MIME type, and facts about them
    """
    contents = {"text/plain": text, "image/png": b64encode(png_of(figure)).decode()}
    if is_live():
        contents |= live()._repr_mimebundle_()
    return contents, {"image/png": size_of(figure)}


def put_picture(image: Any, figure: Figure) -> None:
    """Show a figure in an ipywidgets.Image, as wide as a notebook shows it."""
    image.layout.width = f"{size_of(figure)['width']}px"
    image.value = png_of(figure)
