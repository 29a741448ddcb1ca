"""Wrong answers to the exercises of notebook 04: the message must name the mistake that was made."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phicourse.checkpoint.config import parse_config
from phicourse.convert import convert, phi3
from phicourse.exercises import converter as check
from phicourse.exercises.exercise import Answer, Exercise
from phicourse.gguf import GGUFFile, GGUFWriter, TensorInfo

TARGETS = {rule.source: rule.target for rule in phi3.RULES}
Pairs = list[tuple[str, Any]]


@pytest.fixture(autouse=True)
def in_the_notebooks_folder(repository: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(repository / "notebooks")
    yield
    os.chdir(before)


def name_with(wrong: dict[str, str]) -> Answer:
    """Make an answer that is right but for some names."""

    def gguf_name(name: str) -> str:
        layer = "".join(filter(str.isdigit, name))
        general = name.replace(f".{layer}.", ".N.") if layer else name
        return (TARGETS | wrong)[general].replace(".N.", f".{layer}.")

    return gguf_name


def knows_every_name(name: str) -> str:
    try:
        return name_with({})(name)
    except KeyError:
        return name


def numbers_with(change: Callable[[Pairs], Pairs]) -> Answer:
    """Make an answer that is right but for a change."""

    def hyperparameters(config: dict[str, Any]) -> Pairs:
        pairs = [(key, value) for key, value, _ in phi3.hyperparameters(parse_config(config), 1)]
        return change([*pairs, ("general.quantization_version", 2)])

    return hyperparameters


def replaced(key: str, value: Callable[[Any], Any]) -> Callable[[Pairs], Pairs]:
    return lambda pairs: [(k, value(v) if k.endswith(key) else v) for k, v in pairs]


def scale_and_context(config: dict[str, Any]) -> tuple[float, float]:
    original = config["original_max_position_embeddings"]
    return config["max_position_embeddings"] / original, original


def factor_without_root(config: dict[str, Any]) -> float:
    scale, original = scale_and_context(config)
    return 1 + math.log(scale) / math.log(original) if scale > 1 else 1.0


def factor_of_a_shorter_context(config: dict[str, Any]) -> float:
    scale, original = scale_and_context(config)
    return math.sqrt(1 + math.log(scale) / math.log(original))


def files_with(
    change: Callable[[dict[str, Any], list[TensorInfo]], tuple[dict[str, Any], list[TensorInfo]]],
    weights: Callable[[str, Any], Any] = lambda name, w: w,
) -> Answer:
    """Make a converter whose file is right but for a change of its keys and tensors."""

    def answer(folder: Path, path: Path) -> None:
        with GGUFFile.open(
            convert(folder, path.with_name("right.gguf"), compat=True, progress=False)
        ) as file:
            metadata, tensors = change(dict(file.metadata), list(file.tensors.values()))
            with GGUFWriter(path, force=True) as writer:
                for key, pair in metadata.items():
                    writer.add(key, pair.value, pair.type, pair.element)
                for tensor in tensors:
                    writer.declare(tensor.name, tensor.shape, tensor.type)
                for tensor in tensors:
                    writer.write(tensor.name, weights(tensor.name, file.blocks(tensor.name)))
        path.with_name("right.gguf").unlink()

    return answer


def by_layer(tensor: TensorInfo) -> int:
    return int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else -1


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (check.gguf_name, lambda name: TARGETS[name].replace("N", "0"), "KeyError"),
        (
            check.gguf_name,
            lambda name: name_with({})(name).replace("blk.3.", "blk.0."),
            "number of the layer",
        ),
        (check.gguf_name, lambda name: name_with({})(name).removesuffix(".weight"), "end in .weight"),
        (
            check.gguf_name,
            name_with({"model.layers.N.mlp.gate_up_proj.weight": "blk.N.ffn_gate.weight"}),
            "phi3 calls it ffn_up",
        ),
        (
            check.gguf_name,
            name_with({"model.layers.N.post_attention_layernorm.weight": "blk.N.attn_post_norm.weight"}),
            "stands before the feed-forward",
        ),
        (check.gguf_name, knows_every_name, "nobody knows"),
        (check.stored_as, lambda name, shape: "F16", "a norm has one dimension"),
        (check.stored_as, lambda name, shape: "F32" if "norm" in name else "F16", "a bias has one dimension"),
        (check.stored_as, lambda name, shape: "F32" if len(shape) == 1 else "F16", "the router"),
        (check.to_f16, lambda weights: weights, "`.astype(np.float16)`"),
        (check.to_f16, lambda weights: weights.astype(np.float16), "np.isfinite"),
        (
            check.to_f16,
            lambda weights: np.where(np.abs(weights) < 2**-14, 0, weights).astype(np.float16),
            "fewer and fewer digits",
        ),
        (check.attention_factor, factor_without_root, "square root is missing"),
        (check.attention_factor, factor_of_a_shorter_context, "the factor is 1"),
        (check.attention_factor, lambda config: None, "return a number"),
        (
            check.hyperparameters,
            numbers_with(replaced("sliding_window", lambda v: v or None)),
            "write 0",
        ),
        (check.hyperparameters, numbers_with(replaced("dimension_count", lambda v: 128)), "size of a head"),
        (check.hyperparameters, numbers_with(replaced("freq_base", int)), "FLOAT32"),
        (check.hyperparameters, numbers_with(replaced("block_count", float)), "UINT32"),
        (check.hyperparameters, numbers_with(sorted), "in another order"),
        (check.hyperparameters, numbers_with(lambda pairs: pairs[:-1]), "those of the table"),
        (check.hyperparameters, numbers_with(dict), "a list of pairs"),
        (check.converter, lambda folder, path: None, "write to the path"),
        (check.converter, lambda folder, path: path.write_bytes(b"GGUF"), "leave the writing to GGUFWriter"),
        (
            check.converter,
            files_with(lambda metadata, tensors: (metadata, sorted(tensors, key=by_layer))),
            "layers.10 comes before layers.2",
        ),
        (
            check.converter,
            files_with(lambda metadata, tensors: (metadata, tensors[2:])),
            "LongRoPE's two before them",
        ),
        (
            check.converter,
            files_with(lambda metadata, tensors: (dict(sorted(metadata.items())), tensors)),
            "in another order",
        ),
        (
            check.converter,
            files_with(
                lambda metadata, tensors: (metadata, tensors),
                lambda name, w: w[::-1] if name == "blk.0.ffn_up.weight" else w,
            ),
            "blk.0.ffn_up.weight of phi-tiny",
        ),
    ],
)
def test_a_wrong_answer_is_told_its_mistake(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise(answer)
    message = capsys.readouterr().out
    assert message.startswith("✘") and said in message, message


def test_the_small_checkpoint_has_what_phi_tiny_lacks(tmp_path: Path) -> None:
    folder = check._small_checkpoint(tmp_path / "small", check._phi_tiny())
    with GGUFFile.open(convert(folder, tmp_path / "small.gguf", compat=True, progress=False)) as file:
        names = list(file.tensors)
    assert names.index("blk.10.attn_norm.weight") < names.index("blk.2.attn_norm.weight")
    assert "output.weight" not in names and not any("rope_factors" in name for name in names)
