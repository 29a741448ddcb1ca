"""A file under the microscope: click a byte, or step with the arrow keys, and read which field it belongs to."""

import html
from collections.abc import Sequence
from typing import Any

from phicourse.gguf.anatomy import Part, dissect, part_at
from phicourse.plots.hex import COLOURS, ROW, ascii_text, describe_part, hex_page, legend
from phicourse.widgets.live import is_live

_CELL, _SIDE = "30px", "84px"
_MARK = "#0072b2"
_BARE = "3px solid transparent"  # as wide as the frame of the chosen byte: no digit moves


class HexMicroscope:
    """Shows the bytes of a GGUF file and what they mean.

    raw   the file, or its first bytes together with `parts`
    at    the byte to look at first
    rows  rows of sixteen bytes on a page

    The first byte of a part is underlined, so no colour is needed to see where one begins.
    Keys: Tab goes from byte to byte, Enter looks at one; on the slider the arrow keys step a byte.
    """

    def __init__(self, raw: bytes, at: int = 0, rows: int = 8, parts: Sequence[Part] | None = None) -> None:
        self.raw = raw
        self.parts = list(dissect(raw) if parts is None else parts)
        self.at = min(max(at, 0), max(len(raw) - 1, 0))
        self.rows = rows

    @property
    def page(self) -> int:
        """The first byte of the page on which the chosen byte is."""
        return self.at - self.at % (ROW * self.rows)

    def static(self) -> str:
        """Draw the page as HTML that needs no kernel."""
        return hex_page(self.raw, self.parts, self.page, self.rows)

    def live(self) -> Any:
        """Build the widget."""
        return _Bench(self).box

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = {"text/plain": f"HexMicroscope({len(self.raw):,} bytes)", "text/html": self.static()}
        return {**bundle, **self.live()._repr_mimebundle_()} if is_live() and self.raw else bundle


class _Bench:
    """The controls of one live microscope, and what they do."""

    def __init__(self, scope: HexMicroscope) -> None:
        import ipywidgets

        self.scope = scope
        self.slider = ipywidgets.IntSlider(
            value=scope.at, max=len(scope.raw) - 1, description="byte", layout={"width": "420px"}
        )
        self.buttons = [ipywidgets.Button(layout=_cell_layout()) for _ in range(ROW * scope.rows)]
        self.offsets = [ipywidgets.Label(layout={"width": _SIDE}) for _ in range(scope.rows)]
        self.texts = [ipywidgets.HTML(layout={"width": "150px"}) for _ in range(scope.rows)]
        self.says = ipywidgets.HTML()
        self.page = -1
        self.box = ipywidgets.VBox([self._controls(), self._grid(), self.says])
        self.slider.observe(self._on_slide, names="value")
        for place, button in enumerate(self.buttons):
            button.on_click(lambda _, place=place: self.look(self.scope.page + place))
        self.look(scope.at)

    def _controls(self) -> Any:
        """Make the row above the bytes."""
        import ipywidgets

        steps = {
            "◀ part": lambda: part_at(self.scope.parts, max(self._part().offset - 1, 0)).offset,
            "part ▶": lambda: self._part().end,
            "◀ page": lambda: self.scope.page - ROW * self.scope.rows,
            "page ▶": lambda: self.scope.page + ROW * self.scope.rows,
        }
        buttons = []
        for name, target in steps.items():
            button = ipywidgets.Button(description=name, layout={"width": "76px"})
            button.on_click(lambda _, target=target: self.look(target()))
            buttons.append(button)
        return ipywidgets.HBox([self.slider, *buttons], layout={"flex_flow": "row wrap"})

    def _grid(self) -> Any:
        """Make the rows of bytes: where, sixteen buttons, and the bytes as text."""
        import ipywidgets

        cells: list[Any] = []
        for row in range(self.scope.rows):
            cells += [self.offsets[row], *self.buttons[row * ROW : (row + 1) * ROW], self.texts[row]]
        columns = f"{_SIDE} repeat({ROW}, {_CELL}) 150px"
        return ipywidgets.GridBox(cells, layout={"grid_template_columns": columns, "grid_gap": "1px"})

    def _part(self) -> Part:
        return part_at(self.scope.parts, self.scope.at)

    def _on_slide(self, change: dict[str, Any]) -> None:
        self.look(change["new"])

    def look(self, at: int) -> None:
        """Choose a byte; another page is drawn where it lies there."""
        before = self.scope.at
        self.scope.at = min(max(at, 0), len(self.scope.raw) - 1)
        if self.scope.page != self.page:
            self.page = self.scope.page
            self._draw_page()
        self._mark(before, False)
        self._mark(self.scope.at, True)
        self.slider.value = self.scope.at
        self.says.value = self._explain()

    def _draw_page(self) -> None:
        scope, raw = self.scope, self.scope.raw
        for row in range(scope.rows):
            start = self.page + row * ROW
            self.offsets[row].value = f"{start:,}" if start < len(raw) else ""
            text = ascii_text(raw[start : start + ROW]).replace("&", "&amp;").replace("<", "&lt;")
            self.texts[row].value = f"<code style='white-space:pre'>{text}</code>"
        for place, button in enumerate(self.buttons):
            at = self.page + place
            button.layout.visibility = "visible" if at < len(raw) else "hidden"
            if at < len(raw):
                part = part_at(scope.parts, at)
                button.description, button.tooltip = f"{raw[at]:02x}", describe_part(part)
                button.style.button_color, button.style.text_color = COLOURS[part.kind], "black"
                button.style.text_decoration = "underline" if at == part.offset else ""
                button.layout.border = _BARE

    def _mark(self, at: int, is_chosen: bool) -> None:
        """Frame a byte of this page, or take its frame away."""
        if 0 <= at - self.page < len(self.buttons):
            button = self.buttons[at - self.page]
            button.layout.border = f"3px solid {_MARK}" if is_chosen else _BARE
            button.style.font_weight = "bold" if is_chosen else ""

    def _explain(self) -> str:
        part, at = self._part(), self.scope.at
        byte = self.scope.raw[at]
        last = self.page + len(self.buttons)
        shown = [each for each in self.scope.parts if each.offset < last and each.end > self.page]
        return (
            f"<p><b>byte {at:,}</b>: {byte:02x} = {byte}, number {at - part.offset + 1} of {part.nbytes:,} in"
            f" <span style='background:{COLOURS[part.kind]};color:#000;padding:1px 6px'>{part.kind}</span></p>"
            f"<p>{html.escape(describe_part(part))}</p>{legend(shown)}"
        )


def _cell_layout() -> dict[str, str]:
    return {"width": _CELL, "height": "32px", "border": _BARE, "margin": "0", "padding": "0"}
