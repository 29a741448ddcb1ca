"""The first layers in PyTorch on a GPU, the others in the compiled engine: for models that a GPU cannot hold whole.

What goes from one to the other is small: the hidden state of each token, a few thousand numbers. Both keep keys and
values of their own layers. Without a GPU PyTorch's layers run on its CPU device, slower than the engine would.
"""

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
    known_cache_type,
    native_module,
    new_engine,
    thread_count,
    why_not_native,
)
from phicourse.generate.cache_size import BATCH, check_cache_fits
from phicourse.generate.split import Split
from phicourse.gguf import GGUFFile
from phicourse.sizes import size_text

if TYPE_CHECKING:
    from phicourse.generate.torch_layers import TorchLayers


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
        self._engine = None if self.split.has_head else self._new_engine(file)
        self._layers = new_torch_layers(file, self.split, self.n_ctx)
        if threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        self._ids: list[int] = []
        self._is_long = False

    def _new_engine(self, file: GGUFFile) -> Any:
        reason = why_not_native(file)
        if reason is not None:
            raise ModelError(f"{reason}, and some layers are left for it; -1 GPU layers: PyTorch takes all")
        check_cache_fits(self.config, self.n_ctx, self.cache_type, self.split.n_engine_layers)
        return new_engine(
            file,
            engine_config(self.config) | {"first_layer": self.split.n_layers},
            self.split.in_engine(file),
            self.n_ctx,
            self.threads,
            self.cache_type,
        )

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
        from phicourse.generate.torch_layers import device_name

        layers = self._layers
        return (
            f"{self.split} in PyTorch on {device_name(layers.device)}: {size_text(layers.weight_bytes)} of weights, "
            f"{size_text(layers.cache.nbytes)} for keys and values"
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
            raise GenerateError(
                f"a text of {len(text):,} tokens after {len(ids):,} new ones: 1 to {self.n_ctx:,} fit"
            )
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


def new_torch_layers(file: GGUFFile, split: Split, n_ctx: int) -> "TorchLayers":
    """PyTorch's half; ModelError where PyTorch is not installed."""
    try:
        from phicourse.generate.torch_layers import TorchLayers
    except ImportError as error:
        if error.name != "torch":
            raise
        raise ModelError(
            "GPU layers run in PyTorch, which is not installed here: pip install torch"
        ) from None
    return TorchLayers(file, split, n_ctx)
