"""Looks for a real Phi on this machine, and whether it would run here: what a notebook asks before it uses one.

Nothing is downloaded and no address is asked. PHICOURSE_MODEL names a checkpoint folder or a GGUF file; without it the
cache is searched that `phicourse download` and transformers share.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub import try_to_load_from_cache as find_in_cache

from phicourse.checkpoint.folder import Checkpoint
from phicourse.errors import CheckpointError, PhiCourseError
from phicourse.gguf.reader import GGUFFile
from phicourse.memory import available_memory
from phicourse.sizes import size_text

VARIABLE = "PHICOURSE_MODEL"
NAME = "Phi-3.5-mini"
_REPOSITORY = "microsoft/Phi-3.5-mini-instruct"
_N_WEIGHTS = 3_821_079_552
_Q4_K_M_BITS = 5.02  # a weight of Phi-3.5-mini, see notebook 09
_BESIDES = 600_000_000  # bytes of memory for the cache of a short chat, the tokenizer and Python
_INSTEAD = "phi-tiny takes its place"


@dataclass(frozen=True)
class LocalPhi:
    """A model to go on with.

    path     a checkpoint folder or a GGUF file
    is_real  whether it is the real one
    why      one sentence: what was found and what it needs
    """

    path: Path
    is_real: bool
    why: str

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True)
class Needs:
    """Bytes that it takes to quantize a model to Q4_K_M, if it is not yet quantized, and to talk to it."""

    memory: int
    disk: int

    def __str__(self) -> str:
        return f"{size_text(self.memory)} of memory and {size_text(self.disk)} of disk"


def find_phi(instead: Path | str, folder: Path | str) -> LocalPhi:
    """Return a real Phi that this machine has and can run; else the small model.

    instead  the small model
    folder   where a quantized file would be written
    """
    wanted = os.environ.get(VARIABLE, "")
    path = Path(wanted) if wanted else next(_in_cache(), None)
    if path is None:
        why = f"{VARIABLE} is not set, and the Hub's cache has no {NAME}"
        return LocalPhi(Path(instead), False, f"{why}; it would need {needs_of_mini()}: {_INSTEAD}.")
    try:
        needs = _needs_of(path)
    except (PhiCourseError, OSError) as error:
        return LocalPhi(Path(instead), False, f"{_name_of(path)} cannot be used ({error}): {_INSTEAD}.")
    lacking = _lacking(needs, Path(folder))
    if lacking:
        return LocalPhi(Path(instead), False, f"{_name_of(path)} needs {needs}, {lacking}: {_INSTEAD}.")
    return LocalPhi(path, True, f"{_name_of(path)} needs {needs}, and both are free.")


def needs_of_mini() -> Needs:
    """What Phi-3.5-mini needs, from its checkpoint on."""
    return _needs_to_quantize(_N_WEIGHTS)


def _needs_of(path: Path) -> Needs:
    """Open a model, which reads only its headers, and say what it needs."""
    if path.is_dir():
        return _needs_to_quantize(Checkpoint.open(path).n_weights)
    if path.suffix.lower() != ".gguf":
        raise CheckpointError("neither a checkpoint folder nor a GGUF file")
    with GGUFFile.open(path) as file:
        return Needs(file.size + _BESIDES, 0)


def _needs_to_quantize(n_weights: int) -> Needs:
    n_bytes = int(n_weights * _Q4_K_M_BITS / 8)
    return Needs(n_bytes + _BESIDES, n_bytes)


def _name_of(path: Path) -> str:
    """What to call a model; a folder of the Hub's cache is named after a commit, so after its repository."""
    return path.parents[1].name.rpartition("--")[2] if path.parent.name == "snapshots" else path.name


def _lacking(needs: Needs, folder: Path) -> str:
    """Say what is too little here; memory that the system does not tell is taken for enough."""
    memory, disk = available_memory(), shutil.disk_usage(folder).free
    short = []
    if memory is not None and memory < needs.memory:
        short.append(f"{size_text(memory)} of memory")
    if disk < needs.disk:
        short.append(f"{size_text(disk)} of disk")
    return f"only {' and '.join(short)} are free" if short else ""


def _in_cache() -> Iterator[Path]:
    """Yield what the Hub's cache has of Phi-3.5-mini: Microsoft's checkpoint, then GGUF files, small ones first."""
    config = find_in_cache(_REPOSITORY, "config.json")
    if isinstance(config, str):
        yield Path(config).parent
    pattern = f"models--*{NAME}*/snapshots/*/*.gguf"
    yield from sorted(Path(constants.HF_HUB_CACHE).glob(pattern), key=lambda path: path.stat().st_size)
