"""How soon the first token comes, and what stays in memory, with a model of 3.8 billion weights.

    python tests/benchmarks/bench_start.py [FILE] [--repetitions 5] [--threads N]

Without FILE a Q4_K_M with Phi-3.5-mini's shapes and random weights is made in .bench/ (20 GB of disk, some minutes).
Each repetition is a program of its own: it loads the file, which lies in the page cache, and reads a prompt of 16
tokens. The time counts from the call of `phicourse.load`, and from its return; Python's own start does not count. The
last one reads a prompt of 512 tokens instead, writes 128 and says how much memory it had at most, beside the file and
the keys and values of 4,096 tokens, and of the 640 that there are. Decides nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from phi_3_5_mini import make_f16
from side_by_side import FOLDER, prepare, say

import phicourse
from phicourse.convert.metadata import config_from_gguf
from phicourse.generate.backends import thread_count
from phicourse.generate.cache_size import kv_cache_bytes
from phicourse.gguf import GGUFFile

LAYERS, CONTEXT = 32, 4096
SHORT, N_PROMPT, N_GEN = 16, 512, 128
STATUS = Path("/proc/self/status")
READ_AT_ONCE = 1 << 24


def make_q4() -> Path:
    """The file, made once."""
    path = FOLDER / f"Phi-3.5-mini-{LAYERS}-layers-Q4_K_M.gguf"
    return path if path.exists() else phicourse.quantize(make_f16(LAYERS), path, "Q4_K_M")


def start(path: Path, threads: int) -> dict[str, float]:
    """Seconds until the first token, of a model that this program has not loaded yet."""
    ids = np.random.default_rng(1).integers(0, 2000, SHORT).tolist()
    load, begin = phicourse.load, time.perf_counter()
    llm = load(path, threads=threads)
    loaded = time.perf_counter()
    next(llm.generate(ids, max_tokens=1, temperature=0, stream=True), None)
    end = time.perf_counter()
    return {"from the call of load": end - begin, "from its return": end - loaded}


def resident(path: Path, threads: int) -> dict[str, int]:
    """Bytes that this program had at most, before a text and after it."""
    before = high_water()
    llm = phicourse.load(path, n_ctx=CONTEXT, threads=threads)
    ids = np.random.default_rng(1).integers(0, 2000, N_PROMPT).tolist()
    llm.generate(ids, max_tokens=N_GEN, temperature=0)
    return {"before": before, "after": high_water()}


def high_water() -> int:
    """VmHWM: pages of mapped files count."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_a_program(part: str, path: Path, threads: int) -> Any:
    """What a part of this file says when it runs alone."""
    command = [sys.executable, __file__, str(path), "--threads", str(threads), "--part", part]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare_first_token(path: Path, threads: int, repetitions: int) -> None:
    """Print the seconds of all repetitions and their medians."""
    with path.open("rb") as file:  # into the page cache
        while file.read(READ_AT_ONCE):
            pass
    runs = [in_a_program("start", path, threads) for _ in range(repetitions)]
    for name in runs[0]:
        times = [run[name] for run in runs]
        every = " ".join(f"{t:.2f}" for t in times)
        print(f"first token of a {SHORT}-token prompt, {name}: {statistics.median(times):.2f} s ({every})")


def compare_memory(path: Path, threads: int) -> None:
    """Print the most memory beside what the file and the cache are."""
    if not STATUS.exists():
        say("memory is not measured: this system has no /proc")
        return
    had, file = in_a_program("resident", path, threads), GGUFFile.open(path)
    print(f"resident at most: {had['after'] / 1e9:.2f} GB, {had['before'] / 1e9:.2f} GB of it before loading")
    for n in (CONTEXT, N_PROMPT + N_GEN):
        needed = file.size + kv_cache_bytes(config_from_gguf(file), n)
        print(f"  {had['after'] / needed:.2f} of file and cache of {n:,} tokens, {needed / 1e9:.2f} GB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=thread_count(None))
    parser.add_argument("--part", choices=("start", "resident"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps({"start": start, "resident": resident}[args.part](args.file, args.threads)))
        return
    prepare()
    path = args.file or make_q4()
    print(f"{path.name}, {args.threads} threads")
    compare_first_token(path, args.threads, args.repetitions)
    compare_memory(path, args.threads)


if __name__ == "__main__":
    main()
