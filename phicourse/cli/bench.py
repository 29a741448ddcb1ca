"""`phicourse bench`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phicourse.cli.options import CacheType, Force, GpuLayers, Json, Model, Threads, a_path
from phicourse.cli.output import print_json
from phicourse.errors import GenerateError

if TYPE_CHECKING:
    from phicourse.evaluate import Measurement
    from phicourse.evaluate.rates import Comparison


def bench(
    file: Model,
    n_prompt: Annotated[int, typer.Option("-p", min=0, metavar="N", help="Tokens of the prompt test.")] = 512,
    n_gen: Annotated[
        int, typer.Option("-n", min=0, metavar="N", help="Tokens of the generation test.")
    ] = 128,
    repetitions: Annotated[int, typer.Option("-r", min=1, metavar="N", help="Repetitions of each test.")] = 3,
    depth: Annotated[
        int, typer.Option("-d", "--depth", min=0, metavar="N", help="Tokens of text before each test.")
    ] = 0,
    threads: Threads = None,
    cache_type: CacheType = "f16",
    gpu_layers: GpuLayers = 0,
    plot: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="PNG", help="Draw the speeds below this machine's limits."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure tokens per second of prompt processing and generation.

    Below each speed stand its multiply-adds and bytes a second, and what part that is of this machine's best.
    """
    from phicourse.evaluate import bench
    from phicourse.evaluate.rates import compare_with_machine
    from phicourse.generate import load

    n_ctx = depth + max(n_prompt, n_gen, 1)
    llm = load(file, n_ctx=n_ctx, threads=threads, cache_type=cache_type, gpu_layers=gpu_layers)
    bos = llm.tokenizer.bos if llm.tokenizer.vocabulary.add_bos else None
    measured = bench(
        llm.backend, n_prompt=n_prompt, n_gen=n_gen, repetitions=repetitions, depth=depth, bos=bos
    )
    compared = compare_with_machine(llm, measured, n_prompt, n_gen, depth)
    if plot is not None:
        draw_roof(compared, plot, force)
    if as_json:
        size = sum(tensor.nbytes for tensor in llm.tensors)
        about = {"model": str(file), "tensor_bytes": size}
        rates = (
            [rate.as_dict(compared.machine) for rate in compared.rates] if compared else [{}] * len(measured)
        )
        print_json([m.as_dict() | about | rate for m, rate in zip(measured, rates, strict=True)])
    else:
        print(f"{file.name}, {llm.backend.name}, mean of {repetitions}")
        print_speeds(measured, compared)


def print_speeds(measured: "Sequence[Measurement]", compared: "Comparison | None") -> None:
    """Print a benchmark, and how far it is from the machine's limits where that is known."""
    for i, m in enumerate(measured):
        print(f"{m.test:16s} {m.tokens_per_second:12.2f} ± {m.stddev:.2f} tokens/s")
        if compared is not None:
            print(f"    {compared.rates[i].line(compared.machine)}")
    if compared is not None:
        print(compared.machine)


def draw_roof(compared: "Comparison | None", plot: Path, force: bool) -> None:
    """Write a PNG file of a benchmark below the machine's roof."""
    from phicourse.evaluate.rates import draw_rates
    from phicourse.plots.style import save_png

    if compared is None:
        raise GenerateError("--plot shows the engine alone: not with --gpu-layers, nor where PyTorch runs")
    save_png(draw_rates(compared.machine, {"phicourse": compared.rates}), plot, force)
