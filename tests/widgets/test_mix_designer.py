"""The mix designer, moved as a hand would move it, and its static twin."""

from pathlib import Path

import pytest

from phicourse.convert import convert
from phicourse.errors import QuantizeError
from phicourse.evaluate.trials import MixTrials
from phicourse.widgets import MixDesigner, live

GROUPS = {
    "ends": r"token_embd|^output\.",
    "attention": r"attn_",
    "feed-forward": r"ffn_",
}
TEXT = "One day, a girl found a small box in the garden. She wanted to know what was in it."
START = {"ends": "Q6_K", "attention": "Q4_K", "feed-forward": "Q3_K"}


@pytest.fixture(scope="module")
def trials(phi_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> MixTrials:
    folder = tmp_path_factory.mktemp("designer")
    f16 = convert(phi_tiny, folder / "f16.gguf", "f16", progress=False)
    return MixTrials(f16, TEXT, folder, prompt="Once", n_tokens=24, max_tokens=3)


@pytest.fixture
def designer(trials: MixTrials) -> MixDesigner:
    return MixDesigner(trials, GROUPS, known=("Q8_0", "Q6_K"), start=START)


@pytest.fixture
def bench(designer: MixDesigner):
    pytest.importorskip("ipywidgets")
    from phicourse.widgets.mix_designer import _Bench

    return _Bench(designer)


def test_the_mix_has_the_types_that_were_chosen(designer: MixDesigner) -> None:
    types = {t.source.name: t.type.name for t in designer.trial().plan.tensors}
    assert types["output.weight"] == types["token_embd.weight"] == "Q6_K"
    assert types["blk.2.attn_qkv.weight"] == "Q4_K" and types["blk.0.ffn_down.weight"] == "Q3_K"
    assert types["blk.0.ffn_norm.weight"] == "F32"


def test_a_matrix_of_no_group_stays_as_it_is(trials: MixTrials) -> None:
    designer = MixDesigner(trials, {"output": r"^output\."}, known=(), start={"output": "Q4_K"})
    types = {t.source.name: t.type.name for t in designer.trial().plan.tensors}
    assert types["output.weight"] == "Q4_K" and types["token_embd.weight"] == "F16"


def test_bars_add_up_to_the_matrices_of_the_plan(designer: MixDesigner) -> None:
    bars = designer.static().axes[0].patches
    matrices = [t for t in designer.trial().plan.tensors if t.type.block > 1]
    assert sum(bar.get_width() for bar in bars) == pytest.approx(sum(t.nbytes for t in matrices) / 1e6)


def test_a_choice_is_measured_and_shown(bench) -> None:
    before, picture = bench.says.value, bench.picture.value
    bench.sliders["feed-forward"].value = "Q2_K"
    assert bench.designer.chosen["feed-forward"] == "Q2_K"
    assert bench.says.value != before and bench.picture.value != picture


def test_a_known_mix_moves_all_sliders_and_is_measured_once(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, str]] = []
    monkeypatch.setattr(
        type(bench), "draw", lambda self: drawn.append({g: e.value for g, e in self.sliders.items()})
    )
    bench.preset.value = "Q8_0"
    assert drawn == [dict.fromkeys(GROUPS, "Q8_0")]
    bench.sliders["ends"].value = "Q6_K"
    assert bench.preset.value == "yours" and len(drawn) == 2


def test_a_mix_with_several_types_in_a_group_is_no_start(trials: MixTrials) -> None:
    with pytest.raises(QuantizeError, match="one type"):
        MixDesigner(trials, GROUPS, known=(), start="Q4_K_M")
    with pytest.raises(QuantizeError, match="one type"):
        MixDesigner(trials, GROUPS, known=(), start={"ends": "Q4_K"})
    assert MixDesigner(trials, GROUPS, known=("Q4_K_M",), start=START).presets == {}


@pytest.mark.parametrize("is_live", [True, False])
def test_the_static_twin_is_always_there(
    designer: MixDesigner, is_live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(live, "is_live", lambda: is_live)
    bundle, _ = designer._repr_mimebundle_()
    assert bundle["image/png"] and bundle["text/plain"]
    assert ("application/vnd.jupyter.widget-view+json" in bundle) is is_live
