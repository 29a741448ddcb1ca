"""Attention maps of a model: choose layer, head and token with the arrow keys, and see where the token looks."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from phicourse.plots.attention import draw_attention, draw_heads
from phicourse.plots.next_token import visible
from phicourse.widgets.live import put_picture, show_picture


class AttentionViewer:
    """Shows where each head of each layer looks.

    maps    (layers, heads, time, time), rows sum to 1
    tokens  the text of each of the `time` tokens
    layer, head, token   what is looked at first; the last token when not given

    Keys: Tab goes from slider to slider, the arrow keys move one. Without a kernel all heads are drawn at once.
    """

    def __init__(
        self,
        maps: NDArray[np.floating],
        tokens: Sequence[str],
        layer: int = 0,
        head: int = 0,
        token: int | None = None,
    ) -> None:
        self.maps = maps
        self.tokens = list(tokens)
        self.layer = layer
        self.head = head
        self.token = len(self.tokens) - 1 if token is None else token

    @property
    def weights(self) -> NDArray[np.floating]:
        """(time, time), the chosen head's map."""
        chosen: NDArray[np.floating] = self.maps[self.layer, self.head]
        return chosen

    def static(self) -> Figure:
        """Draw all heads."""
        return draw_heads(self.maps)

    def picture(self) -> Figure:
        """Draw the chosen head and where the chosen token looks."""
        title = f"Layer {self.layer}, head {self.head}"
        return draw_attention(self.tokens, self.weights, self.token, title)

    def says(self) -> str:
        """Say in words where the token looks most, as HTML."""
        row = self.weights[self.token]
        most = sorted(range(self.token + 1), key=lambda at: -row[at])[:3]
        looked = ", ".join(f"{_quoted(self.tokens[at])} (number {at}) {row[at]:.0%}" for at in most)
        return f"<p>{_quoted(self.tokens[self.token])} (number {self.token}) looks at {looked}</p>"

    def live(self) -> Any:
        """Build the widget."""
        import ipywidgets

        n_layers, n_heads, n_tokens = self.maps.shape[:3]
        picture = ipywidgets.Image(format="png")
        says = ipywidgets.HTML()
        sliders = {
            name: ipywidgets.IntSlider(
                value=getattr(self, name), max=size - 1, description=name, continuous_update=False
            )
            for name, size in (("layer", n_layers), ("head", n_heads), ("token", n_tokens))
        }

        def look(_: object = None) -> None:
            self.layer, self.head, self.token = (sliders[name].value for name in ("layer", "head", "token"))
            says.value = self.says()
            put_picture(picture, self.picture())

        for slider in sliders.values():
            slider.observe(look, names="value")
        look()
        row = ipywidgets.HBox(list(sliders.values()), layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([row, says, picture])

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        n_layers, n_heads = self.maps.shape[:2]
        text = f"AttentionViewer({n_layers} layers of {n_heads} heads, {len(self.tokens)} tokens)"
        return show_picture(text, self.static(), self.live)


def _quoted(token: str) -> str:
    return f"<code>{html.escape(visible(token))}</code>"
