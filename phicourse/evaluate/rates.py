"""How far a benchmark is from the machine's limits: multiply-adds and bytes a second, beside what is possible at best.

A multiply-add counts once; where others count floating-point operations, it is two. Both numbers are of what must be
done: multiply-adds with weights, keys and values; bytes of weights once for each batch of tokens, of keys and values
likewise. Norms, sampling and the vectors between the matrices are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from phicourse.checkpoint import PhiConfig
from phicourse.errors import GenerateError
from phicourse.evaluate.bench import Measurement
from phicourse.evaluate.products import best_seconds, read_bandwidth
from phicourse.generate.backends import NativeBackend, native_module
from phicourse.generate.cache_size import BATCH, POSITIONS, kv_cache_bytes
from phicourse.generate.llm import LLM
from phicourse.gguf.layers import Tensor
from phicourse.quantize.registry import quantize_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = 2048, 3072, BATCH
"""Rows, columns and vectors of the product that shows what the kernels can do: 3.5 MB of weights in Q4_K."""


@dataclass(frozen=True)
class Machine:
    """What this machine does at best with so many threads.

    bandwidth  bytes a second that are read from memory
    products   type of the weights -> multiply-adds a second of the engine's product, alone, with 512 vectors
    """

    threads: int
    bandwidth: float
    products: dict[str, float]

    @property
    def peak(self) -> float:
        """The most multiply-adds a second."""
        return max(self.products.values())

    def __str__(self) -> str:
        products = ", ".join(f"{speed / 1e9:.3g} with {name}" for name, speed in self.products.items())
        return (
            f"this machine at best reads {self.bandwidth / 1e9:.3g} GB/s from memory,\n"
            f"and a product alone does {products}, in G multiply-adds/s"
        )


def measure_machine(threads: int, budget: float = 1.0) -> Machine:
    """Measure a machine's limits, `budget` seconds for each.

    raises   GenerateError where the engine is not built
    """
    return Machine(
        threads,
        read_bandwidth(threads, budget=budget, clock=perf_counter),
        {name: product_speed(name, threads, budget) for name in ("Q4_K", "F32")},
    )


def product_speed(type_name: str, threads: int, budget: float = 0.5) -> float:
    """Multiply-adds a second of the engine's product of one matrix with 512 vectors, at best."""
    native = native_module()
    if native is None:
        raise GenerateError(
            "the compiled engine is not built here, and it is what is measured (phicourse doctor)"
        )
    rows, cols, tokens = SMALL
    rng = np.random.default_rng(1)
    few = quantize_rows(rng.standard_normal((32, cols), np.float32), type_name)
    weights = np.resize(few, (rows, few.shape[1]))
    x, out = rng.standard_normal((tokens, cols), np.float32), np.empty((tokens, rows), np.float32)
    seconds = best_seconds(
        lambda: native.multiply(type_name, weights, x, out, threads=threads), budget, perf_counter
    )
    return rows * cols * tokens / seconds


@dataclass(frozen=True)
class Work:
    """What a test computes, and what it reads from memory."""

    multiply_adds: int
    bytes_read: int


def work_of(
    config: PhiConfig, tensors: Sequence[Tensor], cache_type: str, calls: Sequence[int], depth: int = 0
) -> Work:
    """Count the work of calls of the model, each with so many tokens, behind `depth` tokens of text.

    tensors   of the file; of a call only the last token meets the output matrix
    """
    matrices, head = _matrices(config, tensors)
    of_position = kv_cache_bytes(config, POSITIONS, cache_type) // POSITIONS
    window = config.sliding_window or config.context_length
    adds = n_bytes = 0
    for call in calls:
        for start in range(0, call, BATCH):
            tokens = min(BATCH, call - start)
            seen = [min(depth + i + 1, window) for i in range(tokens)]
            adds += sum(round(tokens * share * prod(t.shape)) for t, share in matrices)
            adds += 2 * config.n_layers * config.n_heads * config.head_size * sum(seen)
            n_bytes += sum(round(min(1.0, tokens * share) * t.nbytes) for t, share in matrices)
            n_bytes += of_position * min(depth + tokens, window + tokens - 1)
            depth += tokens
        adds, n_bytes = adds + prod(head.shape), n_bytes + head.nbytes
    return Work(adds, n_bytes)


def _matrices(config: PhiConfig, tensors: Sequence[Tensor]) -> tuple[list[tuple[Tensor, float]], Tensor]:
    """The matrices of all layers, each with the share of it that a token meets, and the output matrix."""
    named = {tensor.name: tensor for tensor in tensors if len(tensor.shape) > 1}
    head = named.get("output.weight") or named["token_embd.weight"]
    used = config.n_experts_used / config.n_experts if config.n_experts else 1.0
    layers = [
        (tensor, used if name.endswith("_exps.weight") else 1.0)
        for name, tensor in named.items()
        if name.startswith("blk.")
    ]
    return layers, head


@dataclass(frozen=True)
class Rate:
    """A test's speed in the machine's terms."""

    measurement: Measurement
    work: Work
    multiply_adds_per_second: float
    bytes_per_second: float

    @property
    def intensity(self) -> float:
        """Multiply-adds for each byte that is read."""
        return self.work.multiply_adds / self.work.bytes_read

    def as_dict(self, machine: Machine) -> dict[str, Any]:
        """What `phicourse bench --json` says beside the speed."""
        return {
            "multiply_adds_per_second": self.multiply_adds_per_second,
            "bytes_per_second": self.bytes_per_second,
            "read_bandwidth": machine.bandwidth,
            "product_multiply_adds_per_second": machine.products,
        }

    def line(self, machine: Machine) -> str:
        """One line for people, beside the limits; three digits, for small models are far below a billion a second."""
        adds, n_bytes = self.multiply_adds_per_second, self.bytes_per_second
        return (
            f"{adds / 1e9:.3g} G multiply-adds/s ({adds / machine.peak:.0%} of a product alone), "
            f"{n_bytes / 1e9:.3g} GB/s ({n_bytes / machine.bandwidth:.0%})"
        )


def rate(measurement: Measurement, n_tokens: int, work: Work) -> Rate:
    """Put a measured speed and the work of its test together."""
    per_second = measurement.tokens_per_second / n_tokens  # tests a second
    return Rate(measurement, work, work.multiply_adds * per_second, work.bytes_read * per_second)


@dataclass(frozen=True)
class Comparison:
    """The tests of a benchmark beside the machine's limits, measured in the same run."""

    machine: Machine
    rates: list[Rate]


def compare_with_machine(
    llm: LLM, measured: Sequence[Measurement], n_prompt: int, n_gen: int, depth: int
) -> Comparison | None:
    """Measure the machine's limits, for the tests that `bench` has measured; None but for the engine alone."""
    backend = llm.backend
    if not isinstance(backend, NativeBackend):
        return None
    machine, rates = measure_machine(backend.threads), []
    for measurement in measured:
        is_prompt = measurement.test.startswith("pp")
        calls = [n_prompt] if is_prompt else [1] * n_gen
        work = work_of(backend.config, llm.tensors, backend.cache_type, calls, depth)
        rates.append(rate(measurement, sum(calls), work))
    return Comparison(machine, rates)


def draw_rates(machine: Machine, series: Mapping[str, Sequence[Rate]]) -> "Figure":
    """The machine's roof and the tests below it, for each program."""
    from phicourse.plots import draw_roofline

    points = {
        name: [(r.measurement.test, r.intensity, r.multiply_adds_per_second) for r in rates]
        for name, rates in series.items()
    }
    ceilings = {f"{name}, product alone": speed for name, speed in machine.products.items()}
    return draw_roofline(machine.bandwidth, ceilings, points)
