"""Phi-3.5-mini's shapes with random weights: 3.8 billion of them, or a few layers for a try. Kept in .bench/.

The config and the tokenizer come from ../shared/data/phi.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
from side_by_side import FOLDER, REPOSITORY, look_at_the_disk, say

sys.path.insert(0, str(REPOSITORY / "tests" / "convert"))

from small_checkpoints import Shapes, phi3_shapes

import phicourse

PHI = REPOSITORY.parent / "shared" / "data" / "phi"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")
FIRST_SHARD = 0.65  # of the weights, as in the real one: 4.97 and 2.67 GB
CHUNK = 1 << 22  # weights that are made at once
WEIGHT_BYTES = 2


def make_checkpoint(layers: int) -> Path:
    """The folder with weights in BF16 and, once it is complete, an index; the disk has room for as much again."""
    if not PHI.exists():
        sys.exit(f"{PHI} is missing: it is not in the repository")
    config = json.loads((PHI / "Phi-3.5-mini-instruct" / "config.json").read_text())
    config["num_hidden_layers"] = layers
    folder, shapes = FOLDER / f"Phi-3.5-mini-{layers}-layers", phi3_shapes(config)
    n_bytes = WEIGHT_BYTES * sum(map(prod, shapes.values()))
    if (folder / "model.safetensors.index.json").exists():
        look_at_the_disk(n_bytes)
        return folder
    look_at_the_disk(2 * n_bytes)
    say(f"making {n_bytes / 1e9:.1f} GB of random weights in {folder.name} …")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER_FILES:
        shutil.copy(PHI / "Phi-3-mini-4k-instruct" / name, folder)
    index = {}
    for i, part in enumerate(in_two(shapes), 1):
        shard = folder / f"model-{i:05d}-of-00002.safetensors"
        write_shard(shard, part, np.random.default_rng(i))
        index |= dict.fromkeys(part, shard.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def in_two(shapes: Shapes) -> list[Shapes]:
    """Share the tensors out, in the order in which the model uses them: its end is in the second file."""
    last = ("lm_head.weight", "model.norm.weight")
    names = [name for name in shapes if name not in last] + [name for name in last if name in shapes]
    limit, so_far = FIRST_SHARD * sum(map(prod, shapes.values())), 0
    parts: list[Shapes] = [{}, {}]
    for name in names:
        so_far += prod(shapes[name])
        parts[so_far > limit][name] = shapes[name]
    return parts


def write_shard(path: Path, shapes: Shapes, rng: np.random.Generator) -> None:
    """Write random tensors, a chunk at a time: matrices around 0, vectors 1."""
    header, at = {}, 0
    for name, shape in sorted(shapes.items()):
        n_bytes = WEIGHT_BYTES * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    head = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, shape in sorted(shapes.items()):
            for chunk in random_weights(shape, rng):
                file.write(chunk.data)


def random_weights(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The bits of BF16 weights, flat, some at a time."""
    if len(shape) == 1:
        yield np.full(shape, 0x3F80, "<u2")
        return
    for start in range(0, prod(shape), CHUNK):
        floats = rng.standard_normal(min(CHUNK, prod(shape) - start), np.float32) * np.float32(0.02)
        yield (floats.view(np.uint32) >> 16).astype("<u2")


def make_f16(layers: int) -> Path:
    """The same as an F16 GGUF file, by our own converter, which gives llama.cpp's bytes."""
    path = FOLDER / f"Phi-3.5-mini-{layers}-layers-F16.gguf"
    if not path.exists():
        checkpoint = make_checkpoint(layers)
        say(f"converting it to {path.name} …")
        phicourse.convert(checkpoint, path, "f16", progress=False)
    return path
