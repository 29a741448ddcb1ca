"""The part of a hybrid model that runs in PyTorch: its first layers, on a GPU where there is one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from phicourse.errors import GenerateError
from phicourse.generate.backends import Float32Array
from phicourse.generate.split import (
    Split,
    torch_batch,
    torch_cache_bytes,
    torch_weight_bytes,
    torch_work_bytes,
)
from phicourse.gguf import GGUFFile
from phicourse.memory import available_memory
from phicourse.model.attention import ReservedKVCache
from phicourse.model.load import load_first_layers
from phicourse.quantize.registry import dequantize_rows
from phicourse.sizes import size_text


class TorchLayers:
    """The first layers with their keys and values; on a GPU their matrices are float16."""

    def __init__(self, file: GGUFFile, split: Split, n_ctx: int) -> None:
        """Take the memory for n_ctx positions, and the weights, dequantized.

        raises   GenerateError where there is not enough memory; ModelError where the tensors make no Phi
        """
        self.device = pick_device()
        self.dtype = matrix_dtype(self.device)
        self._file = file
        self._batch = torch_batch(split.config, n_ctx)
        self.weight_bytes = torch_weight_bytes(file, split, self.dtype.itemsize)
        check_memory(self.device, split, self.weight_bytes, n_ctx, self.dtype.itemsize)
        with memory_errors():
            self.cache = ReservedKVCache(split.config, split.n_layers, n_ctx, self.dtype, self.device)
            self._model = load_first_layers(file, split.n_layers, split.has_head, self.dtype, self.device)

    def read(self, ids: list[int], text_length: int) -> Tensor:
        """Append ids to the cache; their hidden states (n, hidden) float32, on the device.

        text_length   of the whole text, which chooses LongRoPE's factors
        """
        table = self._file.tensor("token_embd.weight")
        rows = dequantize_rows(self._file.data(table.name)[ids], table.type.name)  # (n, hidden)
        with torch.inference_mode(), self._mixed(), memory_errors():
            parts = torch.split(torch.from_numpy(rows).to(self.device), self._batch)
            states = [self._model.model.run_layers(part[None], self.cache, text_length) for part in parts]
            return torch.cat(states, dim=1)[0]

    def logits(self, hidden: Tensor) -> Float32Array:
        """The output head, where PyTorch has it: hidden states (n, hidden) to (n, vocab)."""
        with torch.inference_mode(), self._mixed(), memory_errors():
            parts = torch.split(hidden, self._batch)
            logits = [self._model.logits(self._model.model.last_norm(part)).cpu() for part in parts]
            out: Float32Array = torch.cat(logits).numpy()
            return out

    def _mixed(self) -> torch.autocast:
        """Multiply in the weights' type; what is added up from layer to layer stays float32."""
        return torch.autocast(self.device.type, dtype=torch.float16, enabled=self.dtype != torch.float32)


def pick_device() -> torch.device:
    """CUDA or Metal where there is a GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """A device, for people."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return "the CPU (no GPU here)" if device.type == "cpu" else device.type


def matrix_dtype(device: torch.device) -> torch.dtype:
    """The type of matrices, keys and values: float16 on a GPU; a CPU is faster with float32."""
    return torch.float32 if device.type == "cpu" else torch.float16


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, or None where it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return available_memory()


def check_memory(
    device: torch.device, split: Split, weight_bytes: int, n_ctx: int, number_bytes: int
) -> None:
    """GenerateError where PyTorch's layers need more memory than is free."""
    cache = torch_cache_bytes(split, n_ctx, number_bytes)
    needed = weight_bytes + cache + torch_work_bytes(split, n_ctx, number_bytes)
    free = free_memory(device)
    if free is not None and needed > free:
        raise GenerateError(
            f"{split} need {size_text(needed)} on {device.type} with a context of {n_ctx:,}, "
            f"{size_text(free)} are free: fewer --gpu-layers, a smaller --ctx (phicourse plan says what fits)"
        )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Say in one line that a GPU has no memory left."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise GenerateError("the GPU has no memory left: fewer --gpu-layers, or a smaller --ctx") from None
