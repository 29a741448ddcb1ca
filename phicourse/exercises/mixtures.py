"""The checks of notebook 09, mixtures."""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from phicourse.exercises.compare import compare_values
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.gguf import TensorInfo
from phicourse.gguf.types import TENSOR_TYPES
from phicourse.quantize.mixes import choose_types, fallback, find_mix
from phicourse.quantize.rules import Place, ends_and_every_third

Shapes = Mapping[str, tuple[int, ...]]
Types = Mapping[str, str]
Costs = Mapping[str, Mapping[str, float]]

_TOY: Shapes = {
    "token_embd.weight": (32, 256),
    "blk.0.ffn_up.weight": (1024, 256),
    "output_norm.weight": (256,),
}
_TOY_TYPES: Types = {
    "token_embd.weight": "Q8_0",
    "blk.0.ffn_up.weight": "Q4_K",
    "output_norm.weight": "F32",
}


def tensors_of(shapes: Shapes) -> list[TensorInfo]:
    """Describe tensors as those of an F16 file: matrices F16, the rest F32."""
    return [
        TensorInfo(name, shape, TENSOR_TYPES["F16" if len(shape) > 1 else "F32"], 0, 0)
        for name, shape in shapes.items()
    ]


def phi3_shapes(
    hidden: int, feed_forward: int, layers: int, vocabulary: int, *, tied: bool = False
) -> Shapes:
    """The tensors of a Phi-3 with as many key and value heads as query heads, in a GGUF file."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, hidden)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (hidden,),
            f"blk.{layer}.attn_qkv.weight": (3 * hidden, hidden),
            f"blk.{layer}.attn_output.weight": (hidden, hidden),
            f"blk.{layer}.ffn_norm.weight": (hidden,),
            f"blk.{layer}.ffn_up.weight": (2 * feed_forward, hidden),
            f"blk.{layer}.ffn_down.weight": (hidden, feed_forward),
        }
    shapes["output_norm.weight"] = (hidden,)
    return shapes if tied else {**shapes, "output.weight": (vocabulary, hidden)}


def phi2_shapes(hidden: int, feed_forward: int, layers: int, vocabulary: int) -> Shapes:
    """The tensors of a Phi-2 in a GGUF file: queries, keys and values apart, and a bias for each matrix."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, hidden)}
    for layer in range(layers):
        sizes = {"attn_q": (hidden, hidden), "attn_k": (hidden, hidden), "attn_v": (hidden, hidden)}
        sizes |= {"attn_output": (hidden, hidden)}
        sizes |= {"ffn_up": (feed_forward, hidden), "ffn_down": (hidden, feed_forward)}
        for name, shape in sizes.items():
            shapes |= {f"blk.{layer}.{name}.weight": shape, f"blk.{layer}.{name}.bias": shape[:1]}
    return {**shapes, "output.weight": (vocabulary, hidden), "output.bias": (vocabulary,)}


def types_of(shapes: Shapes, n_layers: int, mix: str = "Q4_K_M") -> dict[str, str]:
    """The type of each tensor as the course's quantizer, and so llama.cpp, chooses it."""
    chosen = choose_types(tensors_of(shapes), find_mix(mix), n_layers=n_layers)
    return {name: chosen[name].name for name in shapes}


def types_by_name(names: Iterable[str], n_layers: int) -> dict[str, str]:
    """The types of a Q4_K_M file where all rows divide: what a tensor is called decides."""
    shapes = {name: (256, 256) if _is_matrix(name) else (256,) for name in names}
    return types_of(shapes, n_layers)


def _is_matrix(name: str) -> bool:
    return name.endswith("weight") and "_norm" not in name and "rope" not in name


def bits_of(shapes: Shapes, types: Types) -> float:
    """Bits per weight of a file."""
    n_weights = sum(prod(shape) for shape in shapes.values())
    n_bytes = sum(
        prod(shape[:-1]) * TENSOR_TYPES[types[name]].row_bytes(shape[-1]) for name, shape in shapes.items()
    )
    return 8 * n_bytes / n_weights


# ---- 09.1 ------------------------------------------------------------------------------------------------


@exercise("09.1", "Bits per weight", difficulty=1, minutes=10)
def bits_per_weight(answer: Answer) -> Mistake | None:
    """Hold `bits_per_weight(shapes, types)` against the sizes that a file would have."""
    mini = phi3_shapes(3072, 8192, 32, 32064)
    for where, shapes, types in (("a toy", _TOY, _TOY_TYPES), ("Phi-3.5-mini", mini, types_of(mini, 32))):
        expected = bits_of(shapes, types)
        got = answer(dict(shapes), dict(types))
        if not isinstance(got, int | float) or abs(got - expected) > 1e-6:
            return Mistake(
                f"bits per weight of {where}", f"{expected:.4f}", repr(got), _likely_bits(shapes, types, got)
            )
    return None


def _likely_bits(shapes: Shapes, types: Types, got: Any) -> str:
    if not isinstance(got, int | float):
        return "return one number"
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    of_types = [TENSOR_TYPES[type].bits_per_weight for type in types.values()]
    wrong = {
        "a mean over the tensors: large ones must count more": sum(of_types) / len(of_types),
        "these are bytes: a byte has 8 bits": bits_of(shapes, types) / 8,
        "norms are in the file, too": bits_of(matrices, types),
    }
    return next((text for text, value in wrong.items() if abs(value - got) < 1e-6), "")


# ---- 09.2 and 09.3 ---------------------------------------------------------------------------------------


@exercise("09.2", "Who gets more", difficulty=1, minutes=5, core=True)
def more_bits(answer: Answer) -> Mistake | None:
    """Hold `more_bits(layer, n_layers)` against the rule, for models of 4 to 40 layers."""
    for n_layers in (32, 4, 24, 40):
        expected = [layer for layer in range(n_layers) if _more(layer, n_layers)]
        got = [layer for layer in range(n_layers) if answer(layer, n_layers)]
        mistake = compare_values(
            f"the layers with more bits, of {n_layers}", expected, got, _likely_layers(n_layers, got)
        )
        if mistake is not None:
            return mistake
    return None


def _more(layer: int, n_layers: int) -> bool:
    return ends_and_every_third(Place(layer, n_layers, 1, 0, False, False))


def _likely_layers(n: int, got: list[int]) -> str:
    middle = range(n // 8, 7 * n // 8)
    wrong = {
        "the last eighth belongs to it, too: from layer 7 n / 8 on": [
            i for i in range(7 * n // 8) if _more(i, n)
        ],
        "in the middle every third layer is counted from the first eighth on, not from 0": [
            i for i in range(n) if i not in middle or i % 3 == 2
        ],
        "of three layers in the middle the last one has more, remainder 2": [
            i for i in range(n) if i not in middle or (i - n // 8) % 3 == 0
        ],
        "the middle has some, too: every third layer": [i for i in range(n) if i not in middle],
        "whole numbers: n // 8, as C divides": [
            i for i in range(n) if i < n / 8 or i >= 7 * n / 8 or (i - n / 8) % 3 == 2
        ],
    }
    return next((text for text, layers in wrong.items() if layers == got), "")


@exercise("09.3", "The policy of Q4_K_M", difficulty=3, minutes=20, core=True)
def q4_k_m(answer: Answer) -> Mistake | None:
    """Hold `q4_k_m(names, n_layers)` against the types of Phi-3.5-mini, Phi-4-mini and Phi-2."""
    models = {
        "Phi-3.5-mini": (phi3_shapes(3072, 8192, 32, 32064), 32),
        "Phi-4-mini (no output matrix)": (phi3_shapes(3072, 8192, 32, 200064, tied=True), 32),
        "Phi-2": (phi2_shapes(2560, 10240, 32, 51200), 32),
    }
    for model, (shapes, n_layers) in models.items():
        expected = types_of(shapes, n_layers)
        got = answer(list(shapes), n_layers)
        if not isinstance(got, dict):
            return Mistake(f"what comes back for {model}", "a dict, name -> type", repr(got))
        for name, type in expected.items():
            if got.get(name) != type:
                likely = _likely_type(name, type, got.get(name))
                return Mistake(f"{model}: {name}", type, str(got.get(name, "nothing")), likely)
    return None


def _likely_type(name: str, expected: str, got: str | None) -> str:
    if got is None:
        return "every name has a type in the result"
    if expected == "F32":
        return "norms and biases stay F32: only names that end in weight are quantized, and no norms"
    if name == "token_embd.weight":
        return "without output.weight the embedding makes the logits, too, and has its type: Q6_K"
    if name == "output.weight":
        return "output.weight has Q6_K: each of its errors is an error of a logit"
    if "attn_qkv" in name or "attn_v" in name:
        return "attn_v and attn_qkv: Q6_K where more_bits says so; queries and keys alone do not get more"
    if "ffn_down" in name:
        return (
            "ffn_down: Q6_K where more_bits says so; the layer is the number between the dots, all its digits"
        )
    return "this one has the default, Q4_K"


# ---- 09.4 ------------------------------------------------------------------------------------------------


@exercise("09.4", "Where rows do not divide", difficulty=2, minutes=10)
def type_that_fits(answer: Answer) -> Mistake | None:
    """Hold `type_that_fits(columns, wanted)` against the course's choice."""
    for wanted in ("Q4_K", "Q6_K", "Q5_K", "Q3_K", "IQ2_XXS", "Q8_0", "Q4_0"):
        for columns in (256, 2560, 96, 288, 100):
            expected = fallback(tensors_of({"x.weight": (2, columns)})[0], wanted).name
            got = answer(columns, wanted)
            likely = {
                wanted: f"{columns} is no multiple of {TENSOR_TYPES[wanted].block}, the block of {wanted}",
                "F16": "first the smaller block, then F16",
            }.get(got, f"a smaller block has to divide {columns}, too; if it does not, F16")
            mistake = compare_values(f"{wanted} in rows of {columns}", expected, got, likely)
            if mistake is not None:
                return mistake
    return None


# ---- 09.5 ------------------------------------------------------------------------------------------------

_BUDGETS: dict[str, tuple[Costs, Costs, int]] = {
    "two small steps are worth more than a large one": (
        {"a": {"low": 9.0, "high": 1.0}, "b": {"low": 8.0, "high": 1.0}, "c": {"low": 7.0, "high": 1.0}},
        {"a": {"low": 10, "high": 50}, "b": {"low": 10, "high": 15}, "c": {"low": 10, "high": 30}},
        70,
    ),
    "the best step does not fit": (
        {"a": {"low": 9.0, "high": 1.0}, "b": {"low": 2.0, "high": 1.0}},
        {"a": {"low": 10, "high": 20}, "b": {"low": 10, "high": 14}},
        25,
    ),
    "three types each": (
        {name: {"low": big, "mid": big / 4, "high": big / 64} for name, big in (("a", 8.0), ("b", 4.0), ("c", 1.0))},
        {name: {"low": 20, "mid": 30, "high": 60} for name in "abc"},
        140,
    ),
    "no room at all": (
        {"a": {"low": 9.0, "high": 1.0}, "b": {"low": 2.0, "high": 1.0}},
        {"a": {"low": 10, "high": 20}, "b": {"low": 10, "high": 14}},
        20,
    ),
}  # fmt: skip


def spend(damage: Costs, sizes: Costs, budget: float) -> dict[str, str]:
    """Choose a type for each tensor: the smallest first, then the step that helps most for a byte, again and again.

    damage  tensor -> type -> harm
    sizes   tensor -> type -> bytes
    budget  bytes of all tensors together; where the smallest types need more, they are what comes out
    """
    mix = {name: min(of, key=of.__getitem__) for name, of in sizes.items()}
    left = budget - sum(sizes[name][type] for name, type in mix.items())
    while steps := _steps(mix, damage, sizes, left):
        _, name, type = max(steps)
        left -= sizes[name][type] - sizes[name][mix[name]]
        mix[name] = type
    return mix


def _steps(mix: Types, damage: Costs, sizes: Costs, left: float) -> list[tuple[float, str, str]]:
    """List what can be afforded: (gain a byte, tensor, its new type)."""
    steps = []
    for name, now in mix.items():
        for type, size in sizes[name].items():
            cost, gain = size - sizes[name][now], damage[name][now] - damage[name][type]
            if 0 < cost <= left and gain > 0:
                steps.append((gain / cost, name, type))
    return steps


@exercise("09.5", "A mix of your own", difficulty=3, minutes=20, core=True)
def best_mix(answer: Answer) -> Mistake | None:
    """Let `best_mix(damage, sizes, budget)` spend small budgets, and compare what harm remains."""
    for where, (damage, sizes, budget) in _BUDGETS.items():
        expected = spend(damage, sizes, budget)
        got = answer(
            {n: dict(of) for n, of in damage.items()}, {n: dict(of) for n, of in sizes.items()}, budget
        )
        if not isinstance(got, dict) or got.keys() != expected.keys():
            likely = "return the mix: every tensor has a type in it, from the first on"
            return Mistake(where, "a dict with a type for each tensor", repr(got), likely)
        spent = sum(sizes[name].get(type, 0) for name, type in got.items())
        if spent > budget:
            return Mistake(
                where,
                f"at most {budget:,} bytes",
                f"{spent:,} bytes: {got}",
                "take only steps whose cost is not more than what is left",
            )
        harm = {
            who: sum(damage[n][t] for n, t in mix.items()) for who, mix in (("us", expected), ("you", got))
        }
        if harm["you"] > harm["us"] * (1 + 1e-9):
            return Mistake(
                where,
                f"harm {harm['us']:g}: {expected}",
                f"harm {harm['you']:g}: {got}",
                "compare gain / cost, not gain; a step that is too dear does not end the search",
            )
    return None
