"""What runs the forward pass: the compiled engine, or the readable model in PyTorch.

Both keep the keys and values of the tokens they have seen, so that one more token costs one step. The engine can
have several texts at a time, its sequences: a step of all of them reads the weights once. Both
choose LongRoPE's factors by the length of the text, as transformers does for a text that it reads at once;
when the text crosses the switch they read it all again. (llama.cpp chooses by the size of the context.)
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint import Checkpoint, PhiConfig
from phicourse.convert.metadata import config_from_gguf
from phicourse.errors import GenerateError, ModelError
from phicourse.generate.cache_size import CACHE_TYPES, check_cache_fits
from phicourse.gguf import GGUFFile, TensorInfo
from phicourse.quantize.grids import hand_over
from phicourse.quantize.registry import QUANTIZERS

if TYPE_CHECKING:
    from phicourse.model import Phi

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]
InputSquares = dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
"""Tensor name -> sums of the squares of what each column met (n_matrices, columns), and of how many tokens
(n_matrices,): an expert meets only some."""

DEFAULT_CONTEXT = 4096
"""Positions that the cache gets unless told otherwise: a 128k cache of a real Phi needs 50 GB."""

MAX_SEQUENCES = 1024
"""The most texts that the engine can have at a time."""

ENGINE_TYPES = frozenset(QUANTIZERS)
"""Tensor types that the compiled engine multiplies with."""


Part = tuple[int, Int32Array]
"""A sequence, and the ids (n,) that it reads next."""


class Backend(Protocol):
    """A model with a cache of the tokens it has seen, in one or several sequences."""

    @property
    def name(self) -> str:
        """What runs, for people: `native avx512, 2 threads`."""
        ...

    @property
    def config(self) -> PhiConfig:
        """The model's sizes."""
        ...

    @property
    def n_ctx(self) -> int:
        """How many positions the cache of a sequence can hold."""
        ...

    @property
    def n_sequences(self) -> int:
        """How many texts it can have at a time: sequences 0 to n_sequences - 1."""
        ...

    @property
    def threads(self) -> int:
        """How many threads work."""
        ...

    @property
    def isa(self) -> str:
        """The instruction set that its kernels are made of, or "torch"."""
        ...

    @property
    def position(self) -> int:
        """How many positions the cache of sequence 0 holds."""
        ...

    def length(self, sequence: int) -> int:
        """How many positions the cache of a sequence holds."""
        ...

    def forward(self, ids: Int32Array, all_logits: bool) -> Float32Array:
        """Append ids (n,) to sequence 0; the logits after each (n, vocab), or after the last (1, vocab)."""
        ...

    def forward_many(self, parts: Sequence[Part], all_logits: bool = False) -> list[Float32Array]:
        """Append to several sequences at once; for each part what `forward` gives."""
        ...

    def truncate(self, length: int, sequence: int = 0) -> None:
        """Forget every position of a sequence from `length` on."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make a sequence the first `length` positions of another, without computing them."""
        ...


class OneSequence(ABC):
    """What a backend with a single sequence makes of calls that name one. Subclasses have `forward`, `position`."""

    n_sequences = 1

    @property
    @abstractmethod
    def position(self) -> int:
        """How many positions the cache holds."""

    @abstractmethod
    def forward(self, ids: Int32Array, all_logits: bool) -> Float32Array:
        """Append ids (n,); logits (n or 1, vocab)."""

    def length(self, sequence: int) -> int:
        """How many positions the cache of sequence 0 holds."""
        self._check(sequence)
        return self.position

    def forward_many(self, parts: Sequence[Part], all_logits: bool = False) -> list[Float32Array]:
        """Append the one part that there can be."""
        if len(parts) != 1:
            raise GenerateError(f"this backend reads 1 sequence at a time, not {len(parts)}")
        ((sequence, ids),) = parts
        self._check(sequence)
        return [self.forward(ids, all_logits)]

    def copy(self, source: int, target: int, length: int) -> None:
        """Refuse: there is no other sequence."""
        raise GenerateError("this backend has 1 sequence: there is nothing to copy to")

    def _check(self, sequence: int) -> None:
        if sequence != 0:
            raise GenerateError(f"sequence {sequence} does not exist: this backend has only sequence 0")


class NativeBackend:
    """The C++ engine on the tensors of a GGUF file, in the types that they are stored in."""

    def __init__(
        self,
        file: GGUFFile,
        n_ctx: int | None = None,
        threads: int | None = None,
        cache_type: str = "F16",
        n_sequences: int = 1,
    ) -> None:
        """Hand the file's tensors to the engine; they stay where they are, in the memory-mapped file.

        n_ctx        positions of each sequence; None: the model's own, at most DEFAULT_CONTEXT
        threads      None: as many as this process may use
        cache_type   how keys and values are kept, one of CACHE_TYPES
        n_sequences  how many texts it can have at a time, 1 to MAX_SEQUENCES
        raises       ModelError where the module is not built or the tensors do not make a Phi; GenerateError where
                     there is no memory for the keys and values, or a number makes no sense
        """
        native = native_module()
        if native is None:
            raise ModelError("the compiled engine is not built here: use backend='torch' (phicourse doctor)")
        self.config = config_from_gguf(file)
        self.n_ctx = context_size(self.config, n_ctx)
        self.threads = thread_count(threads)
        self.cache_type = known_cache_type(cache_type)
        self.n_sequences = sequence_count(n_sequences)
        check_cache_fits(self.config, self.n_ctx, self.cache_type, n_sequences=self.n_sequences)
        self._engine = new_engine(
            file,
            engine_config(self.config),
            file.tensors.values(),
            self.n_ctx,
            self.threads,
            self.cache_type,
            self.n_sequences,
        )
        self.isa: str = native.isa()

    @property
    def name(self) -> str:
        """What runs."""
        return f"native {self.isa}, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def position(self) -> int:
        """How many positions the cache of sequence 0 holds."""
        return self.length(0)

    def length(self, sequence: int) -> int:
        """How many positions the cache of a sequence holds."""
        with as_generate_errors():
            return int(self._engine.length(sequence))

    def forward(self, ids: Int32Array, all_logits: bool) -> Float32Array:
        """Append ids (n,) to sequence 0; logits (n or 1, vocab)."""
        return self.forward_many([(0, ids)], all_logits)[0]

    def forward_many(self, parts: Sequence[Part], all_logits: bool = False) -> list[Float32Array]:
        """Append to several sequences, whose tokens go through the layers together: logits of each (n or 1, vocab)."""
        with as_generate_errors():
            logits: Float32Array = self._engine.forward_many(list(parts), all_logits)
        rows = [len(ids) if all_logits else 1 for _, ids in parts]
        return [logits[end - n : end] for n, end in zip(rows, accumulate(rows), strict=True)]

    def input_squares(self, ids: Int32Array) -> InputSquares:
        """Forget the cache, read ids (n,), and say what each matrix met."""
        check_ids(ids, self.config.vocab_size)
        squares: InputSquares = self._engine.input_squares(ids)
        return squares

    def truncate(self, length: int, sequence: int = 0) -> None:
        """Forget every position of a sequence from `length` on."""
        with as_generate_errors():
            self._engine.truncate(length, sequence)

    def copy(self, source: int, target: int, length: int) -> None:
        """Make a sequence the first `length` positions of another."""
        with as_generate_errors():
            self._engine.copy(source, target, length)


class TorchBackend(OneSequence):
    """The readable model: slower, runs every type that can be read, and a checkpoint without conversion."""

    def __init__(
        self, source: GGUFFile | Checkpoint, n_ctx: int | None = None, threads: int | None = None
    ) -> None:
        """Load the weights as float32.

        n_ctx    None: the model's own, at most DEFAULT_CONTEXT
        threads  None: PyTorch's own choice
        """
        import torch

        from phicourse.model import KVCache
        from phicourse.model.load import load_checkpoint, load_gguf

        if threads is not None:
            torch.set_num_threads(thread_count(threads))
        self.threads = torch.get_num_threads()
        self.isa = "torch"
        self.model: Phi = (
            load_checkpoint(source, torch.float32, "cpu")
            if isinstance(source, Checkpoint)
            else load_gguf(source, torch.float32, "cpu")
        ).eval()
        self.config = self.model.config
        self.n_ctx = context_size(self.config, n_ctx)
        self._new_cache = KVCache
        self._cache = KVCache()
        self._ids: list[int] = []
        self._is_long = False

    @property
    def name(self) -> str:
        """What runs."""
        return f"torch float32, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def position(self) -> int:
        """How many positions have been read."""
        return len(self._ids)

    def forward(self, ids: Int32Array, all_logits: bool) -> Float32Array:
        """Append ids (n,); logits (n or 1, vocab)."""
        import torch

        check_ids(ids, self.config.vocab_size)
        text = [*self._ids, *ids.tolist()]
        self._choose_rope_factors(len(text))
        with torch.inference_mode():
            missing = torch.tensor([text[self._cache.length :]])  # (1, at least n)
            try:
                logits = self.model(missing, self._cache)[0]  # (…, vocab)
            except BaseException:
                self._cache = self._new_cache()  # some layers may have grown
                raise
        self._ids = text
        out: Float32Array = logits[-len(ids) if all_logits else -1 :].numpy()
        return out

    def truncate(self, length: int, sequence: int = 0) -> None:
        """Forget every position from `length` on."""
        self._check(sequence)
        del self._ids[length:]
        self._cache.truncate(min(length, self._cache.length))

    def _choose_rope_factors(self, length: int) -> None:
        """Drop the cache where the text crosses LongRoPE's switch: its keys were turned by the other factors."""
        from phicourse.model.rope import is_long as needs_long

        is_long = needs_long(self.config, length)
        if is_long != self._is_long:
            self._cache, self._is_long = self._new_cache(), is_long


@contextmanager
def as_generate_errors() -> Iterator[None]:
    """Let what the engine refuses appear as errors of this package."""
    try:
        yield
    except (ValueError, IndexError) as error:
        raise GenerateError(str(error)) from None


def native_module() -> Any | None:
    """The compiled module, or None where it was not built."""
    try:
        from phicourse import native
    except ImportError:
        return None
    return native


def new_engine(
    file: GGUFFile,
    config: dict[str, Any],
    tensors: Iterable[TensorInfo],
    n_ctx: int,
    threads: int,
    cache_type: str,
    n_sequences: int = 1,
) -> Any:
    """Make a `native.Engine` of some of a file's tensors; the module must be there.

    raises  ModelError where they do not make a Phi, or PHICOURSE_ISA names what cannot run here; GenerateError
            where there is no memory to work in
    """
    native = native_module()
    assert native is not None
    file.read_ahead()
    try:
        return native.Engine(
            config, engine_tensors(native, file, tensors), n_ctx, threads, cache_type, n_sequences
        )
    except MemoryError:
        raise GenerateError(
            f"{file.path}: there is no memory to read a context of {n_ctx:,} tokens with {threads} "
            f"thread{'s' * (threads > 1)}: ask for a smaller context (--ctx, n_ctx) or fewer threads"
        ) from None
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file.path}: {error}") from error


def why_not_native(file: GGUFFile) -> str | None:
    """What keeps the compiled engine from running a file; None where nothing does."""
    if native_module() is None:
        return "the C++ engine is not built (phicourse doctor)"
    types = {tensor.type.name for tensor in file.tensors.values()} - ENGINE_TYPES
    return f"the C++ engine has no kernels for {', '.join(sorted(types))}" if types else None


def engine_config(config: PhiConfig) -> dict[str, Any]:
    """The configuration as the engine takes it: numbers and lists under PhiConfig's field names."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def engine_tensors(
    native: ModuleType, file: GGUFFile, tensors: Iterable[TensorInfo]
) -> dict[str, tuple[str, int, int, NDArray[np.uint8]]]:
    """Tensors as (type, rows, columns, their bytes), not copied; the engine gets the grids of their types."""
    tensors = list(tensors)
    for tensor in tensors:
        hand_over(native, tensor.type.name)
    return {
        tensor.name: (
            tensor.type.name,
            tensor.n_weights // tensor.shape[-1],
            tensor.shape[-1],
            file.data(tensor.name).reshape(-1),
        )
        for tensor in tensors
    }


def context_size(config: PhiConfig, n_ctx: int | None) -> int:
    """The number of positions to make room for; GenerateError where the model has fewer."""
    if n_ctx is None or n_ctx == 0:
        return min(config.context_length, DEFAULT_CONTEXT)
    if not 1 <= n_ctx <= config.context_length:
        raise GenerateError(
            f"a context of {n_ctx:,} is not possible: this model has 1 to {config.context_length:,}"
        )
    return n_ctx


def known_cache_type(name: str) -> str:
    """One of CACHE_TYPES, in any case; GenerateError for another."""
    if name.upper() not in CACHE_TYPES:
        raise GenerateError(f"unknown cache type {name!r:.40}; known are {', '.join(CACHE_TYPES)}")
    return name.upper()


def thread_count(threads: int | None) -> int:
    """A number of threads: as asked, else the cores that this process may use."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise GenerateError(f"threads must be 1 or more, not {threads}")
    return threads


def sequence_count(n: int) -> int:
    """A number of sequences as asked; GenerateError where the engine cannot have so many."""
    if not 1 <= n <= MAX_SEQUENCES:
        raise GenerateError(f"n_sequences must be from 1 to {MAX_SEQUENCES:,}, not {n}")
    return n


def check_ids(ids: Int32Array, vocab_size: int) -> None:
    """Refuse ids that the embedding has no row for."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise GenerateError(f"token {wrong} is not in the vocabulary of {vocab_size:,}")
