"""Turns a checkpoint folder into a GGUF file, a chunk of rows at a time."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from phicourse.checkpoint import Checkpoint
from phicourse.convert import phi2, phi3, phimoe
from phicourse.convert.architecture import (
    Architecture,
    Tensor,
    hyperparameter_pairs,
    leading_pairs,
    own_pairs,
    tensors,
)
from phicourse.convert.metadata import Facts, Pair, general_pairs, read_facts
from phicourse.convert.model_name import count_label, file_name, hub_name
from phicourse.convert.overrides import read_overrides
from phicourse.convert.rows import SOURCES, Stored, default_threads, encoded_chunks
from phicourse.errors import ConvertError
from phicourse.gguf import GGUFWriter, Split, TensorType, tensor_type
from phicourse.progress_bar import byte_bar
from phicourse.tokenizer.vocabulary import Vocabulary

ARCHITECTURES = {each.name: each for each in (phi2.PHI2, phi3.PHI3, phimoe.PHIMOE)}
# outtype -> the type of matrices, and llama.cpp's number for such a file
OUTTYPES = {
    "f32": ("F32", 0),
    "f16": ("F16", 1),
    "bf16": ("BF16", 32),
    "q8_0": ("Q8_0", 7),
    "tq1_0": ("TQ1_0", 36),
    "tq2_0": ("TQ2_0", 37),
}
# Three values a weight are too few for these.
_NOT_TERNARY = ("token_embd.weight", "output.weight")


def convert(
    checkpoint: Path | str | Checkpoint,
    out: Path | str | None = None,
    outtype: str = "f16",
    *,
    force: bool = False,
    progress: bool = True,
    compat: bool = False,
    split: Split | None = None,
    metadata: Path | str | None = None,
    model_name: str | None = None,
) -> Path:
    """Convert a checkpoint of a Phi; the file appears when it is complete.

    checkpoint  a folder with config.json, *.safetensors and the tokenizer's files
    out         the GGUF file, or a folder for it; None: the checkpoint's folder, or the current one where that is
                in the cache of huggingface_hub. In a folder the name is made of the model's, as
                `Phi-3.5-mini-instruct-F16.gguf`
    outtype     type of the matrices: f32, f16, bf16, q8_0, tq1_0, tq2_0, or auto: what the checkpoint has, f16
                for float32. Vectors and a router are always F32; a matrix whose rows the type cannot cut into
                blocks becomes F16, and so do the embedding and the output matrix of a ternary file
    force       replace a file that is there
    compat      leave out our own keys (`phicourse.*`, which other programs pass over), and name a model in the cache
                of huggingface_hub after its folder there, a commit
    split       when to begin another file: `model.gguf` becomes `model-00001-of-00002.gguf` and so on
    metadata    a JSON file of general.* keys that count instead of what the checkpoint says; see `read_overrides`
    model_name  general.name, whatever else says it
    returns     the path of the file, the first one of several
    raises      ConvertError, CheckpointError, TokenizerError or GGUFError, one line each

    With `compat` the bytes equal those of llama.cpp's convert_hf_to_gguf.py (llama-cpp-python 0.3.36); without,
    too, for a vocabulary that llama.cpp's keys describe completely.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    overrides = {} if metadata is None else read_overrides(metadata)
    if model_name is not None:
        overrides["general.name"] = model_name
    conversion = plan_conversion(checkpoint, outtype, compat, overrides)
    target = default_folder(checkpoint.folder) if out is None else Path(out)
    target = target / conversion.file_name if target.is_dir() else target
    inputs = [*checkpoint.inputs, *([Path(metadata)] if metadata is not None else [])]
    with GGUFWriter(target, force=force, inputs=inputs, split=split) as writer:
        conversion.write(writer, progress)
    return writer.paths[0]


def default_folder(folder: Path) -> Path:
    """Return where a file goes that is not told where: beside the model in `folder`, but not into the Hub's cache."""
    return folder if hub_name(folder) is None else Path()


@dataclass(frozen=True)
class Conversion:
    """A checkpoint as the GGUF file that it becomes: its name, its pairs, and its tensors with their types."""

    checkpoint: Checkpoint
    file_name: str
    pairs: list[Pair]
    tensors: list[tuple[Tensor, TensorType]]

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

    def chunks(self, tensor: Tensor, type: TensorType) -> Iterator[NDArray[Any]]:
        """Yield the rows of a tensor in a type, some at a time and in order: (rows, n_blocks), or its bytes."""
        if not tensor.pieces:
            yield tensor.values.reshape(1, -1)
            return
        threads = default_threads()
        pieces = ((self._stored(piece.source), range(piece.start, piece.stop)) for piece in tensor.pieces)
        with ThreadPoolExecutor(threads) as pool:
            yield from encoded_chunks(pieces, type, pool, ahead=threads)

    def _stored(self, name: str) -> Stored:
        file, entry = self.checkpoint.tensors[name]
        return Stored(name, file.path, entry.dtype, entry.offset, entry.shape[-1])


def plan_conversion(
    checkpoint: Checkpoint,
    outtype: str | None,
    compat: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Conversion:
    """Check all of a checkpoint but its weights, and say what file it becomes; see `convert`.

    outtype    None: every matrix keeps the type that it has in the checkpoint, and F64 becomes F32
    overrides  general.* keys that the user sets
    """
    _check_dtypes(checkpoint)
    matrix_type, file_type = OUTTYPES[_resolve(outtype or "auto", checkpoint)]
    architecture = ARCHITECTURES[checkpoint.config.architecture]
    found = tensors(architecture, checkpoint)
    n_weights = sum(prod(tensor.shape) for tensor in found)
    facts = read_facts(checkpoint, n_weights, _size_label(found), overrides, compat)
    return Conversion(
        checkpoint,
        file_name(facts.parts, matrix_type),
        _pairs(architecture, checkpoint, facts, n_weights, file_type, compat),
        [
            (tensor, _type_of(tensor, matrix_type if outtype else _own_type(checkpoint, tensor)))
            for tensor in found
        ],
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


def _size_label(found: list[Tensor]) -> str:
    """Write how large a model is: 3.8B, or 16x4.2B for sixteen experts and what they share."""
    n_weights = sum(prod(tensor.shape) for tensor in found)
    stacks = [tensor.shape for tensor in found if len(tensor.shape) == 3]
    if not stacks:
        return count_label(n_weights)
    in_experts, n_experts = sum(prod(shape) for shape in stacks), stacks[0][0]
    return f"{n_experts}x{count_label(n_weights - in_experts + in_experts // n_experts)}"


def _pairs(
    architecture: Architecture,
    checkpoint: Checkpoint,
    facts: Facts,
    n_weights: int,
    file_type: int,
    compat: bool,
) -> list[Pair]:
    """List all metadata in the order of llama.cpp's converter, our own at the end."""
    vocabulary = Vocabulary.from_checkpoint(checkpoint)
    config = architecture.as_reference(checkpoint.config) if compat else checkpoint.config
    pairs = [
        *leading_pairs(config),
        *general_pairs(facts, n_weights),
        *hyperparameter_pairs(architecture, config, file_type),
        *vocabulary.metadata(),
    ]
    if not compat:
        pairs += own_pairs(architecture, config) + vocabulary.private_metadata()
    # Of two pairs with one key the later one counts, at the place of the first.
    return list({pair[0]: pair for pair in pairs}.values())


def _type_of(tensor: Tensor, matrix_type: str) -> TensorType:
    if tensor.is_always_f32:
        return tensor_type("F32")
    wanted = tensor_type(matrix_type)
    is_spared = matrix_type in ("TQ1_0", "TQ2_0") and tensor.name in _NOT_TERNARY
    return tensor_type("F16") if is_spared or tensor.shape[-1] % wanted.block else wanted


def _own_type(checkpoint: Checkpoint, tensor: Tensor) -> str:
    """Return the type of a tensor in the checkpoint; F32 where experts differ."""
    types = {checkpoint.tensors[piece.source][1].dtype for piece in tensor.pieces}
    return types.pop() if types in ({"F16"}, {"BF16"}) else "F32"
