"""Progress bars are for people who watch."""

import io
import sys

import pytest

from phicourse.progress_bar import byte_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "enabled", "drawn"),
    [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False), (None, True, False)],
    ids=["terminal", "switched off", "log file", "closed"],
)
def test_a_bar_is_drawn_where_somebody_sees_it(
    stream: io.StringIO | None, enabled: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with byte_bar(100, enabled) as bar:
        bar.delay = 0  # do not wait for a second
        bar.update(50)
        bar.refresh()
    assert (stream is not None and "50%" in stream.getvalue()) is drawn


def test_a_notebook_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert not byte_bar(100).disable
