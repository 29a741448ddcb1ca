"""The next token's odds before and after the samplers: move temperature, top-k, top-p and min-p."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from phicourse.generate.sampling import Sampler, candidates, probabilities
from phicourse.plots.next_token import draw_next_tokens
from phicourse.widgets.live import put_picture, show_picture


class SamplingPlayground:
    """Shows what a chain of samplers makes of one token's logits.

    logits   (vocab,) float32
    text_of  the text of a token
    sampler  to begin with; llama.cpp's defaults when not given
    shown    tokens in the picture

    Keys: Tab goes from slider to slider, the arrow keys move one.
    """

    def __init__(
        self,
        logits: NDArray[np.float32],
        text_of: Callable[[int], str],
        sampler: Sampler | None = None,
        shown: int = 12,
    ) -> None:
        self.logits = logits
        self.text_of = text_of
        self.sampler = sampler or Sampler()
        self.shown = shown

    def odds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The probabilities of all tokens, before and after the samplers: two times (vocab,)."""
        return probabilities(self.logits), probabilities(self.sampler.filter(self.logits))

    def static(self) -> Figure:
        """Draw the likeliest tokens, two bars each."""
        before, after = self.odds()
        ids = candidates(self.logits)[: self.shown]
        bars = {"the model's odds": before[ids].tolist(), "after the samplers": after[ids].tolist()}
        return draw_next_tokens([self.text_of(int(id)) for id in ids], bars, title=self._title())

    def _title(self) -> str:
        chosen = self.sampler
        return (
            f"temperature {chosen.temperature:g}, top-k {chosen.top_k}, "
            f"top-p {chosen.top_p:g}, min-p {chosen.min_p:g}"
        )

    def says(self) -> str:
        """Say in one line what the samplers leave."""
        before, after = self.odds()
        left = after > 0
        return (
            f"{left.sum():,} of {left.size:,} tokens are left, which had {before[left].sum():.1%} of the odds; "
            f"surprise per draw {_entropy(before):.2f} bits before, {_entropy(after):.2f} after"
        )

    def live(self) -> Any:
        """Build the widget."""
        import ipywidgets

        chosen = self.sampler
        how: Any = {"layout": {"width": "360px"}, "continuous_update": False}
        sliders: dict[str, Any] = {
            "temperature": ipywidgets.FloatSlider(value=chosen.temperature, max=2, step=0.05, **how),
            "top_k": ipywidgets.IntSlider(value=chosen.top_k, max=100, **how),
            "top_p": ipywidgets.FloatSlider(value=chosen.top_p, min=0.05, max=1, step=0.01, **how),
            "min_p": ipywidgets.FloatSlider(value=chosen.min_p, max=0.5, step=0.01, **how),
        }
        picture = ipywidgets.Image(format="png")
        says = ipywidgets.HTML()

        def move(_: object = None) -> None:
            self.sampler = Sampler(**{name: slider.value for name, slider in sliders.items()})
            says.value = f"<p>{self.says()}</p>"
            put_picture(picture, self.static())

        for name, slider in sliders.items():
            slider.description = name
            slider.observe(move, names="value")
        move()
        return ipywidgets.VBox([*sliders.values(), says, picture])

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return show_picture(f"SamplingPlayground({self.says()})", self.static(), self.live)


def _entropy(odds: NDArray[np.float64]) -> float:
    positive = odds[odds > 0]
    return float(-(positive * np.log2(positive)).sum()) + 0.0  # of one token -0.0
