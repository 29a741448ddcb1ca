"""Byte-pair encoding as an animation: step through the merges of a text, play them, or type a text of your own."""

from collections.abc import Callable, Iterable
from typing import Any

from phicourse.plots.merges import merge_wall
from phicourse.tokenizer.merge_steps import Step, merge_steps
from phicourse.widgets.live import is_live

LONGEST = 60  # characters: more bricks than that fit into no row


class MergeAnimation:
    """Shows how neighbours are joined, the best pair first, until none is left.

    text     what to begin with, at most 60 characters of it
    rank     (left, right) -> rank, or None where the two cannot be joined; the lowest goes first
    symbols  cuts a text into its first symbols; its characters when not given

    Keys: Tab goes from control to control; on the slider the arrow keys step, Home and End go to the ends; on the
    play button the space bar starts and stops. A text of your own counts when Enter is pressed.
    """

    def __init__(
        self,
        text: str,
        rank: Callable[[str, str], float | None],
        symbols: Callable[[str], Iterable[str]] = list,
    ) -> None:
        self.rank, self.symbols = rank, symbols
        self.text = ""
        self.steps: list[Step] = []
        self.begin(text)

    def begin(self, text: str) -> None:
        """Take another text."""
        self.text = text[:LONGEST]
        self.steps = merge_steps(self.symbols(self.text), self.rank)

    def static(self) -> str:
        """Draw all steps as HTML that needs no kernel."""
        return merge_wall(self.steps)

    def live(self) -> Any:
        """Build the widget."""
        return _Stage(self).box

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = {
            "text/plain": f"MergeAnimation({self.text!r}, {len(self.steps) - 1} merges)",
            "text/html": self.static(),
        }
        return {**bundle, **self.live()._repr_mimebundle_()} if is_live() else bundle


class _Stage:
    """The controls of one live animation, and what they do."""

    def __init__(self, animation: MergeAnimation) -> None:
        import ipywidgets

        self.animation = animation
        self.entry = ipywidgets.Text(
            value=animation.text, description="text", continuous_update=False, layout={"width": "420px"}
        )
        self.slider = ipywidgets.IntSlider(description="merges", layout={"width": "420px"})
        self.play = ipywidgets.Play(interval=700, show_repeat=False)
        self.wall = ipywidgets.HTML()
        ipywidgets.link((self.play, "value"), (self.slider, "value"))
        controls = ipywidgets.HBox([self.slider, self.play], layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([self.entry, controls, self.wall])
        self.slider.observe(lambda _: self._draw(), names="value")
        self.entry.observe(self._on_text, names="value")
        self._set_up()

    def _on_text(self, change: dict[str, Any]) -> None:
        self.animation.begin(change["new"])
        self._set_up()

    def _set_up(self) -> None:
        """Go to the first step of the text."""
        last = len(self.animation.steps) - 1
        self.slider.value = 0
        self.slider.max = self.play.max = last
        self._draw()

    def _draw(self) -> None:
        self.wall.value = merge_wall(self.animation.steps, self.slider.value + 1)
