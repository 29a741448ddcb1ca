"""Turns a checkpoint folder into a GGUF file, a chunk of rows at a time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from phicourse.checkpoint import Checkpoint
from phicourse.convert import phi3
from phicourse.convert.metadata import Facts, Pair, general_pairs, read_facts
from phicourse.convert.model_name import file_name
from phicourse.convert.rows import SOURCES, Stored, default_threads, encoded_chunks
from phicourse.errors import ConvertError
from phicourse.gguf import GGUFWriter, TensorType, tensor_type
from phicourse.progress import byte_bar
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
    conversion = plan_conversion(checkpoint, outtype, compat)
    target = checkpoint.folder if out is None else Path(out)
    target = target / conversion.file_name if target.is_dir() else target
    with GGUFWriter(target, force=force, inputs=checkpoint.inputs) as writer:
        conversion.write(writer, progress)
    return target


@dataclass(frozen=True)
class Conversion:
    """A checkpoint as the GGUF file that it becomes: its name, its pairs, and its tensors with their types."""

    checkpoint: Checkpoint
    file_name: str
    pairs: list[Pair]
    tensors: list[tuple[phi3.Tensor, TensorType]]

    def write(self, writer: GGUFWriter, progress: bool) -> None:
        """Let every tensor flow from the checkpoint into the file."""
        for key, value, kind, element in self.pairs:
            writer.add(key, value, kind, element)
        for tensor, type in self.tensors:
            writer.declare(tensor.name, tensor.shape, type)
        total = sum(
            prod(tensor.shape[:-1]) * type.row_bytes(tensor.shape[-1]) for tensor, type in self.tensors
        )
        with byte_bar(total, progress) as bar:
            for tensor, type in self.tensors:
                bar.set_description(tensor.name, refresh=False)
                for chunk in self.chunks(tensor, type):
                    writer.write(tensor.name, chunk)
                    bar.update(chunk.nbytes)

    def chunks(self, tensor: phi3.Tensor, type: TensorType) -> Iterator[NDArray[Any]]:
        """Yield the rows of a tensor in a type, some at a time and in order: (rows, n_blocks), or its bytes."""
        if tensor.source is None:
            yield tensor.values.reshape(1, -1)
            return
        file, entry = self.checkpoint.tensors[tensor.source]
        rows, columns = prod(entry.shape[:-1]), entry.shape[-1]
        stored = Stored(entry.name, file.path, entry.dtype, entry.offset, rows, columns)
        threads = default_threads()
        with ThreadPoolExecutor(threads) as pool:
            yield from encoded_chunks(stored, type, pool, ahead=threads)


def plan_conversion(checkpoint: Checkpoint, outtype: str, compat: bool = False) -> Conversion:
    """Check all of a checkpoint but its weights, and say what file it becomes; see `convert`."""
    _check_dtypes(checkpoint)
    matrix_type, file_type = OUTTYPES[_resolve(outtype, checkpoint)]
    tensors = phi3.tensors(checkpoint)
    n_weights = sum(prod(tensor.shape) for tensor in tensors)
    facts = read_facts(checkpoint, n_weights)
    return Conversion(
        checkpoint,
        file_name(facts.parts, matrix_type),
        _pairs(checkpoint, facts, n_weights, file_type, compat),
        [(tensor, _type_of(tensor, matrix_type)) for tensor in tensors],
    )


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


def _type_of(tensor: phi3.Tensor, matrix_type: str) -> TensorType:
    if tensor.is_always_f32:
        return tensor_type("F32")
    wanted = tensor_type(matrix_type)
    return wanted if tensor.shape[-1] % wanted.block == 0 else tensor_type("F16")
