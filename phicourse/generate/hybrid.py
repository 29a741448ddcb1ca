"""The first layers in PyTorch on a GPU, the others in the compiled engine: for models that a GPU cannot hold whole.

What goes from one to the other is small: the hidden state of each token, a few thousand numbers. Both keep keys and
values of their own layers. Without a GPU PyTorch's layers run on its CPU device, slower than the engine would.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from phicourse.convert.metadata import config_from_gguf
from phicourse.errors import GenerateError, ModelError
from phicourse.generate.backends import (
    Float32Array,
    Int32Array,
    OneSequence,
    check_ids,
    context_size,
    engine_config,
    engine_tensors,
    known_cache_type,
    native_module,
    thread_count,
    why_not_native,
)
from phicourse.generate.cache_size import check_cache_fits
from phicourse.generate.split import (
    BATCH,
    Split,
    torch_batch,
    torch_cache_bytes,
    torch_weight_bytes,
    torch_work_bytes,
)
from phicourse.gguf import GGUFFile
from phicourse.memory import available_memory
from phicourse.quantize.registry import dequantize_rows

if TYPE_CHECKING:
    import torch


class HybridBackend(OneSequence):
    """PyTorch's layers and the engine as one model."""

    def __init__(
        self,
        file: GGUFFile,
        gpu_layers: int,
        n_ctx: int | None = None,
        threads: int | None = None,
        cache_type: str = "F16",
    ) -> None:
        """Dequantize the first layers for PyTorch, and hand the other tensors to the engine.

        gpu_layers  how many, from 1 on; one more than the model has, or less than 0: all, and the output head
        n_ctx, threads, cache_type  as for `NativeBackend`; PyTorch keeps keys and values as its weights
        raises      ModelError where PyTorch or, for the other layers, the engine is missing, or the tensors make
                    no Phi; GenerateError where there is no memory
        """
        self.config = config_from_gguf(file)
        self.split = Split.of(self.config, gpu_layers)
        if self.split.n_layers == 0:
            raise GenerateError("gpu_layers is 0: nothing is left for PyTorch, leave it out")
        self.n_ctx = context_size(self.config, n_ctx)
        self.threads = thread_count(threads)
        self.cache_type = known_cache_type(cache_type)
        torch = torch_module()
        if threads is not None:
            torch.set_num_threads(self.threads)
        self._engine = None if self.split.has_head else self._new_engine(file)
        self._layers = TorchLayers(file, self.split, self.n_ctx)
        self._ids: list[int] = []
        self._is_long = False

    def _new_engine(self, file: GGUFFile) -> Any:
        native, reason = native_module(), why_not_native(file)
        if native is None or reason is not None:
            raise ModelError(f"{reason}, and some layers are left for it; -1 GPU layers: PyTorch takes all")
        check_cache_fits(self.config, self.n_ctx, self.cache_type, self.split.n_engine_layers)
        try:
            return native.Engine(
                engine_config(self.config) | {"first_layer": self.split.n_layers},
                engine_tensors(native, file, self.split.in_engine(file)),
                self.n_ctx,
                self.threads,
                self.cache_type,
            )
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{file.path}: {error}") from error

    @property
    def isa(self) -> str:
        """What computes on both sides."""
        device = f"torch {self._layers.device.type}"
        return device if self._engine is None else f"{device} + {native_module().isa()}"  # type: ignore[union-attr]

    @property
    def name(self) -> str:
        """What runs."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.isa}, {self.split} in torch, {threads}"

    @property
    def report(self) -> str:
        """Which device took how many layers and how many bytes."""
        layers = self._layers
        where = layers.device_name if layers.device.type != "cpu" else "the CPU (no GPU here)"
        return (
            f"{self.split} in PyTorch on {where}: {layers.weight_bytes / 1e6:,.1f} MB of weights, "
            f"{layers.cache.nbytes / 1e6:,.1f} MB for keys and values"
        )

    @property
    def position(self) -> int:
        """How many positions have been read."""
        return len(self._ids)

    def forward(self, ids: Int32Array, all_logits: bool) -> Float32Array:
        """Append ids (n,); logits (n or 1, vocab)."""
        check_ids(ids, self.config.vocab_size)
        text = [*self._ids, *ids.tolist()]
        if not len(ids) or len(text) > self.n_ctx:
            raise GenerateError(f"a text of {len(text):,} tokens after {len(ids):,} new ones: 1 to {self.n_ctx:,} fit")
        self._choose_rope_factors(len(text))
        start, first_logits = self._cut_to_same_length(), len(text) - (len(ids) if all_logits else 1)
        logits = []
        for begin in range(start, len(text), BATCH):
            part = text[begin : begin + BATCH]
            n_logits = min(len(part), max(0, begin + len(part) - first_logits))
            logits.append(self._read(part, n_logits, len(text)))
        self._ids = text
        return np.concatenate(logits)

    def _read(self, ids: list[int], n_logits: int, text_length: int) -> Float32Array:
        """One batch through both sides; logits after the last n_logits of its ids."""
        with memory_errors():
            hidden = self._layers.read(ids, text_length)  # (n, hidden)
            if self._engine is None:
                return self._layers.logits(hidden[len(ids) - n_logits :])
            states = hidden.cpu().numpy()
        logits: Float32Array = self._engine.forward_hidden(states, n_logits, text_length)
        return logits

    def truncate(self, length: int, sequence: int = 0) -> None:
        """Forget every position from `length` on."""
        self._check(sequence)
        del self._ids[length:]

    def _cut_to_same_length(self) -> int:
        """Let both sides hold the same positions, all of them of the text; how many these are.

        After an interrupt one may be ahead of the other, and of the text.
        """
        length = min(len(self._ids), self._layers.cache.length)
        if self._engine is not None:
            length = min(length, self._engine.position)
            self._engine.truncate(length)
        self._layers.cache.truncate(length)
        return length

    def _choose_rope_factors(self, length: int) -> None:
        """Drop all keys where the text crosses LongRoPE's switch: they were turned by the other factors."""
        from phicourse.model.rope import is_long as needs_long

        is_long = needs_long(self.config, length)
        if is_long != self._is_long:
            self._layers.cache.truncate(0)
            self._is_long = is_long


class TorchLayers:
    """The first layers with their keys and values, on a GPU where there is one; matrices are float16 there."""

    def __init__(self, file: GGUFFile, split: Split, n_ctx: int) -> None:
        """Take the memory for n_ctx positions, and the weights, dequantized."""
        from phicourse.model.attention import ReservedKVCache
        from phicourse.model.load import load_first_layers

        self.device = pick_device()
        self.dtype = matrix_dtype(self.device)
        self._file = file
        self._batch = torch_batch(split.config, n_ctx)
        self.weight_bytes = torch_weight_bytes(file, split, self.dtype.itemsize)
        check_memory(self.device, split, self.weight_bytes, n_ctx, self.dtype.itemsize)
        with memory_errors():
            self.cache = ReservedKVCache(split.config, split.n_layers, n_ctx, self.dtype, self.device)
            self._model = load_first_layers(file, split.n_layers, split.has_head, self.dtype, self.device)

    @property
    def device_name(self) -> str:
        """The device, for people."""
        if self.device.type != "cuda":
            return self.device.type
        return f"cuda ({torch_module().cuda.get_device_name(self.device)})"

    def read(self, ids: list[int], text_length: int) -> "torch.Tensor":
        """Append ids to the cache; their hidden states (n, hidden) float32, on the device.

        text_length   of the whole text, which chooses LongRoPE's factors
        """
        torch = torch_module()
        table = self._file.tensor("token_embd.weight")
        rows = dequantize_rows(self._file.data(table.name)[ids], table.type.name)  # (n, hidden)
        with torch.inference_mode(), self._mixed():
            parts = [
                self._model.model.run_layers(part[None], self.cache, text_length)[0]
                for part in torch.from_numpy(rows).to(self.device).split(self._batch)
            ]
            return torch.cat(parts)

    def logits(self, hidden: "torch.Tensor") -> Float32Array:
        """The output head, where PyTorch has it: hidden states (n, hidden) to (n, vocab)."""
        torch = torch_module()
        with torch.inference_mode(), self._mixed():
            parts = [
                self._model.logits(self._model.model.last_norm(part)).cpu() for part in hidden.split(self._batch)
            ]
            out: Float32Array = torch.cat(parts).numpy()
            return out

    def _mixed(self) -> Any:
        """Multiply in the weights' type; what is added up from layer to layer stays float32."""
        torch = torch_module()
        return torch.autocast(self.device.type, dtype=torch.float16, enabled=self.dtype != torch.float32)


def torch_module() -> ModuleType:
    """PyTorch; ModelError where it is not installed."""
    try:
        import torch
    except ImportError:
        raise ModelError("GPU layers run in PyTorch, which is not installed here: pip install torch") from None
    return torch


def pick_device() -> "torch.device":
    """CUDA or Metal where there is a GPU, else the CPU."""
    torch = torch_module()
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def matrix_dtype(device: "torch.device") -> "torch.dtype":
    """The type of matrices, keys and values: float16 on a GPU; a CPU is faster with float32."""
    torch = torch_module()
    dtype: torch.dtype = torch.float32 if device.type == "cpu" else torch.float16
    return dtype


def free_memory(device: "torch.device") -> int | None:
    """Bytes that are free on a device, or None where it does not say."""
    torch = torch_module()
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return available_memory()


def check_memory(
    device: "torch.device", split: Split, weight_bytes: int, n_ctx: int, number_bytes: int
) -> None:
    """GenerateError where PyTorch's layers need more memory than is free."""
    cache = torch_cache_bytes(split, n_ctx, number_bytes)
    needed = weight_bytes + cache + torch_work_bytes(split, n_ctx, number_bytes)
    free = free_memory(device)
    if free is not None and needed > free:
        raise GenerateError(
            f"{split} need {needed / 1e9:.1f} GB on {device.type} with a context of {n_ctx:,}, {free / 1e9:.1f} GB are "
            "free: fewer --gpu-layers, a smaller --ctx (phicourse plan says what fits)"
        )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Say in one line that a GPU has no memory left."""
    torch = torch_module()
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise GenerateError("the GPU has no memory left: fewer --gpu-layers, or a smaller --ctx") from None
