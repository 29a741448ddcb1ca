"""The block quantizer: what a choice does to a block, and to what the model says next."""

from pathlib import Path

import numpy as np
import pytest

from phicourse.errors import GenerateError
from phicourse.quantize.legacy import dequantize_q4_1, quantize_q4_1

pytest.importorskip("torch", reason="the readable model needs PyTorch")

import phicourse
from phicourse.evaluate.what_if import replaced_weights, weights_of
from phicourse.plots.style import Picture
from phicourse.widgets import BlockQuantizer
from phicourse.widgets.block_quantizer import PLACES, Q4_1, Choice, errors_of, quantize_with

TENSOR = "blk.1.ffn_down.weight"
PROMPT = "Once upon a time, there was a little dog named"


@pytest.fixture(scope="module")
def model(repository: Path):
    path = repository / "data" / "phi-tiny"
    return phicourse.load(path, backend="torch")


@pytest.fixture
def quantizer(model) -> BlockQuantizer:
    return BlockQuantizer(model, TENSOR, row=54, block=10, prompt=PROMPT)


def test_the_neutral_choice_is_q4_1() -> None:
    x = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    ours, theirs = quantize_with(x, Q4_1.scale, Q4_1.shift), quantize_q4_1(x)[:, 0]
    assert (ours["d"] == theirs["d"]).all() and (ours["m"] == theirs["m"]).all()
    assert (ours["qs"] != theirs["qs"]).mean() < 0.02  # a division here, a multiplication there


def test_errors_of_many_choices_are_those_of_each() -> None:
    x = np.random.default_rng(1).normal(size=32).astype(np.float32)
    scale, shift = np.meshgrid([0.8, 1.0], [0.0, 1.0, 2.0])
    errors = errors_of(x, scale, shift)
    assert errors.shape == (3, 2)
    decoded = dequantize_q4_1(quantize_with(x, 0.8, 2.0)[None])
    assert errors[2, 0] == pytest.approx(np.sqrt(np.mean((decoded - x) ** 2)), rel=1e-5)


def test_the_best_choice_is_better_than_q4_1_and_than_its_neighbours(quantizer: BlockQuantizer) -> None:
    scales, shifts, errors = quantizer.error_map
    assert errors.shape == (len(shifts), len(scales)) and errors.min() < 1
    best = quantizer.best
    assert quantizer.relative_errors(best.scale, best.shift) == pytest.approx(errors.min(), rel=1e-3)


def test_a_block_of_equal_weights_is_no_crash() -> None:
    assert not errors_of(np.full(32, 0.5, np.float32), 0.8, 1.0)


def test_the_places_choose_the_tensors(quantizer: BlockQuantizer) -> None:
    n_tensors = []
    for quantizer.where in PLACES:
        n_tensors.append(len(quantizer.tensors()))
    assert n_tensors == [1, 4, 16] and all(name.startswith("blk.") for name in quantizer.tensors())


def test_a_bad_choice_changes_the_odds_and_leaves_the_model_as_it_was(quantizer: BlockQuantizer) -> None:
    before = weights_of(quantizer.model, TENSOR).copy()
    quantizer.choice, quantizer.where = Choice(0.5, 0.0), PLACES[2]
    tokens, odds = quantizer.odds()
    assert tokens[0] == "Spot" and odds["as it is"][0] > 0.3 and odds["your choice"][0] < 0.05
    assert np.array_equal(weights_of(quantizer.model, TENSOR), before)
    quantizer.choice, quantizer.where = Q4_1, PLACES[0]
    assert quantizer.odds()[1]["your choice"][0] == pytest.approx(odds["as it is"][0], abs=0.05)


def test_weights_come_back_after_an_error(model) -> None:
    before = weights_of(model, TENSOR).copy()
    with pytest.raises(RuntimeError), replaced_weights(model, {TENSOR: np.zeros_like(before)}):
        assert not weights_of(model, TENSOR).any()
        raise RuntimeError
    assert np.array_equal(weights_of(model, TENSOR), before)


def test_weights_that_do_not_fit_are_refused(model) -> None:
    with (
        pytest.raises(GenerateError, match="in its place"),
        replaced_weights(model, {TENSOR: np.zeros((2, 2))}),
    ):
        pass
    with pytest.raises(GenerateError, match="no tensor"):
        weights_of(model, "blk.99.ffn_down.weight")


def test_the_static_twin_has_the_block_the_map_and_the_odds(quantizer: BlockQuantizer) -> None:
    quantizer.choice = Choice(0.8, 0.0)
    titles = [axes.get_title(loc="left") for axes in quantizer.static().axes]
    assert "+344% error against Q4_1" in titles[0]
    assert "All choices for this block" in titles and any(title.endswith(PLACES[1]) for title in titles)


def test_where_nothing_is_live_there_is_a_picture(
    quantizer: BlockQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer, "static", lambda: Picture(1, 1))
    monkeypatch.setenv("PHICOURSE_STATIC", "1")
    assert set(quantizer._repr_mimebundle_()[0]) == {"text/plain", "image/png"}


def test_the_bytes_that_it_shows_are_those_of_the_block(quantizer: BlockQuantizer) -> None:
    raw = quantize_with(quantizer.weights, 1.0, 0.0).tobytes()
    assert raw[:2].hex(" ") in quantizer.says() and raw[4:].hex(" ") in quantizer.says()


def test_sliders_and_buttons_move_the_choice(
    quantizer: BlockQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipywidgets")
    from phicourse.widgets.block_quantizer import _Desk

    desk = _Desk(quantizer)
    before = bytes(desk.picture.value)
    assert before.startswith(b"\x89PNG")
    drawn = []
    monkeypatch.setattr(quantizer, "static", lambda: drawn.append(quantizer.choice) or Picture(1, 1))
    desk.scale.value = 0.7
    assert quantizer.choice == Choice(0.7, 0.0) and bytes(desk.picture.value) != before
    desk.where.value = PLACES[2]
    assert quantizer.where == PLACES[2] and PLACES[2] in desk.text.value
    desk.buttons[1].click()
    assert quantizer.choice == quantizer.best == drawn[-1] and len(drawn) == 3
    desk.buttons[0].click()
    assert quantizer.choice == Q4_1 and "+0%" in desk.text.value
