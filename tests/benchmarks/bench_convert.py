"""Our converter and llama.cpp's on a checkpoint with Phi-3.5-mini's shapes: time, memory, the same bytes.

    python tests/benchmarks/bench_convert.py [--layers 32] [--repetitions 2]

Makes 3.8 billion random weights in BF16 (7.6 GB, kept in .bench/), then lets each program convert them to F16, and
ours go on to Q4_K_M in one pass. Every output is deleted once it has been compared. Prints speeds and ratios;
decides nothing.
"""

import argparse
import sys
from pathlib import Path

from phi_3_5_mini import make_checkpoint
from side_by_side import FOLDER, HEADER, REPOSITORY, Program, Row, compare_bytes, measure_in_turns, prepare


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="fewer layers: a smaller model, for a try")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument(
        "--converter", type=Path, default=REPOSITORY / ".oracles/llama.cpp/convert_hf_to_gguf.py"
    )
    args = parser.parse_args()
    if not args.converter.exists():
        sys.exit(f"{args.converter} is missing: make oracles fetches it")
    prepare()
    programs = theirs_and_ours(make_checkpoint(args.layers), args.converter)
    measure_in_turns(programs, args.repetitions)
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
    print(HEADER, *rows, sep="\n")
    for name, program in (("llama.cpp F16", theirs), ("ours F16", f16), ("ours Q4_K_M", q4)):
        print(program.summary(name))
    print(compare_bytes(f16, theirs))


if __name__ == "__main__":
    main()
