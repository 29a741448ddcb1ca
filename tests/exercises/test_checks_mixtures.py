"""Wrong answers to the exercises of notebook 09, and what the checks say about them."""

import pytest

from phicourse.exercises import mixtures
from phicourse.exercises.exercise import Answer, Exercise
from phicourse.gguf.types import TENSOR_TYPES
from phicourse.quantize.rules import FALLBACKS


def mean_over_tensors(shapes: dict, types: dict) -> float:
    return sum(TENSOR_TYPES[type].bits_per_weight for type in types.values()) / len(types)


def without_norms(shapes: dict, types: dict) -> float:
    return mixtures.bits_of({name: shape for name, shape in shapes.items() if len(shape) > 1}, types)


def float_division(layer: int, n: int) -> bool:
    return layer < n / 8 or layer >= 7 * n / 8 or (layer - n / 8) % 3 == 2


def counts_from_zero(layer: int, n: int) -> bool:
    return layer < n // 8 or layer >= 7 * n // 8 or layer % 3 == 2


def first_of_three(layer: int, n: int) -> bool:
    return layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 0


def ends_only(layer: int, n: int) -> bool:
    return layer < n // 8 or layer >= 7 * n // 8


def policy(**changes: str) -> Answer:
    """The right policy, but for names that have one of these parts."""

    def answer(names: list[str], n_layers: int) -> dict[str, str]:
        types = mixtures.types_by_name(names, n_layers)
        for name in types:
            types[name] = next((type for part, type in changes.items() if part in name), types[name])
        return types

    return answer


def gain_only(damage: dict, sizes: dict, budget: float) -> dict[str, str]:
    """Takes the step with the largest gain, whatever it costs."""
    mix = {name: min(of, key=of.get) for name, of in sizes.items()}
    left = budget - sum(sizes[name][type] for name, type in mix.items())
    while steps := [
        (damage[name][mix[name]] - damage[name][type], name, type)
        for name in mix
        for type in sizes[name]
        if 0 < sizes[name][type] - sizes[name][mix[name]] <= left
    ]:
        _, name, type = max(steps)
        left -= sizes[name][type] - sizes[name][mix[name]]
        mix[name] = type
    return mix


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (mixtures.bits_per_weight, mean_over_tensors, "large ones must count more"),
        (mixtures.bits_per_weight, without_norms, "norms are in the file, too"),
        (mixtures.bits_per_weight, lambda s, t: mixtures.bits_of(s, t) / 8, "a byte has 8 bits"),
        (mixtures.bits_per_weight, lambda s, t: None, "return one number"),
        (mixtures.more_bits, float_division, "n // 8"),
        (mixtures.more_bits, counts_from_zero, "from the first eighth on"),
        (mixtures.more_bits, first_of_three, "remainder 2"),
        (mixtures.more_bits, ends_only, "every third layer"),
        (mixtures.q4_k_m, policy(norm="Q4_K"), "norms and biases stay F32"),
        (mixtures.q4_k_m, policy(bias="Q4_K"), "norms and biases stay F32"),
        (mixtures.q4_k_m, policy(token_embd="Q4_K"), "the embedding makes the logits, too"),
        (mixtures.q4_k_m, policy(attn_q="Q4_K"), "attn_v and attn_qkv"),
        (mixtures.q4_k_m, policy(attn_k="Q6_K"), "the default, Q4_K"),
        (mixtures.q4_k_m, policy(ffn_down="Q6_K"), "the number between the dots"),
        (mixtures.q4_k_m, lambda names, n: {}, "every name has a type"),
        (mixtures.q4_k_m, lambda names, n: [], "a dict, name -> type"),
        (mixtures.type_that_fits, lambda columns, wanted: wanted, "no multiple of 256"),
        (
            mixtures.type_that_fits,
            lambda columns, wanted: FALLBACKS.get(wanted, wanted) if columns % 256 else wanted,
            "has to divide 100, too",
        ),
        (
            mixtures.type_that_fits,
            lambda columns, wanted: wanted if columns % TENSOR_TYPES[wanted].block == 0 else "F16",
            "first the smaller block",
        ),
        (mixtures.best_mix, gain_only, "compare gain / cost"),
        (mixtures.best_mix, lambda d, s, b: dict.fromkeys(d, "high"), "not more than what is left"),
        (mixtures.best_mix, lambda d, s, b: dict.fromkeys(d, "low"), "compare gain / cost"),
        (mixtures.best_mix, lambda d, s, b: None, "a dict with a type for each tensor"),
    ],
)
def test_a_wrong_answer_is_told_its_mistake(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise(answer)
    message = capsys.readouterr().out
    assert message.startswith("✘") and said in message, message


def test_the_shapes_are_those_of_the_converter() -> None:
    mini = mixtures.phi3_shapes(3072, 8192, 32, 32064)
    assert sum(tensor.n_weights for tensor in mixtures.tensors_of(mini)) == 3_821_079_552
    assert mixtures.bits_of(mini, mixtures.types_of(mini, 32)) == pytest.approx(5.016, abs=1e-3)


def test_names_alone_decide_as_shapes_do() -> None:
    for shapes in (mixtures.phi3_shapes(512, 1024, 24, 100), mixtures.phi2_shapes(512, 1024, 24, 100)):
        assert mixtures.types_by_name(shapes, 24) == mixtures.types_of(shapes, 24)


def test_the_budget_is_never_exceeded_and_a_cheaper_step_is_found() -> None:
    damage = {"a": {"low": 4.0, "high": 1.0}, "b": {"low": 2.0, "high": 1.0}}
    sizes = {"a": {"low": 10, "high": 30}, "b": {"low": 10, "high": 12}}
    assert mixtures.spend(damage, sizes, 25) == {"a": "low", "b": "high"}
    assert mixtures.spend(damage, sizes, 42) == {"a": "high", "b": "high"}
