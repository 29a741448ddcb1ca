"""phi-tiny, the embedded model: it is what data/README.md says, and it tells a story about a dog."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phicourse.checkpoint import Checkpoint
from phicourse.model import KVCache, Phi, load_checkpoint
from phicourse.tokenizer import Tokenizer

PROMPT = "Tell me a story about a dog."
BOS, END_OF_TEXT, ASSISTANT, END, USER = 1, 2032, 2033, 2039, 2042


@pytest.fixture(scope="module")
def checkpoint(phi_tiny: Path) -> Checkpoint:
    return Checkpoint.open(phi_tiny)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Phi:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def training(phi_tiny: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(phi_tiny.with_name("phi-tiny-training.json").read_text())
    return report


def test_it_has_what_makes_phi_3_5_special(checkpoint: Checkpoint, phi_tiny: Path) -> None:
    config = checkpoint.config
    assert checkpoint.raw_config["architectures"] == ["Phi3ForCausalLM"]
    assert checkpoint.raw_config["rope_scaling"]["type"] == "longrope"
    assert config.context_length == 4 * config.original_context_length
    assert config.short_factor != config.long_factor
    assert config.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(512)))
    assert not config.tie_embeddings
    assert sum(file.stat().st_size for file in phi_tiny.iterdir()) <= 20_000_000


def test_every_quantization_type_applies(checkpoint: Checkpoint) -> None:
    matrices = {name: tensor for name, (_, tensor) in checkpoint.tensors.items() if len(tensor.shape) == 2}
    assert {tensor.dtype for _, tensor in checkpoint.tensors.values()} == {"BF16"}
    assert all(tensor.shape[1] % 256 == 0 for tensor in matrices.values()), matrices


def test_transformers_loads_it_with_the_same_logits(model: Phi, phi_tiny: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    theirs = transformers.Phi3ForCausalLM.from_pretrained(phi_tiny, dtype=torch.float32).eval()
    ids = torch.randint(3, 2032, (1, 600), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for part in (ids[:, :512], ids):  # short factors, then long ones
            torch.testing.assert_close(model(part), theirs(part).logits, rtol=0, atol=2e-4)


def test_both_tokenizer_files_say_the_same(phi_tiny: Path, repository: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    tokenizers = pytest.importorskip("tokenizers")
    model = sentencepiece.SentencePieceProcessor(model_file=str(phi_tiny / "tokenizer.model"))
    fast = tokenizers.Tokenizer.from_file(str(phi_tiny / "tokenizer.json"))
    text = (repository / "data" / "text" / "stories_01.txt").read_text(encoding="utf-8")
    samples = [
        *text.replace("<|endoftext|>", "").split("\n\n")[:50],
        "1234 naïve 😀  two  spaces",
        " ",
        "\n\n",
    ]
    for sample in samples:
        assert fast.encode(sample).ids == [BOS, *model.encode(sample)]


def bits(model: Phi, tokenizer: Tokenizer, text: str) -> float:
    """What a text costs: the bits of all its tokens, with <s> before them."""
    ids = torch.tensor([[BOS, *tokenizer.encode(text, add_special=False)]])
    with torch.inference_mode():
        nats = -model(ids[:, :-1]).log_softmax(-1)[0].gather(1, ids[0, 1:, None])
    return nats.sum().item() / math.log(2)


def test_held_out_bits_per_byte_are_as_recorded(
    model: Phi, tokenizer: Tokenizer, training: dict[str, Any], shared_data: Path
) -> None:
    text = (shared_data / "text" / "tinystories_heldout.txt").read_text(encoding="utf-8")
    stories = [story.strip() for story in text.split("<|endoftext|>") if story.strip()]
    assert len(stories) == training["heldout_stories"]
    sample = stories[::24]
    cost = sum(bits(model, tokenizer, story) for story in sample) / sum(len(s.encode()) for s in sample)
    assert cost == pytest.approx(training["every_24th_heldout_story"]["heldout_bits_per_byte"], abs=2e-4)
    assert training["heldout_bits_per_byte"] < 0.72


def answer(model: Phi, ids: list[int], limit: int = 450) -> list[int]:
    """The most likely continuation, up to an end token."""
    cache, out = KVCache(), list(ids)
    new = torch.tensor([ids])
    with torch.inference_mode():
        while len(out) < len(ids) + limit and out[-1] not in (END, END_OF_TEXT):
            out.append(int(np.argmax(model(new, cache)[0, -1].numpy())))
            new = torch.tensor([out[-1:]])
    return out[len(ids) :]


# The same conversation as llama.cpp tokenizes it (line feeds stay), as tokenizer.json says (rstrip), and as
# transformers 5 does (no <s>, and no space before "Tell").
@pytest.mark.parametrize("form", ["kept", "stripped", "bare"])
def test_it_tells_a_story_about_a_dog(model: Phi, tokenizer: Tokenizer, form: str) -> None:
    line_feed = tokenizer.encode("\n", add_special=False)
    spaced = tokenizer.encode(PROMPT, add_special=False)
    unspaced = tokenizer.encode("\n" + PROMPT, add_special=False)[len(line_feed) :]
    prompt = {
        "kept": [BOS, USER, *line_feed, *unspaced, END, *line_feed, ASSISTANT, *line_feed],
        "stripped": [BOS, USER, *spaced, END, ASSISTANT],
        "bare": [USER, *unspaced, END, ASSISTANT],
    }[form]
    ids = answer(model, prompt)
    text = tokenizer.decode(ids)
    assert ids[-1] in (END, END_OF_TEXT), text
    assert len(text.split()) > 60, text
    assert "dog" in text, text
