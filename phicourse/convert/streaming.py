"""Turns a checkpoint folder into a GGUF file, a chunk of rows at a time."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

from tqdm import tqdm

from phicourse.checkpoint import Checkpoint
from phicourse.convert import phi3
from phicourse.convert.metadata import Facts, Pair, general_pairs, read_facts
from phicourse.convert.model_name import file_name
from phicourse.convert.rows import SOURCES, Stored, default_threads, encoded_chunks
from phicourse.errors import ConvertError
from phicourse.gguf import GGUFWriter, TensorType, tensor_type
from phicourse.tokenizer.vocabulary import Vocabulary

# outtype -> the type of matrices, and llama.cpp's number for such a file
OUTTYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7)}


def convert(
    checkpoint: Path | str | Checkpoint,
    out: Path | str | None = None,
    outtype: str = "f16",
    *,
    force: bool = False,
    progress: bool = True,
    compat: bool = False,
) -> Path:
    """Convert a Phi3ForCausalLM checkpoint; the file appears when it is complete.

    checkpoint  a folder with config.json, *.safetensors and the tokenizer's files
    out         the GGUF file, or a folder for it; None: the checkpoint's folder. In a folder the name is made of
                the model's, as `Phi-3.5-mini-instruct-F16.gguf`
    outtype     type of the matrices: f32, f16, bf16, q8_0, or auto: what the checkpoint has, f16 for float32.
                Vectors are always F32; a matrix whose rows q8_0 cannot cut into blocks becomes F16
    force       replace a file that is there
    compat      leave out our own keys (`phicourse.*`, which other programs pass over)
    returns     the path of the file
    raises      ConvertError, CheckpointError, TokenizerError or GGUFError, one line each

    With `compat` the bytes equal those of llama.cpp's convert_hf_to_gguf.py (llama-cpp-python 0.3.36); without,
    too, for a vocabulary that llama.cpp's keys describe completely.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    _check_dtypes(checkpoint)
    matrix_type, file_type = OUTTYPES[_resolve(outtype, checkpoint)]
    tensors = phi3.tensors(checkpoint)
    n_weights = sum(prod(tensor.shape) for tensor in tensors)
    facts = read_facts(checkpoint, n_weights)
    pairs = _pairs(checkpoint, facts, n_weights, file_type, compat)
    target = _target(checkpoint, out, file_name(facts.parts, matrix_type))
    types = [_type_of(tensor, matrix_type) for tensor in tensors]
    with GGUFWriter(target, force=force) as writer:
        for key, value, type, element in pairs:
            writer.add(key, value, type, element)
        for tensor, stored_as in zip(tensors, types, strict=True):
            writer.declare(tensor.name, tensor.shape, stored_as)
        _write(writer, checkpoint, tensors, types, progress)
    return target


def _resolve(outtype: str, checkpoint: Checkpoint) -> str:
    """Return a key of OUTTYPES; `auto` is the type of the first 16-bit matrix."""
    if outtype.lower() == "auto":
        matrices = (tensor for _, tensor in checkpoint.tensors.values() if len(tensor.shape) >= 2)
        return next((matrix.dtype.lower() for matrix in matrices if matrix.dtype in ("BF16", "F16")), "f16")
    if outtype.lower() not in OUTTYPES:
        raise ConvertError(f"unknown outtype {outtype!r:.40}; known are {', '.join(OUTTYPES)}, auto")
    return outtype.lower()


def _check_dtypes(checkpoint: Checkpoint) -> None:
    for file, tensor in checkpoint.tensors.values():
        if tensor.dtype not in SOURCES:
            raise ConvertError(
                f"{file.path}: {tensor.name} is {tensor.dtype}; convertible are {', '.join(SOURCES)}, "
                "quantized checkpoints are not"
            )


def _pairs(checkpoint: Checkpoint, facts: Facts, n_weights: int, file_type: int, compat: bool) -> list[Pair]:
    """List all metadata in the order of llama.cpp's converter, our own at the end."""
    vocabulary = Vocabulary.from_checkpoint(checkpoint)
    pairs = [
        *phi3.leading_pairs(checkpoint.config),
        *general_pairs(facts, n_weights),
        *phi3.hyperparameter_pairs(checkpoint.config, file_type),
        *vocabulary.metadata(),
    ]
    return pairs if compat else [*pairs, *vocabulary.private_metadata()]


def _target(checkpoint: Checkpoint, out: Path | str | None, name: str) -> Path:
    target = checkpoint.folder if out is None else Path(out)
    return target / name if target.is_dir() else target


def _type_of(tensor: phi3.Tensor, matrix_type: str) -> TensorType:
    if tensor.is_always_f32:
        return tensor_type("F32")
    wanted = tensor_type(matrix_type)
    return wanted if tensor.shape[-1] % wanted.block == 0 else tensor_type("F16")


def _write(
    writer: GGUFWriter,
    checkpoint: Checkpoint,
    tensors: Sequence[phi3.Tensor],
    types: Sequence[TensorType],
    progress: bool,
) -> None:
    """Let every tensor flow from the checkpoint into the file."""
    total = sum(tensor.nbytes for _, tensor in checkpoint.tensors.values())
    bar = tqdm(total=total, unit="B", unit_scale=True, delay=1, disable=not progress, file=sys.stderr)
    threads = default_threads()
    with bar, ThreadPoolExecutor(threads) as pool:
        for tensor, type in zip(tensors, types, strict=True):
            if tensor.source is None:
                writer.write(tensor.name, tensor.values)
                continue
            bar.set_description(tensor.name, refresh=False)
            file, entry = checkpoint.tensors[tensor.source]
            rows, columns = prod(entry.shape[:-1]), entry.shape[-1]
            stored = Stored(entry.name, file.path, entry.dtype, entry.offset, rows, columns)
            for chunk in encoded_chunks(stored, type, pool, ahead=threads):
                writer.write(tensor.name, chunk)
                bar.update(entry.nbytes * len(chunk) // rows)
