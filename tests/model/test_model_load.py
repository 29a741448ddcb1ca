"""Loading the readable Phi: from a checkpoint folder, and from GGUF files with full and quantized weights."""

from pathlib import Path

import pytest
import torch
from random_phi import write_random_phi

from phicourse import gguf
from phicourse.checkpoint import Checkpoint
from phicourse.convert import convert
from phicourse.errors import ModelError
from phicourse.model import Phi, load_checkpoint, load_gguf
from phicourse.quantize.files import quantize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    return write_random_phi(tmp_path_factory.mktemp("checkpoint") / "random", phi_tiny, layers=2)


def logits(model: Phi) -> torch.Tensor:
    ids = torch.randint(0, 2048, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out: torch.Tensor = model(ids)
    return out


def test_a_checkpoint_loads_as_safetensors_reads_it(folder: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = load_checkpoint(Checkpoint.open(folder))
    for name, weight in safetensors.load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(model.get_parameter(name).data, weight.float(), rtol=0, atol=0)
    assert model.training is False


def test_stories260k_is_what_transformers_makes_of_it(stories260k: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    theirs = transformers.Phi3ForCausalLM.from_pretrained(stories260k).eval()
    ours = load_checkpoint(Checkpoint.open(stories260k))
    ids = torch.randint(0, 512, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("outtype", ["f32", "bf16"])
def test_a_gguf_file_without_loss_gives_the_checkpoint_s_logits(
    folder: Path, tmp_path: Path, outtype: str
) -> None:
    """The weights are BF16, so F32 and BF16 keep every bit; float32 epsilon and factors cost a little."""
    path = convert(folder, tmp_path / "random.gguf", outtype, progress=False)
    with gguf.GGUFFile.open(path) as file:
        model = load_gguf(file)
    torch.testing.assert_close(
        logits(model), logits(load_checkpoint(Checkpoint.open(folder))), rtol=0, atol=1e-4
    )


def test_quantized_weights_come_near(folder: Path, tmp_path: Path) -> None:
    path = quantize(folder, tmp_path / "random-Q8_0.gguf", "Q8_0", progress=False)
    with gguf.GGUFFile.open(path) as file:
        rounded = logits(load_gguf(file))
    exact = logits(load_checkpoint(Checkpoint.open(folder)))
    error = (rounded - exact).square().mean() / exact.square().mean()
    assert 0 < error < 1e-3


def test_half_precision_and_its_logits(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    model = load_checkpoint(checkpoint, torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert logits(model).dtype == torch.float32


def test_a_folder_without_an_output_head_ties_it(folder: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    weights = safetensors.load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    model = load_checkpoint(Checkpoint.open(tmp_path))
    assert model.config.tie_embeddings
    assert logits(model).shape == (1, 40, 2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.1.mlp.down_proj.weight": None}, "has no tensor model.layers.1.mlp.down_proj.weight"),
        (
            {"model.layers.2.mlp.down_proj.weight": (3, 3)},
            "unknown tensor model.layers.2.mlp.down_proj.weight",
        ),
        ({"model.norm.weight": (255,)}, r"model.norm.weight has the shape \(255,\), expected \(256,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Path, tmp_path: Path, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    weights = safetensors.load_file(folder / "model.safetensors")
    for name, shape in change.items():
        weights.pop(name, None)
        if shape is not None:
            weights[name] = torch.zeros(shape, dtype=torch.bfloat16)
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match=message):
        load_checkpoint(Checkpoint.open(tmp_path))
