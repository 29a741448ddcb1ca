"""Checkpoint folders with the real models' quirks and small random weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import TINY, Weights, WriteCheckpoint, random_weights, write_safetensors

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@pytest.fixture(scope="session")
def tokenizer_files(shared_data: Path) -> Path:
    """The real tokenizer of Phi-3-mini."""
    return shared_data / "phi" / "Phi-3-mini-4k-instruct"


@pytest.fixture(scope="session")
def write_checkpoint(tokenizer_files: Path) -> WriteCheckpoint:
    """Write a folder: `write_checkpoint(folder, config, weights, n_shards=1, tokenizer=None, **files)`."""

    def write(
        folder: Path,
        config: dict[str, Any],
        weights: Weights,
        n_shards: int = 1,
        tokenizer: Path | None = None,
        **files: str,
    ) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        for name in TOKENIZER_FILES:
            if ((tokenizer or tokenizer_files) / name).is_file():
                shutil.copy((tokenizer or tokenizer_files) / name, folder / name)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content)
        names = list(weights)
        if n_shards == 1:
            write_safetensors(folder / "model.safetensors", weights)
            return folder
        index = {}
        for i in range(n_shards):
            shard = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
            part = {name: weights[name] for name in names[i::n_shards]}
            write_safetensors(folder / shard, part)
            index |= dict.fromkeys(part, shard)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        return folder

    return write


@pytest.fixture(scope="session")
def real_config(shared_data: Path) -> Callable[..., dict[str, Any]]:
    """The config.json of a released model, made small: `real_config("Phi-3.5-mini-instruct", heads=1)`."""

    def read(model: str, heads: int = 1, kv_heads: int = 1, **changes: Any) -> dict[str, Any]:
        config = json.loads((shared_data / "phi" / model / "config.json").read_text())
        config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": 96 * heads}
        return config | {"intermediate_size": 128, "num_hidden_layers": 2} | changes

    return read


@pytest.fixture
def tiny(tmp_path: Path, stories260k: Path) -> Callable[..., Path]:
    """Write a very small checkpoint: `tiny(weights=None, **changes of config)` gives its folder."""

    def write(
        weights: Weights | None = None,
        folder: str = "tiny",
        base: dict[str, Any] = TINY,
        **changes: Any,
    ) -> Path:
        config = base | changes
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        shutil.copy(stories260k / "tokenizer.model", path)
        write_safetensors(path / "model.safetensors", random_weights(config) if weights is None else weights)
        return path

    return write
