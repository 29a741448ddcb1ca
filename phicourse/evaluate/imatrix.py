"""Gathers an importance matrix: what a model multiplies its weights with while it reads a text.

As llama-imatrix does it: the text is cut into chunks of n_ctx tokens, each is read by itself, the
beginning-of-text token in place of its first, and every weight of the layers gets the sum over all tokens of
the squares of its input's columns.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phicourse.errors import GenerateError, QuantizeError
from phicourse.evaluate.perplexity import count_chunks
from phicourse.generate.backends import InputSquares, NativeBackend, TorchBackend
from phicourse.generate.llm import LLM, load
from phicourse.gguf import atomic_output
from phicourse.quantize.importance import DEFAULT_CHUNK_SIZE, FORMATS, ImportanceMatrix, Squares

if TYPE_CHECKING:
    from torch import Tensor, nn

    from phicourse.model import Phi
    from phicourse.model.load import Place

Progress = Callable[[int, int], None]

MIN_CHUNK = 16
"""Tokens of a chunk; llama-imatrix leaves shorter batches out."""
_OUTPUT = "output.weight"


def write_importance(
    out: Path,
    *,
    model: Path | None = None,
    text: str = "",
    in_files: Sequence[Path] = (),
    format: str = "gguf",
    force: bool = False,
    threads: int | None = None,
    n_ctx: int = DEFAULT_CHUNK_SIZE,
    **options: Any,
) -> ImportanceMatrix:
    """Write an importance matrix: measured with a model on a text, added up from files, or both.

    model     a GGUF file, or a checkpoint folder, which the readable model runs; None: only add up
    in_files  matrices of the same model, to which this text is added
    format    see `ImportanceMatrix.write`
    force     replace a file that is there
    options   those of `gather_importance`
    returns   what was written
    raises    as `load`, `gather_importance` and `ImportanceMatrix`; the output is tried before any work
    """
    if format not in FORMATS:
        raise QuantizeError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    inputs = [*in_files, *([model] if model and model.is_file() else [])]
    with atomic_output(out, force, inputs) as temporary:
        matrices = [ImportanceMatrix.read(path) for path in in_files]
        if model is not None:
            llm = load(model, "torch" if model.is_dir() else "native", n_ctx=n_ctx, threads=threads)
            matrices.append(gather_importance(llm, text, n_ctx=n_ctx, **options))
        merged = ImportanceMatrix.merge(*matrices, chunk_size=n_ctx)
        merged.write(temporary, format, force=True)
    return replace(merged, path=out)


def gather_importance(
    llm: LLM,
    text: str,
    *,
    dataset: str = "",
    n_ctx: int = DEFAULT_CHUNK_SIZE,
    chunks: int | None = None,
    process_output: bool = False,
    progress: Progress = lambda done, chunks: None,
) -> ImportanceMatrix:
    """Measure on a text which columns of a model's weights matter.

    dataset         the text's name, which the matrix keeps
    n_ctx           tokens a chunk; what is left at the end of the text is not used
    chunks          read no more than these; None: all
    process_output  measure output.weight, too; an output that shares its numbers with the embedding has none
    progress        called after each chunk with (done, chunks)
    raises          GenerateError where the text is shorter than two chunks, a chunk is longer than the
                    context, or the model computes numbers that are not finite
    source          llama.cpp tools/imatrix, definition only
    """
    if n_ctx < MIN_CHUNK:
        raise GenerateError(f"chunks of {n_ctx} tokens: {MIN_CHUNK} or more are needed")
    ids = llm.tokenizer.encode(text)
    n_chunks = count_chunks(llm.context, len(ids), n_ctx, chunks)
    bos = llm.tokenizer.bos if llm.tokenizer.vocabulary.add_bos else None
    total: InputSquares = {}
    for i in range(n_chunks):
        chunk = ids[i * n_ctx : (i + 1) * n_ctx]
        squares = input_squares(llm, chunk if bos is None else [bos, *chunk[1:]], process_output)
        for name, (sums, counts) in squares.items():
            sums_before, counts_before = total.get(name, (0, 0))
            total[name] = sums_before + sums, counts_before + counts
        progress(i + 1, n_chunks)
    return _matrix(total, n_chunks, n_ctx, dataset, llm.name)


def _matrix(total: InputSquares, n_chunks: int, n_ctx: int, dataset: str, model: str) -> ImportanceMatrix:
    """Round the sums to float32."""
    for name, (sums, _) in total.items():
        if not np.isfinite(sums).all():
            raise GenerateError(f"{model}: the input of {name} is not finite; is the file damaged?")
    squares = {name: Squares.of(sums, counts, name) for name, (sums, counts) in total.items()}
    name = dataset.encode("utf-8", "replace").decode()  # a file's name may have bytes that are no UTF-8
    return ImportanceMatrix(None, (name,) if name else (), n_chunks, n_ctx, squares)


def input_squares(llm: LLM, ids: Sequence[int], process_output: bool = False) -> InputSquares:
    """Read ids (n,) as a text of its own, and sum up what each tensor meets.

    Of a layer's experts, each has its own sums and its own number of tokens.
    """
    llm.context.reset()
    backend = llm.backend
    if isinstance(backend, NativeBackend):
        squares = backend.input_squares(np.asarray(ids, np.int32))
    elif isinstance(backend, TorchBackend):
        squares = torch_input_squares(backend.model, ids)
    else:
        raise GenerateError(f"{backend.name} does not show what its weights are multiplied with")
    if not process_output:
        squares.pop(_OUTPUT, None)
    return squares


def torch_input_squares(model: "Phi", ids: Sequence[int]) -> InputSquares:
    """`input_squares` of the readable model, which is watched while it reads."""
    import torch

    from phicourse.model.load import Place

    squares: InputSquares = {}

    def add(place: Place, x: "Tensor") -> None:
        rows = x.double().reshape(-1, x.shape[-1])  # (tokens, columns)
        if place.tensor not in squares:
            n = place.n_parts
            squares[place.tensor] = np.zeros((n, rows.shape[1])), np.zeros(n, np.int64)
        sums, counts = squares[place.tensor]
        sums[place.part], counts[place.part] = rows.square().sum(dim=0).numpy(), len(rows)

    with torch.inference_mode(), _watched(model, add):
        hidden = model.model(torch.tensor([list(ids)]))  # (1, n, hidden), what the output weight meets
    if not model.config.tie_embeddings:
        add(Place(_OUTPUT), hidden)
    return squares


@contextmanager
def _watched(model: "Phi", see: "Callable[[Place, Tensor], None]") -> Iterator[None]:
    """Inside the block, every matrix of the layers calls see(its place in a GGUF file, its input)."""
    from torch import nn

    from phicourse.model.load import gguf_places

    places = gguf_places(model.config)

    def hook(place: "Place") -> "Callable[[nn.Module, tuple[Any, ...]], None]":
        return lambda module, inputs: see(place, inputs[0])

    with ExitStack() as hooks:
        for path, module in model.model.layers.named_modules(prefix="model.layers"):
            if isinstance(module, nn.Linear):
                handle = module.register_forward_pre_hook(hook(places[f"{path}.weight"]))
                hooks.callback(handle.remove)
        yield
