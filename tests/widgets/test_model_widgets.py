"""The attention viewer and the sampling playground, moved as a hand would move them, and their static twins."""

import base64
from typing import Any

import numpy as np
import pytest

from phicourse.generate.sampling import Sampler
from phicourse.widgets import AttentionViewer, SamplingPlayground, live

TOKENS = ["<s>", "▁a", "<b>", "$", "."]
MAPS = np.tril(np.random.default_rng(1).random((2, 3, 5, 5)))
MAPS /= MAPS.sum(axis=-1, keepdims=True)
LOGITS = np.array([0, 3, 1, 2.5, -np.inf, 2], np.float32)
PNG = b"\x89PNG"


@pytest.fixture
def viewer() -> AttentionViewer:
    return AttentionViewer(MAPS, TOKENS, layer=1)


@pytest.fixture
def playground() -> SamplingPlayground:
    return SamplingPlayground(LOGITS, "abcdef".__getitem__, Sampler(1.0, 0, 1.0, 0.0))


def parts(widget: Any) -> tuple[dict[str, Any], Any, Any]:
    """The sliders by name, the line of text and the picture of a widget."""
    ipywidgets = pytest.importorskip("ipywidgets")
    found = [widget]
    for each in found:
        found += getattr(each, "children", ())
    sliders = {each.description: each for each in found if hasattr(each, "step")}
    says = next(each for each in found if type(each) is ipywidgets.HTML)
    return sliders, says, next(each for each in found if isinstance(each, ipywidgets.Image))


def test_the_viewer_begins_at_the_last_token_and_follows_its_sliders(viewer: AttentionViewer) -> None:
    sliders, says, picture = parts(viewer.live())
    assert {name: slider.value for name, slider in sliders.items()} == {"layer": 1, "head": 0, "token": 4}
    before, text = bytes(picture.value), says.value
    assert before.startswith(PNG)
    sliders["head"].value = 2
    assert viewer.head == 2 and picture.value != before and says.value != text
    sliders["token"].value = 0
    assert "(number 0) looks at <code>&lt;s&gt;</code> (number 0) 100%" in says.value


def test_the_viewer_says_where_the_token_looks_most_and_escapes_it(viewer: AttentionViewer) -> None:
    most = int(MAPS[1, 0, 4].argmax())
    assert f"(number {most}) {MAPS[1, 0, 4, most]:.0%}" in viewer.says().split("looks at")[1].split(",")[0]
    assert "<b>" not in viewer.says()


def test_the_sliders_of_the_viewer_end_where_the_maps_do(viewer: AttentionViewer) -> None:
    sliders, _, _ = parts(viewer.live())
    assert [sliders[name].max for name in ("layer", "head", "token")] == [1, 2, 4]


def test_the_playground_shows_the_samplers_odds(playground: SamplingPlayground) -> None:
    sliders, says, picture = parts(playground.live())
    assert "5 of 6 tokens are left, which had 100.0% of the odds" in says.value
    before = bytes(picture.value)
    sliders["top_k"].value = 2
    assert playground.sampler.top_k == 2 and "2 of 6 tokens" in says.value and picture.value != before
    sliders["temperature"].value = 0
    assert "1 of 6 tokens" in says.value and "0.00 after" in says.value


def test_the_picture_of_the_playground_has_both_odds_of_the_likeliest_tokens(
    playground: SamplingPlayground,
) -> None:
    playground.sampler = Sampler(1.0, 0, 1.0, 0.3)
    axes = playground.static().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list("bdfca")
    before, after = playground.odds()
    order = [1, 3, 5, 2, 0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([*before[order], *after[order]])
    assert after[[2, 0]].tolist() == [0, 0] and after.sum() == pytest.approx(1)
    assert axes.get_title(loc="left") == "temperature 1, top-k 0, top-p 1, min-p 0.3"


@pytest.mark.parametrize("is_live", [True, False])
@pytest.mark.parametrize("name", ["viewer", "playground"])
def test_the_static_twin_is_always_there(
    name: str, is_live: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(live, "is_live", lambda: is_live)
    contents, facts = request.getfixturevalue(name)._repr_mimebundle_()
    assert base64.b64decode(contents["image/png"]).startswith(PNG)
    assert set(facts["image/png"]) == {"width", "height"}
    assert ("application/vnd.jupyter.widget-view+json" in contents) is is_live
