"""The hex microscope, moved as a hand would move it, and its static twin."""

import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from phicourse.exercises.gguf import write_gguf
from phicourse.gguf.anatomy import KINDS, dissect
from phicourse.plots.hex import COLOURS, hex_page
from phicourse.widgets import HexMicroscope, hex_microscope
from phicourse.widgets.live import is_live

FILE = write_gguf({"general.architecture": "phi3", "<b>": "&"}, {"w": np.ones((4, 32), np.float32)})


class Cells(HTMLParser):
    """Collects the texts of table cells, and checks that what opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def contrast(colour: str, ink: str = "#000000") -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(text: str) -> float:
        channels = [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    light, dark = sorted((luminance(colour), luminance(ink)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture
def bench():
    pytest.importorskip("ipywidgets")
    from phicourse.widgets.hex_microscope import _Bench

    return _Bench(HexMicroscope(FILE, rows=4))


def test_every_kind_has_a_colour_on_which_black_can_be_read() -> None:
    assert set(COLOURS) == set(KINDS)
    assert min(contrast(colour) for colour in COLOURS.values()) >= 4.5


def test_the_page_shows_each_byte_once_and_escapes_the_file() -> None:
    page = hex_page(FILE, dissect(FILE), first=20, rows=2)
    cells = Cells(page).cells
    shown = [cell for cell in cells if len(cell) == 2 and set(cell) <= set("0123456789abcdef")]
    assert shown[:32] == [f"{byte:02x}" for byte in FILE[16:48]]
    whole = HexMicroscope(FILE, rows=40).static()
    assert "<b>'" not in whole and "&lt;b&gt;" in whole


def test_a_click_shows_the_field_of_the_byte(bench) -> None:
    bench.buttons[5].click()
    assert bench.scope.at == bench.slider.value == 5 and "the version = 3" in bench.says.value
    assert bench.buttons[5].layout.border_top.startswith("3px solid #")


def test_the_frame_moves_with_the_slider(bench) -> None:
    bench.slider.value = 9
    assert "the count of tensors" in bench.says.value
    framed = [
        i
        for i, button in enumerate(bench.buttons)
        if (button.layout.border_top or "").startswith("3px solid #")
    ]
    assert framed == [9]


def test_steps_by_part_and_by_page(bench) -> None:
    _, back, forward, page_back, page_forward = bench.box.children[0].children
    forward.click()
    assert bench.scope.at == 4
    forward.click()
    back.click()
    assert bench.scope.at == 4
    page_back.click()
    assert bench.scope.at == 0
    page_forward.click()
    assert bench.scope.at == bench.page == 64 and bench.buttons[0].description == f"{FILE[64]:02x}"


def test_the_last_page_hides_what_is_not_there(bench) -> None:
    bench.look(10**9)
    assert bench.scope.at == len(FILE) - 1
    hidden = [button.layout.visibility for button in bench.buttons]
    assert hidden.count("visible") == len(FILE) - bench.page


def test_the_first_byte_of_a_part_is_underlined(bench) -> None:
    starts = {part.offset for part in bench.scope.parts}
    lines = [i for i, button in enumerate(bench.buttons) if button.style.text_decoration == "underline"]
    assert lines == sorted(start for start in starts if start < len(bench.buttons))


def test_every_button_says_what_it_is_to_a_screen_reader(bench) -> None:
    assert all(button.tooltip.startswith("byte ") for button in bench.buttons)


@pytest.mark.parametrize(
    ("kernel", "static", "live"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_widgets_live_where_a_kernel_runs_and_nobody_wants_the_picture(
    kernel: bool, static: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.setenv("PHICOURSE_STATIC", static)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if kernel:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert is_live() is live


@pytest.mark.parametrize("live", [True, False])
def test_the_static_twin_is_always_there(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(hex_microscope, "is_live", lambda: live)
    bundle = HexMicroscope(FILE)._repr_mimebundle_()
    assert "<table" in bundle["text/html"]
    assert ("application/vnd.jupyter.widget-view+json" in bundle) is live


def test_an_empty_file_is_no_crash() -> None:
    assert HexMicroscope(b"").static()
