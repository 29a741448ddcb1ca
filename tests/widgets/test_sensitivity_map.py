"""The sensitivity map, moved as a hand would move it, and its static twin."""

from pathlib import Path

import pytest

from phicourse.convert import convert
from phicourse.errors import QuantizeError
from phicourse.evaluate.trials import MixTrials
from phicourse.widgets import SensitivityMap, live

TEXT = "One day, a girl found a small box in the garden. She wanted to know what was in it."
TYPES = ("Q8_0", "Q4_0")
QKV = "blk.2.attn_qkv.weight"


@pytest.fixture(scope="module")
def trials(phi_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> MixTrials:
    folder = tmp_path_factory.mktemp("sensitivity")
    f16 = convert(phi_tiny, folder / "f16.gguf", "f16", progress=False)
    return MixTrials(f16, TEXT, folder, n_tokens=24)


@pytest.fixture
def sensitivity(trials: MixTrials) -> SensitivityMap:
    return SensitivityMap(trials, TYPES, type="Q4_0", matrix=QKV)


@pytest.fixture
def bench(sensitivity: SensitivityMap):
    pytest.importorskip("ipywidgets")
    from phicourse.widgets.sensitivity_map import _Bench

    return _Bench(sensitivity)


def test_a_cell_is_what_a_trial_with_this_matrix_alone_measures(sensitivity: SensitivityMap) -> None:
    sensitivity.measure()
    trial = sensitivity.trials.measure_alone(QKV, "Q4_0")
    types = {tensor.source.name: tensor.type.name for tensor in trial.plan.tensors}
    assert [name for name, type in types.items() if type == "Q4_0"] == [QKV]
    assert {type for name, type in types.items() if name != QKV} == {"F16", "F32"}
    rows = sensitivity.map()
    assert list(rows) == ["token_embd", "attn_output", "attn_qkv", "ffn_down", "ffn_up", "output"]
    assert rows["attn_qkv"][2] == trial.divergence.mean > 0 and len(rows["output"]) == 1


def test_harm_for_a_megabyte_counts_what_the_file_lost(sensitivity: SensitivityMap) -> None:
    sensitivity.measure()
    whole = sensitivity.harm(QKV, "Q4_0")
    sensitivity.per_megabyte = True
    saved = 768 * 256 * (16 - 4.5) / 8e6
    assert sensitivity.harm(QKV, "Q4_0") == pytest.approx(whole / saved)


def test_each_trial_is_made_once_and_only_when_it_is_looked_at(
    trials: MixTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str]] = []
    measure = trials.measure_alone
    monkeypatch.setattr(trials, "measure_alone", lambda *pair: made.append(pair) or measure(*pair))
    sensitivity = SensitivityMap(trials, TYPES, type="Q4_0", matrix=QKV)
    assert made == []
    steps: list[tuple[int, int]] = []
    sensitivity.measure(lambda done, all: steps.append((done, all)))
    assert steps == [(n, 19) for n in range(1, 20)]  # 18 matrices, and the chosen one in the other type
    sensitivity.matrix = "output.weight"
    sensitivity.measure()
    assert made[19:] == [("output.weight", "Q8_0")]


def test_the_picture_frames_the_matrix_and_marks_the_type(sensitivity: SensitivityMap) -> None:
    wall, curve = sensitivity.static().axes
    frame = next(patch for patch in wall.patches if not patch.get_fill())
    assert (frame.get_x(), frame.get_width(), int(frame.get_y())) == (2, 1, 2)
    assert curve.get_title(loc="left") == "attn_qkv, layer 2"
    _, line, mark = curve.lines
    assert line.get_xdata().tolist() == [8.5, 4.5]
    assert line.get_ydata().tolist() == [sensitivity.harm(QKV, type) for type in TYPES]
    assert mark.get_ydata() == [sensitivity.harm(QKV, "Q4_0")]


def test_sliders_choose_and_the_bar_shows_only_while_it_is_measured(bench) -> None:
    before, said = bench.picture.value, bench.says.value
    shown: list[str] = []
    bench.progress.observe(lambda change: shown.append(bench.progress.layout.visibility), names="value")
    bench.type.value = "Q8_0"
    assert bench.map.type == "Q8_0" and bench.says.value != said and bench.picture.value != before
    assert bench.progress.value == bench.progress.max == 17 and "visible" in shown
    assert bench.progress.layout.visibility == "hidden"
    bench.matrix.value = "output.weight"
    assert bench.says.value.startswith("<p>output as Q8_0: KL ")
    before = bench.picture.value
    bench.unit.value = True
    assert bench.map.per_megabyte and bench.picture.value != before


def test_a_matrix_that_the_model_has_not_is_refused(trials: MixTrials) -> None:
    with pytest.raises(QuantizeError, match="no matrix of"):
        SensitivityMap(trials, matrix="output_norm.weight")
    with pytest.raises(QuantizeError):
        SensitivityMap(trials, types=["Q9_Z"])


@pytest.mark.parametrize("is_live", [True, False])
def test_the_static_twin_is_always_there(
    sensitivity: SensitivityMap, is_live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(live, "is_live", lambda: is_live)
    bundle, _ = sensitivity._repr_mimebundle_()
    assert bundle["image/png"] and bundle["text/plain"]
    assert ("application/vnd.jupyter.widget-view+json" in bundle) is is_live
