"""A thousand models that are loaded and dropped in the middle of a sentence leave nothing behind."""

import gc
import os
import threading
from pathlib import Path

import pytest

import phicourse
from phicourse.generate import LLM
from phicourse.generate.backends import NativeBackend, native_module
from phicourse.gguf import GGUFFile
from phicourse.tokenizer import Tokenizer

STATM = Path("/proc/self/statm")
pytestmark = [
    pytest.mark.skipif(native_module() is None, reason="needs the compiled engine"),
    pytest.mark.skipif(not STATM.exists(), reason="needs /proc to count memory and open files"),
]

WARM_UP, LOADS = 50, 1000
ALLOWED = 4 << 20  # bytes: less than one engine takes here, and 4 kB a load


def resident() -> int:
    """Bytes of memory that belong to this process alone; the mapped file does not count."""
    _, pages, shared, *_ = map(int, STATM.read_text().split())
    return (pages - shared) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def load_and_cancel(path: Path, tokenizer: Tokenizer) -> None:
    """Two pieces of an answer, two sequences at once; nobody waits for the rest."""
    with GGUFFile.open(path) as file:
        llm = LLM(NativeBackend(file, n_ctx=128, threads=2, n_sequences=2), tokenizer)
        answer = llm.generate("Once upon a time", stream=True, temperature=0)
        next(answer)
        answer.close()
        several = llm.generate_many(["Once upon a time", "Lily"], stream=True, temperature=0)
        next(several)
        several.close()


def test_a_thousand_loads_and_cancellations_leak_nothing(phi_tiny: Path, tmp_path: Path) -> None:
    f16 = phicourse.convert(phi_tiny, tmp_path / "f16.gguf", progress=False)
    path = phicourse.quantize(f16, tmp_path / "q4.gguf", "Q4_K_M", progress=False)
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer.from_gguf(file)
    for _ in range(WARM_UP):
        load_and_cancel(path, tokenizer)
    gc.collect()
    memory, files, threads = resident(), open_files(), threading.active_count()
    for _ in range(LOADS):
        load_and_cancel(path, tokenizer)
    gc.collect()
    assert open_files() == files
    assert threading.active_count() == threads and len(os.listdir("/proc/self/task")) < 100
    assert resident() - memory < ALLOWED
