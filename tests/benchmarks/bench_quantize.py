"""Our quantizers and llama.cpp's, in turns: every type for itself, or a whole model with Phi-3.5-mini's shapes.

    python tests/benchmarks/bench_quantize.py [--types Q4_K IQ3_S] [--repetitions 5]
    python tests/benchmarks/bench_quantize.py --model [--layers 32] [--repetitions 2] [--threads 2]

The first takes rows of float32 from memory with one thread and counts processor time, without and with the
importance of columns. Errors are relative: the root of Σ (found - x)² / Σ x², with the importance as weights in both
sums where a type cannot do without; our bytes are ggml's, so one number stands for both, beside that of
`--search best`. The second takes a file of 7.6 GB, made in .bench/ once (20 GB of disk), to Q4_K_M, each side as
a program of its own. Prints speeds and ratios; ends with an error only where bytes differ.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from phi_3_5_mini import make_f16
from side_by_side import (
    FOLDER,
    HEADER,
    REPOSITORY,
    Program,
    Row,
    compare_bytes,
    in_turns,
    look_at_the_disk,
    measure_in_turns,
    prepare,
    say,
    seconds,
)

sys.path.insert(0, str(REPOSITORY / "tests" / "quantize"))

from quantize_inputs import NEED_IMPORTANCE, TAKE_IMPORTANCE, TYPES
from quantize_oracles import ggml_quantize

from phicourse.checkpoint import Checkpoint
from phicourse.evaluate.products import read_bandwidth
from phicourse.gguf import TENSOR_TYPES
from phicourse.quantize import MIXES, dequantize_rows, quantize_rows

BLOCK_TYPES = sorted(
    (name for name in TYPES if TENSOR_TYPES[name].block > 1),
    key=lambda name: (-TENSOR_TYPES[name].bits_per_weight, name),
)
COLUMNS = 3072  # of a Phi-3.5
MOST_ROWS = 3072
TURN = 0.2  # seconds that llama.cpp shall have to do at once; fewer rows where it is slow
HEAVY_ROWS, TINY_ROWS = 16, 64  # whose errors are measured: 196 kB each, for `best` is slow
TINY_MATRIX = "model.layers.1.mlp.down_proj.weight"
MIX = "Q4_K_M"
SMALLER = 0.35  # a file in this mix, as a part of the F16 file, at most


@dataclass(frozen=True)
class Layer:
    """Rows of weights (rows, n) and how much an error in each column counts (n,), all float32."""

    rows: np.ndarray
    importance: np.ndarray


def main() -> None:
    """Measure the types, or the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", type=str.upper, choices=BLOCK_TYPES, default=BLOCK_TYPES)
    parser.add_argument("--model", action="store_true", help="a whole model instead of the types")
    parser.add_argument("--layers", type=int, default=32, help="fewer layers: a smaller model, for a try")
    parser.add_argument("--repetitions", type=int, help="default: 5, of the model 2")
    parser.add_argument("--threads", type=int, default=2, help="for the model; the types have one")
    args = parser.parse_args()
    prepare()
    if args.model:
        bench_model(args.layers, args.threads, args.repetitions or 2)
    else:
        bench_types(args.types, args.repetitions or 5)


# ---- every type ------------------------------------------------------------------------------------------


def bench_types(names: Iterable[str], repetitions: int) -> None:
    """Print a line for each type."""
    large, heavy, tiny = heavy_layer(MOST_ROWS), heavy_layer(HEAVY_ROWS), tiny_layer()
    print(f"one thread, processor time, {repetitions} repetitions, medians; MB of float32 a second")
    print(
        f"{'':13s}{'without importance':^24s}{'with importance':^24s}{'error, heavy tails':^20s}{'phi-tiny':^20s}"
    )
    speed_cells, error_cells = f"{'ours':>8s}{'ggml':>8s}{'ratio':>8s}", f"{'ours=ggml':>11s}{'best':>9s}"
    print(f"{'type':8s}{'bits':>5s}{2 * speed_cells}{2 * error_cells}")
    for name in names:
        speeds = [speed(name, large, weighted, repetitions) for weighted in (False, True)]
        pairs = [errors(name, layer) for layer in (heavy, tiny)]
        cells = speeds + [f"{reference:11.3%}{best:9.3%}" for reference, best in pairs]
        print(f"{name:8s}{TENSOR_TYPES[name].bits_per_weight:5.2f}{''.join(cells)}", flush=True)
    print(f"memory: {read_bandwidth(1) / 1e6:.0f} MB/s read by one thread at best")


def heavy_layer(n_rows: int) -> Layer:
    """Weights with large ones among them, in columns of different size."""
    rng = np.random.default_rng(5)
    scales, importance = 0.02 * rng.gamma(4, 0.25, COLUMNS), rng.gamma(2, size=COLUMNS)
    rows = rng.standard_t(4, (n_rows, COLUMNS)).astype(np.float32) * scales.astype(np.float32)
    return Layer(rows, importance.astype(np.float32))


def tiny_layer() -> Layer:
    """Rows of a real matrix; nobody measured how much its columns count."""
    rows = Checkpoint.open(REPOSITORY / "data" / "phi-tiny").as_float32(TINY_MATRIX)[:TINY_ROWS]
    importance = np.random.default_rng(6).gamma(2, size=rows.shape[1])
    return Layer(np.ascontiguousarray(rows), importance.astype(np.float32))


def functions(
    name: str, rows: np.ndarray, importance: np.ndarray | None
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Ours and theirs, ready to run."""
    return (
        lambda: quantize_rows(rows, name, importance=importance, backend="native", threads=1),
        lambda: ggml_quantize(rows, name, importance),
    )


def speed(name: str, layer: Layer, weighted: bool, repetitions: int) -> str:
    """Three cells of the table; empty where a type cannot do without importance, or knows none."""
    if name in NEED_IMPORTANCE if not weighted else name not in TAKE_IMPORTANCE:
        return " " * 24
    importance = layer.importance if weighted else None
    rows = layer.rows[: rows_of_a_turn(name, layer.rows, importance)]
    ours, theirs = functions(name, rows, importance)
    if not np.array_equal(ours(), theirs()):
        sys.exit(f"{name}: THE BYTES DIFFER")
    row = Row(name, "MB/s", rows.nbytes / 1e6, *in_turns(ours, theirs, repetitions, time.thread_time))
    return "".join(f"{speed:8.0f}" for speed in row.speeds) + f"{row.ratio:7.1f}×"


def rows_of_a_turn(name: str, rows: np.ndarray, importance: np.ndarray | None) -> int:
    """How many rows keep llama.cpp busy for a turn."""
    few = rows[:4]
    _, theirs = functions(name, few, importance)
    theirs()  # it prepares its grids
    return min(max(4, int(len(few) * TURN / seconds(theirs, time.thread_time))), len(rows))


def errors(name: str, layer: Layer) -> tuple[float, float]:
    """The relative error of ours, which is theirs, and of `--search best`."""
    importance = layer.importance if name in NEED_IMPORTANCE else None
    ours, theirs = (quantize() for quantize in functions(name, layer.rows, importance))
    if not np.array_equal(ours, theirs):
        sys.exit(f"{name}: THE BYTES DIFFER")
    best = quantize_rows(layer.rows, name, importance=importance, search="best")
    of_ours, of_best = (relative_error(name, layer.rows, packed, importance) for packed in (ours, best))
    return of_ours, of_best


def relative_error(name: str, rows: np.ndarray, packed: np.ndarray, importance: np.ndarray | None) -> float:
    """Root of Σ w (found - x)² / Σ w x²; w is 1 where there is no importance."""
    x, weights = rows.astype(np.float64), 1.0 if importance is None else importance.astype(np.float64)
    difference = dequantize_rows(packed, name) - x
    return float(np.sqrt((weights * difference**2).sum() / (weights * x**2).sum()))


# ---- a model ---------------------------------------------------------------------------------------------


def bench_model(layers: int, threads: int, repetitions: int) -> None:
    """F16 -> Q4_K_M with both, each as a program from its start to its end."""
    f16 = make_f16(layers)
    size = f16.stat().st_size
    look_at_the_disk(SMALLER * size)
    say(f"reading {f16.name}, so that nobody waits for the disk …")
    with f16.open("rb") as file:
        while file.read(1 << 24):
            pass
    ours, theirs = ours_and_theirs(f16, threads)
    measure_in_turns((ours, theirs), repetitions)
    print(f"{size / 1e9:.2f} GB of F16 to {MIX}, {threads} threads, {repetitions} runs, medians")
    print(HEADER)
    print(Row(f"F16 -> {MIX}", "MB/s of F16", size / 1e6, ours.seconds, theirs.seconds))
    print(Row("the same, on the disk", "MB/s of F16", size / 1e6, ours.on_disk, theirs.on_disk))
    print(ours.summary("ours"), theirs.summary("llama.cpp"), sep="\n")
    print(compare_bytes(ours, theirs))
    sys.exit(ours.digest != theirs.digest)


def ours_and_theirs(f16: Path, threads: int) -> tuple[Program, Program]:
    """Our command, and llama_model_quantize in a program of its own."""
    outputs = [FOLDER / f"{name}-{MIX}.gguf" for name in ("ours", "theirs")]
    program = str(Path(__file__).with_name("llama_quantize.py"))
    ours = [
        "-m",
        "phicourse",
        "quantize",
        str(f16),
        str(outputs[0]),
        MIX,
        "--threads",
        str(threads),
        "--force",
    ]
    theirs = [program, str(f16), str(outputs[1]), str(MIXES[MIX].file_type), str(threads)]
    return (
        Program([sys.executable, *ours], outputs[0]),
        Program([sys.executable, *theirs], outputs[1]),
    )


if __name__ == "__main__":
    main()
