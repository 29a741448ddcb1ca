"""Our converter and llama.cpp's on a checkpoint with Phi-3.5-mini's shapes: time, memory, the same bytes.

    python tests/benchmarks/bench_convert.py [--layers 32] [--repetitions 2]

Makes 3.8 billion random weights in BF16 (7.6 GB, kept in .bench/), then lets each program convert them to F16, and
ours go on to Q4_K_M in one pass. Every output is deleted once it has been compared. Prints speeds and ratios;
decides nothing. The config and the tokenizer come from ../shared/data/phi.

Memory is the most that a program had resident, as the kernel counts it (`ru_maxrss`): pages of files that it maps
count, what it reads or writes without mapping does not. Both are one process with threads.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
from bench_vs_llama_cpp import FOLDER, REPOSITORY, Row, run, say

sys.path.insert(0, str(REPOSITORY / "tests" / "convert"))

from small_checkpoints import Shapes, phi3_shapes

PHI = REPOSITORY.parent / "shared" / "data" / "phi"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")
FIRST_SHARD = 0.65  # of the weights, as in the real one: 4.97 and 2.67 GB
CHUNK = 1 << 22  # weights that are made at once
WEIGHT_BYTES = 2


def make_checkpoint(layers: int) -> Path:
    """The folder, with an index once it is complete."""
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


def look_at_the_disk(needed: int) -> None:
    """End here where the disk is too full."""
    free = shutil.disk_usage(FOLDER).free
    if free < 1.1 * needed:
        sys.exit(f"{FOLDER}: {needed / 1e9:.1f} GB are needed, the disk has {free / 1e9:.1f} GB free")


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


@dataclass
class Program:
    """A command that writes a file, and what was measured, one number a run.

    seconds   from its start to its end; on_disk: until all that it wrote is on the disk
    memory    bytes, the most of all runs
    digest    SHA-256 of what it wrote
    """

    command: list[str]
    out: Path
    seconds: list[float] = field(default_factory=list)
    on_disk: list[float] = field(default_factory=list)
    memory: int = 0
    n_bytes: int = 0
    digest: str = ""

    def measure(self) -> None:
        """Run it once, and delete what it wrote."""
        os.sync()  # what was written before is not its load
        start = time.perf_counter()
        memory = run(self.command)
        self.seconds.append(time.perf_counter() - start)
        os.sync()
        self.on_disk.append(time.perf_counter() - start)
        self.memory = max(self.memory, memory)
        self.n_bytes = self.out.stat().st_size
        if not self.digest:
            with self.out.open("rb") as file:
                self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.out.unlink()
        say(f"  {self.out.name}: {self.seconds[-1]:.1f} s, {memory / 1e6:.0f} MB")


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="fewer layers: a smaller model, for a try")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument(
        "--converter", type=Path, default=REPOSITORY / ".oracles/llama.cpp/convert_hf_to_gguf.py"
    )
    args = parser.parse_args()
    for needed, what in ((args.converter, "make oracles fetches it"), (PHI, "it is not in the repository")):
        if not needed.exists():
            sys.exit(f"{needed} is missing: {what}")
    FOLDER.mkdir(exist_ok=True)
    if (load := os.getloadavg()[0]) > 0.5:
        say(f"other programs keep {load:.1f} cores busy: the ratios will be less reliable")
    folder = make_checkpoint(args.layers)
    programs = theirs_and_ours(folder, args.converter)
    for i in range(args.repetitions):
        say(f"run {i + 1} of {args.repetitions}")
        for program in programs:
            program.measure()
    report(*programs)


def theirs_and_ours(folder: Path, converter: Path) -> tuple[Program, Program, Program]:
    """Their converter to F16, ours, and ours to Q4_K_M."""
    theirs, f16, q4 = (FOLDER / f"{name}.gguf" for name in ("theirs-F16", "ours-F16", "ours-Q4_K_M"))
    python, checkpoint = sys.executable, str(folder)
    phicourse = [python, "-m", "phicourse"]
    return (
        Program([python, str(converter), checkpoint, "--outtype", "f16", "--outfile", str(theirs)], theirs),
        Program([*phicourse, "convert", checkpoint, "-o", str(f16), "--compat", "--force"], f16),
        Program([*phicourse, "quantize", checkpoint, str(q4), "Q4_K_M", "--force"], q4),
    )


def report(theirs: Program, f16: Program, q4: Program) -> None:
    """Print the table."""
    size = f16.n_bytes / 1e6
    rows = [
        Row("BF16 -> F16", "MB/s of F16", size, f16.seconds, theirs.seconds),
        Row("the same, on the disk", "MB/s of F16", size, f16.on_disk, theirs.on_disk),
        Row("-> Q4_K_M / their F16", "MB/s of F16", size, q4.seconds, theirs.seconds),
        Row("the same, on the disk", "MB/s of F16", size, q4.on_disk, theirs.on_disk),
    ]
    print(f"{size / 1e3:.2f} GB of F16, {len(theirs.seconds)} runs, medians")
    print(f"{'':24s}{'ours':>11s}{'llama.cpp':>11s} {'':12s}{'ratio':>8s}{'best':>8s}")
    for row in rows:
        print(row)
    for name, program in (("llama.cpp F16", theirs), ("ours F16", f16), ("ours Q4_K_M", q4)):
        seconds = statistics.median(program.seconds)
        print(f"{name:14s}{seconds:9.1f} s, {program.memory / 1e6:5.0f} MB resident at most")
    print("the same bytes" if f16.digest == theirs.digest else "THE BYTES DIFFER")


if __name__ == "__main__":
    main()
