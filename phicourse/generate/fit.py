"""What fits where: how many layers of a model a GPU holds beside their keys and values, and what is left.

Counted are weights, keys and values of a full context, and what both sides need to work in. On the GPU matrices, keys
and values are float16, whatever the file has; in the engine weights keep the file's types. Not counted are Python and
its libraries, of which PyTorch is the largest: some hundred megabytes of the machine's memory.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phicourse.checkpoint import PhiConfig
from phicourse.convert.metadata import config_from_gguf
from phicourse.errors import GenerateError
from phicourse.generate.backends import context_size, known_cache_type
from phicourse.generate.cache_size import engine_work_bytes, kv_cache_bytes
from phicourse.generate.split import (
    Split,
    torch_cache_bytes,
    torch_weight_bytes,
    torch_work_bytes,
)
from phicourse.gguf import GGUFFile
from phicourse.sizes import size_text

DRIVER_BYTES = 500_000_000
"""What CUDA and its libraries are taken to need on the GPU for themselves; it differs from one GPU to the next."""

GPU_NUMBER_BYTES = 2  # float16
NOT_COUNTED = "Not counted: Python and its libraries; PyTorch takes some hundred MB here."
SHORTEST, MOST_CONTEXTS = 512, 7
TABLE_TYPES = ("F16", "Q8_0", "Q4_0")


@dataclass(frozen=True)
class Use:
    """Bytes on one side: weights, keys and values, room to work in; on a GPU, what its driver takes."""

    weights: int = 0
    cache: int = 0
    work: int = 0
    driver: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.cache + self.work + self.driver


@dataclass(frozen=True)
class Fit:
    """The most layers that a GPU holds with one context and one type of keys and values.

    gpu, machine   bytes that each side takes
    fits           whether the machine's memory is enough for its part
    """

    n_ctx: int
    cache_type: str
    split: Split
    gpu: Use
    machine: Use
    fits: bool

    @property
    def gpu_layers(self) -> int:
        """The number for --gpu-layers."""
        return self.split.n_layers + self.split.has_head

    def as_dict(self) -> dict[str, Any]:
        """As `phicourse plan --json` prints it."""
        return {
            "context": self.n_ctx,
            "cache_type": self.cache_type,
            "gpu_layers": self.gpu_layers,
            "layers_on_gpu": self.split.n_layers,
            "head_on_gpu": self.split.has_head,
            "fits": self.fits,
            "gpu": asdict(self.gpu) | {"total": self.gpu.total},
            "machine": asdict(self.machine) | {"total": self.machine.total},
        }


@dataclass(frozen=True)
class FitReport:
    """What was asked for, and what else could be had.

    gpu_memory, machine_memory   bytes that there are
    alternatives   for each context a `Fit` for each type of keys and values
    """

    path: Path
    config: PhiConfig
    tensor_bytes: int
    gpu_memory: int
    machine_memory: int
    best: Fit
    alternatives: list[list[Fit]]

    def as_dict(self) -> dict[str, Any]:
        """As `phicourse plan --json` prints it."""
        return {
            "model": str(self.path),
            "tensor_bytes": self.tensor_bytes,
            "layers": self.config.n_layers,
            "context_length": self.config.context_length,
            "gpu_memory": self.gpu_memory,
            "machine_memory": self.machine_memory,
            "plan": self.best.as_dict(),
            "alternatives": [fit.as_dict() for row in self.alternatives for fit in row],
        }

    def __str__(self) -> str:
        return "\n".join(
            [*_heading(self), "", *_parts(self), "", *_advice(self), "", *_table(self), "", NOT_COUNTED]
        )


def plan_memory(
    file: GGUFFile,
    gpu_memory: int,
    machine_memory: int,
    *,
    threads: int,
    n_ctx: int | None = None,
    cache_type: str = "F16",
) -> FitReport:
    """Find the most layers that fit on a GPU, for a context and for others.

    gpu_memory, machine_memory   bytes that may be used
    threads      of the engine
    n_ctx        None: as `load` takes it
    cache_type   of the engine's keys and values; those on the GPU are float16
    raises       GenerateError where the model fits in no way, or n_ctx is not possible
    """
    config = config_from_gguf(file)
    chosen, cache_type = context_size(config, n_ctx), known_cache_type(cache_type)

    def fit(context: int, type: str) -> Fit:
        return most_layers(file, config, gpu_memory, machine_memory, context, type, threads)

    contexts = [chosen] if n_ctx is not None else sorted({chosen, *_contexts(config.context_length)})
    types = TABLE_TYPES if cache_type in TABLE_TYPES else (cache_type, *TABLE_TYPES)
    best, alternatives = fit(chosen, cache_type), [[fit(n, type) for type in types] for n in contexts]
    if not any(other.fits for row in [[best], *alternatives] for other in row):
        least = min((other for row in alternatives for other in row), key=lambda other: other.machine.total)
        raise GenerateError(
            f"{file.path}: does not fit: beside {least.split} on the GPU the machine would need "
            f"{size_text(least.machine.total)}, {size_text(machine_memory)} are free: take a smaller quantization"
        )
    tensor_bytes = sum(tensor.nbytes for tensor in file.tensors.values())
    return FitReport(file.path, config, tensor_bytes, gpu_memory, machine_memory, best, alternatives)


def most_layers(
    file: GGUFFile,
    config: PhiConfig,
    gpu_memory: int,
    machine_memory: int,
    n_ctx: int,
    cache_type: str,
    threads: int,
) -> Fit:
    """The most layers, and beyond them the output head, that fit into gpu_memory; maybe none."""
    splits = [Split.of(config, n) for n in range(config.n_layers + 2)]
    split = [split for split in splits if gpu_use(file, split, n_ctx).total <= gpu_memory][
        -1
    ]  # 0 need nothing
    machine = machine_use(file, split, n_ctx, cache_type, threads)
    return Fit(
        n_ctx, cache_type, split, gpu_use(file, split, n_ctx), machine, machine.total <= machine_memory
    )


def gpu_use(file: GGUFFile, split: Split, n_ctx: int) -> Use:
    """Bytes that PyTorch takes on a GPU; none where it runs no layer."""
    if split.n_layers == 0:
        return Use()
    return Use(
        torch_weight_bytes(file, split, GPU_NUMBER_BYTES),
        torch_cache_bytes(split, n_ctx, GPU_NUMBER_BYTES),
        torch_work_bytes(split, n_ctx, GPU_NUMBER_BYTES),
        DRIVER_BYTES,
    )


def machine_use(file: GGUFFile, split: Split, n_ctx: int, cache_type: str, threads: int) -> Use:
    """Bytes that the engine takes, and the embedding, whose rows are looked up in the file."""
    embedding = file.tensor("token_embd.weight")
    if split.has_head:
        return Use(embedding.nbytes)
    kept = {tensor.name: tensor.nbytes for tensor in (*split.in_engine(file), embedding)}
    return Use(
        sum(kept.values()),
        kv_cache_bytes(split.config, n_ctx, cache_type, split.n_engine_layers),
        engine_work_bytes(split.config, n_ctx, threads, cache_type),
    )


def _contexts(longest: int) -> list[int]:
    """The longest context, its half, and so on."""
    halves = [longest >> i for i in range(MOST_CONTEXTS)]
    return [n for n in halves if n >= SHORTEST]


# ---- for people ------------------------------------------------------------------------------------------


def _heading(report: FitReport) -> list[str]:
    config = report.config
    return [
        f"{report.path.name}: {config.n_layers} layers, {size_text(report.tensor_bytes)} of weights, "
        f"context up to {config.context_length:,}",
        f"GPU {size_text(report.gpu_memory)}, this machine {size_text(report.machine_memory)}",
    ]


def _parts(report: FitReport) -> list[str]:
    """The plan, part by part, on both sides."""
    fit, n_layers = report.best, report.config.n_layers
    head = {True: " and head", False: ""}
    rows = [
        (f"context {fit.n_ctx:,}", "GPU, 16 bits", f"engine, {fit.cache_type} cache"),
        (
            "layers",
            f"{fit.split.n_layers} of {n_layers}{head[fit.split.has_head]}",
            f"{fit.split.n_engine_layers} of {n_layers}{head[not fit.split.has_head]}",
        ),
    ]
    for label, name in (
        ("weights", "weights"),
        ("keys and values", "cache"),
        ("to work in, at most", "work"),
        ("driver, assumed", "driver"),
        ("together", "total"),
    ):
        gpu, machine = (getattr(side, name) for side in (fit.gpu, fit.machine))
        rows.append((label, size_text(gpu) if gpu else "-", size_text(machine) if machine else "-"))
    return [f"{label:22s}{gpu:>20s}{machine:>24s}" for label, gpu, machine in rows]


def _advice(report: FitReport) -> list[str]:
    fit = report.best
    if not fit.fits:
        return ["This machine has no room for its part: see below what does fit."]
    lines = [] if fit.gpu_layers else ["Not one layer fits on the GPU: the engine runs them all."]
    options = [f"--gpu-layers {fit.gpu_layers}"] * (fit.gpu_layers > 0) + [f"--ctx {fit.n_ctx}"]
    options += [f"--cache-type {fit.cache_type.lower()}"] * (fit.cache_type != "F16")
    return [*lines, f"phicourse run {report.path} {' '.join(options)} -p PROMPT"]


def _table(report: FitReport) -> list[str]:
    """Each context: layers on the GPU, and the machine's part for each type of keys and values in the engine."""
    types = [fit.cache_type for fit in report.alternatives[0]]
    lines = [
        "the engine's part, by the type of its keys and values:",
        f"{'context':>9s}{'on the GPU':>14s}{'GPU':>10s}" + "".join(f"{type:>11s}" for type in types),
    ]
    for row in report.alternatives:
        layers = f"{row[0].split.n_layers} of {report.config.n_layers}{' +head' * row[0].split.has_head}"
        amounts = "".join(f"{size_text(fit.machine.total) if fit.fits else 'no room':>11s}" for fit in row)
        lines.append(f"{row[0].n_ctx:9,d}{layers:>14s}{size_text(row[0].gpu.total):>10s}{amounts}")
    return lines
