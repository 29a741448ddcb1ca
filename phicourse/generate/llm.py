"""A loaded model: text in, text out."""

import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

from phicourse.checkpoint import Checkpoint, PhiConfig
from phicourse.errors import GenerateError
from phicourse.generate.backends import Backend, NativeBackend, TorchBackend, why_not_native
from phicourse.generate.batch import Batch, write_all
from phicourse.generate.context import Context
from phicourse.generate.generate import Answer, AnswerText, Run, generate_text
from phicourse.generate.hybrid import HybridBackend
from phicourse.generate.sampling import Float32Array, Sampler
from phicourse.generate.speculation import Draft, DraftModel, PromptLookup, check_draft_model
from phicourse.gguf import GGUFFile
from phicourse.gguf.describe import printable
from phicourse.gguf.layers import Tensor, layer_table
from phicourse.tokenizer import Tokenizer

BackendName = Literal["native", "torch"]


def load(
    path: Path | str,
    backend: BackendName = "native",
    n_ctx: int | None = None,
    threads: int | None = None,
    cache_type: str = "F16",
    n_sequences: int = 1,
    gpu_layers: int = 0,
) -> "LLM":
    """Load a model to talk to.

    path     a GGUF file; for backend="torch" also a checkpoint folder
    backend  "native": the C++ engine; "torch": the readable model. Where the engine was not built, or has
             no kernels for a type, torch takes its place and a line on standard error says so
    n_ctx    positions of the context; None or 0: the model's own, at most 4,096
    threads  None: as many as this process may use
    cache_type  how the engine keeps keys and values: F16, BF16, F32; Q8_0 takes half the memory, Q4_0 a quarter.
             torch keeps them as float32
    n_sequences  how many answers of `generate_many` are written at a time, each with a context of its own; torch
                 writes one after the other
    gpu_layers  how many layers, from the first on, run in PyTorch on a GPU (CUDA or Metal; without one on the CPU),
             the others in the engine. One more than there are, or -1: all, and the output head. A line on
             standard error says where they went
    raises   GGUFError, CheckpointError, ModelError, TokenizerError: the file cannot be used;
             GenerateError: the request makes no sense
    """
    path = Path(path)
    if backend not in ("native", "torch"):
        raise GenerateError(f"unknown backend {backend!r}; known are 'native' and 'torch'")
    if gpu_layers and backend != "native":
        raise GenerateError("gpu_layers shares a model with the engine: leave backend='torch' out")
    if path.is_dir():
        return _load_folder(path, backend, n_ctx, threads)
    file = GGUFFile.open(path)
    if backend == "native" and not gpu_layers and (reason := why_not_native(file)) is not None:
        print(f"phicourse: {reason}; using PyTorch, slowly", file=sys.stderr)
        backend = "torch"
    tokenizer = Tokenizer.from_gguf(file)
    model: Backend
    if gpu_layers:
        model = HybridBackend(file, gpu_layers, n_ctx, threads, cache_type)
        print(f"phicourse: {model.report}", file=sys.stderr)
    elif backend == "native":
        model = NativeBackend(file, n_ctx, threads, cache_type, n_sequences)
    else:
        model = TorchBackend(file, n_ctx, threads)
    tensors = [Tensor(t.name, t.shape, t.type.name, t.nbytes) for t in file.tensors.values()]
    return LLM(model, tokenizer, name=printable(file.get("general.name", str, path.stem)), tensors=tensors)


def _load_folder(path: Path, backend: BackendName, n_ctx: int | None, threads: int | None) -> "LLM":
    if backend == "native":
        raise GenerateError(
            f"{path}: is a checkpoint folder: make a GGUF file of it (phicourse convert), or load it in Python with "
            "backend='torch'"
        )
    checkpoint = Checkpoint.open(path)
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    tensors = [Tensor(t.name, t.shape, t.dtype, t.nbytes) for _, t in checkpoint.tensors.values()]
    return LLM(TorchBackend(checkpoint, n_ctx, threads), tokenizer, name=path.resolve().name, tensors=tensors)


class LLM:
    """A model with its tokenizer; remembers the conversation so far, so that only new text is computed.

    Not made for several threads at once. Two answers of `generate` that are read in turns are right, but slow: each
    makes the other's memory useless. `generate_many` writes several.
    """

    def __init__(
        self, backend: Backend, tokenizer: Tokenizer, *, name: str = "", tensors: Sequence[Tensor] = ()
    ) -> None:
        """Use `load`, which puts the parts together. `tensors` are only for show."""
        self.backend = backend
        self.tokenizer = tokenizer
        self.contexts = [Context(backend, sequence) for sequence in range(backend.n_sequences)]
        self.context = self.contexts[0]
        self.name = name
        self.tensors = tuple(tensors)
        self.last_run: Run | None = None
        self.last_runs: list[Run] = []

    @property
    def config(self) -> PhiConfig:
        """The model's sizes."""
        return self.backend.config

    @property
    def n_ctx(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.backend.n_ctx

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text.

        special   put the model's beginning-of-text token in front and read `<|end|>` and the like as the
                  control tokens they name; without it all text is just text
        """
        return self.tokenizer.encode(text, add_special=special, parse_special=special)

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ids; control tokens are shown only where `special`."""
        return self.tokenizer.decode(list(ids), special=special)

    def logits(self, ids: Sequence[int]) -> Float32Array:
        """What the model expects after each of `ids`: (len(ids), vocab) float32. No cache is kept.

        raises   GenerateError for no ids at all, more than the context holds, or ids out of range
        """
        if not len(ids) or len(ids) > self.n_ctx:
            raise GenerateError(
                f"logits of {len(ids):,} tokens: from 1 to {self.n_ctx:,} (n_ctx) are possible"
            )
        ids = self._known_ids(ids)
        self.context.reset()
        try:
            return self.context.all_logits(ids)
        finally:
            self.context.reset()

    @overload
    def generate(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = False, **options: Any
    ) -> str: ...
    @overload
    def generate(
        self, prompt: str | Sequence[int], *, stream: Literal[True], **options: Any
    ) -> Iterator[str]: ...
    @overload
    def generate(
        self, prompt: str | Sequence[int], *, stream: bool, **options: Any
    ) -> str | Iterator[str]: ...
    def generate(
        self, prompt: str | Sequence[int], *, stream: bool = False, **options: Any
    ) -> str | Iterator[str]:
        """Continue a text.

        prompt   text, with beginning-of-text put in front where the model wants it and control tokens
                 such as `<|user|>` read as such; or ids, taken as they are
        stream   give pieces of text as they come, instead of the whole at the end
        options  max_tokens (None: until the model ends or the context is full), stop (a string or several;
                 the text ends before them), draft ("lookup" guesses from the text itself, a smaller LLM
                 with the same vocabulary by itself: the same text, sooner), and those of `Sampler`:
                 temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed
        returns  the text that follows the prompt; `last_run` then has its ids and why it ended
        raises   GenerateError for a prompt that the context cannot hold, and for unknown options
        """
        return self._answer(self._prompt_ids(prompt), stream, options)

    @overload
    def generate_many(
        self, prompts: Sequence[str | Sequence[int]], *, stream: Literal[False] = False, **options: Any
    ) -> list[str]: ...
    @overload
    def generate_many(
        self, prompts: Sequence[str | Sequence[int]], *, stream: Literal[True], **options: Any
    ) -> Iterator[tuple[int, str]]: ...
    def generate_many(
        self, prompts: Sequence[str | Sequence[int]], *, stream: bool = False, **options: Any
    ) -> list[str] | Iterator[tuple[int, str]]:
        """Continue several texts at once, as many at a time as the model was loaded with sequences.

        prompts  texts or ids, as `generate` takes one
        stream   give pieces as they come, as (number of the prompt, piece); closing the iterator ends all
        options  those of `generate` but `draft`, for each of the texts
        returns  for each prompt the text that `generate` would give; `last_runs` then has their ids
        raises   as `generate`, before anything is computed
        """
        if isinstance(prompts, str):
            raise GenerateError("prompts must be a list of texts; `generate` takes a single one")
        if options.get("draft") is not None:
            raise GenerateError("draft guesses for one text: use it with `generate`")
        options = {name: value for name, value in options.items() if name != "draft"}
        answers = [self._new_answer(self._prompt_ids(prompt), options) for prompt in prompts]
        self.last_runs = [answer.run for answer, _ in answers]
        pieces = write_all(Batch(self.contexts), answers)
        if stream:
            return pieces
        texts = [""] * len(answers)
        for i, piece in pieces:
            texts[i] += piece
        return texts

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        return self.tokenize(prompt, special=True) if isinstance(prompt, str) else self._known_ids(prompt)

    def _known_ids(self, ids: Sequence[int]) -> list[int]:
        """The ids as integers; GenerateError where the model has no such token."""
        try:
            numbers = [operator.index(id) for id in ids]
        except TypeError:
            raise GenerateError(f"ids must be integers: {ids!r:.60}") from None
        vocab_size = self.config.vocab_size
        for id in numbers:
            if not 0 <= id < vocab_size:
                raise GenerateError(f"token {id} is not in the vocabulary of {vocab_size:,}")
        return numbers

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, str]], *, stream: Literal[False] = False, **options: Any
    ) -> str: ...
    @overload
    def chat(
        self, messages: Sequence[Mapping[str, str]], *, stream: Literal[True], **options: Any
    ) -> Iterator[str]: ...
    @overload
    def chat(
        self, messages: Sequence[Mapping[str, str]], *, stream: bool, **options: Any
    ) -> str | Iterator[str]: ...
    def chat(
        self, messages: Sequence[Mapping[str, str]], *, stream: bool = False, **options: Any
    ) -> str | Iterator[str]:
        """Answer the last message of a conversation.

        messages  dicts with "role" ("system", "user", "assistant") and "content"; control tokens written
                  in a content are read as plain text
        stream, options, returns, raises   as `generate`
        """
        if isinstance(messages, str) or not all(isinstance(message, Mapping) for message in messages):
            raise GenerateError('messages must be a list of dicts with "role" and "content"')
        ids = self.tokenizer.chat([dict(message) for message in messages], add_generation_prompt=True)
        return self._answer(ids, stream, options)

    def _answer(self, ids: list[int], stream: bool, options: dict[str, Any]) -> str | Iterator[str]:
        """Check everything now, not at the first piece; then run."""
        options = dict(options)
        draft = self._draft(options.pop("draft", None))
        answer, text = self._new_answer(ids, options)
        self.last_run = answer.run
        pieces = generate_text(self.context, answer, text, draft)
        return pieces if stream else "".join(pieces)

    def _new_answer(self, ids: list[int], options: Mapping[str, Any]) -> tuple[Answer, AnswerText]:
        """Make an answer to a prompt, in which nothing has been said yet, of keyword options."""
        options = dict(options)
        max_tokens = options.pop("max_tokens", None)
        if max_tokens is not None and max_tokens < 0:
            raise GenerateError(f"max_tokens must be 0 or more, or None for no limit, not {max_tokens}")
        stop = options.pop("stop", ())
        stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        run, eog = Run(prompt=ids), self.tokenizer.eog
        answer = Answer(run, make_sampler(options), self.n_ctx, max_tokens=max_tokens, end_of_generation=eog)
        stream = self.tokenizer.stream(continues=ids[-1] not in self.tokenizer.vocabulary.control)
        return answer, AnswerText(run, stream, stop)

    def _draft(self, draft: object) -> Draft | None:
        """Make something that guesses of what the caller named."""
        if draft == "lookup":
            return PromptLookup()
        if isinstance(draft, LLM):
            check_draft_model(self.context, draft.context)
            return DraftModel(draft.context)
        if draft is not None and not hasattr(draft, "guess"):
            raise GenerateError(f"draft must be 'lookup', a model made by load, or None, not {draft!r:.40}")
        return cast(Draft | None, draft)

    def __repr__(self) -> str:
        return f"LLM({self.name!r}, {self.backend.name}, context {self.n_ctx})"

    def _repr_html_(self) -> str:
        """The model as its layers, for a notebook: equal layers are one row."""
        about = (
            f"{self.config.n_layers} layers, hidden size {self.config.hidden_size}, "
            f"{self.config.n_heads} heads ({self.config.n_kv_heads} for keys and values), "
            f"vocabulary {self.config.vocab_size:,}, context {self.n_ctx:,}; {self.backend.name}"
        )
        return layer_table(self.name, about, self.tensors)


def make_sampler(options: Mapping[str, Any]) -> Sampler:
    """A Sampler of keyword options; GenerateError names one that it does not have."""
    known = [name for name in Sampler.__dataclass_fields__ if not name.startswith("_")]
    for name in options:
        if name not in known:
            raise GenerateError(
                f"unknown option {name!r}; known are max_tokens, stop, draft, {', '.join(known)}"
            )
    return Sampler(**options)
