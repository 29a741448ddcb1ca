"""What can be wrong with the input, the wishes and the output of `quantize`: one line, exit status 1, nothing left."""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, files, the_line
from random_phi import write_random_phi

from phicourse.convert import convert
from phicourse.quantize import quantize
from phicourse.quantize.importance import ImportanceMatrix, Squares

DOWN = "blk.0.ffn_down.weight"


@dataclass(frozen=True)
class Inputs:
    """What the cases make their arguments of; `folder` takes their own files."""

    folder: Path
    f16: Path
    narrow: Path
    q8_0: Path
    matrix: ImportanceMatrix

    def imatrix(self, columns: int = 256, name: str = DOWN, value: float = 1.0, format: str = "gguf") -> Path:
        """An importance file with one tensor; its last number is put there behind the writer's back."""
        sums = np.full((1, columns), 1.0, np.float32)
        sums[0, -1] = 0.8125  # a number that is nowhere else in the file
        path = self.folder / f"importance.{format}"
        squares = {name: Squares(sums, np.array([1]))}
        replace(self.matrix, squares=squares).write(path, format)
        raw = path.read_bytes()
        assert raw.count(struct.pack("<f", 0.8125)) == 1
        path.write_bytes(raw.replace(struct.pack("<f", 0.8125), struct.pack("<f", value)))
        return path

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def models(f16: Path, phi_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Inputs]:
    folder = tmp_path_factory.mktemp("models")
    checkpoint = write_random_phi(folder / "narrow", phi_tiny, hidden=128, ffn=192)
    narrow = convert(checkpoint, folder / "narrow.gguf", "f16", progress=False)
    q8_0 = quantize(f16, folder / "q8_0.gguf", "Q8_0", progress=False)
    matrix = ImportanceMatrix(None, ("text.txt",), 1, 512, {})
    return lambda own: Inputs(own, f16, narrow, q8_0, matrix)


@pytest.fixture
def inputs(models: Callable[[Path], Inputs], tmp_path: Path) -> Inputs:
    (tmp_path / "inputs").mkdir()
    return models(tmp_path / "inputs")


# IN, TYPE and options, and what the line says
Case = Callable[[Inputs], list[str | Path]]
CASES: dict[str, tuple[Case, str]] = {
    "a matrix of another model": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.imatrix(name="blk.0.attn_q.weight")],
        "importance.gguf: none of its 1 entries, as blk.0.attn_q.weight, is of a tensor of this model",
    ),
    "a matrix of a wider model": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.imatrix(columns=512)],
        f"importance.gguf: {DOWN} has 512 columns, this model 256",
    ),
    "a matrix that is too short": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.imatrix(columns=255, format="dat")],
        f"importance.dat: {DOWN} has 255 columns, this model 256",
    ),
    "a matrix with NaN": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.imatrix(value=np.nan)],
        f"importance.gguf: {DOWN}: has infinite or undefined numbers",
    ),
    "an old matrix with NaN": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.imatrix(value=np.nan, format="dat")],
        f"importance.dat: {DOWN}: has infinite or undefined numbers",
    ),
    "a matrix with infinity": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.imatrix(value=np.inf)],
        f"importance.gguf: {DOWN}: has infinite or undefined numbers",
    ),
    "a matrix with a negative number": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.imatrix(value=-1)],
        f"importance.gguf: {DOWN}: has negative numbers",
    ),
    "an old matrix with a negative number": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.imatrix(value=-1, format="dat")],
        f"importance.dat: {DOWN}: has negative numbers",
    ),
    "a matrix that is cut": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.file("cut.gguf", i.imatrix().read_bytes()[:-200])],
        "cut.gguf: ",
    ),
    "a model for a matrix": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.f16],
        "this is no importance matrix (phicourse imatrix)",
    ),
    "a text for a matrix": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.file("story.txt", b"Once upon a time there was a dog.")],
        "story.txt: is no importance matrix",
    ),
    "no matrix": (
        lambda i: [i.f16, "Q4_0", "--imatrix", i.folder / "none.gguf"],
        "none.gguf: there is no such file",
    ),
    "a mix that needs a matrix": (
        lambda i: [i.f16, "IQ2_XXS"],
        "IQ2_XXS needs an importance matrix: ",
    ),
    "a mix that needs more than the matrix has": (
        lambda i: [i.f16, "IQ2_XS", "--imatrix", i.imatrix()],
        "IQ2_XS needs an importance matrix: ",
    ),
    "a type that needs a matrix": (
        lambda i: [i.f16, "Q8_0", "--token-embedding-type", "iq1_s"],
        "token_embd.weight would be IQ1_S",
    ),
    "rows that the mix's blocks do not divide": (
        lambda i: [i.narrow, "Q1_0"],
        "narrow.gguf: blk.0.ffn_down.weight: rows of 192 weights cannot be Q1_0, whose blocks have 128",
    ),
    "rows that a type's blocks do not divide": (
        lambda i: [i.narrow, "Q8_0", "--output-tensor-type", "q6_k"],
        "narrow.gguf: output.weight: rows of 128 weights cannot be Q6_K, whose blocks have 256",
    ),
    "a file that is quantized already": (
        lambda i: [i.q8_0, "Q4_K_M"],
        "weight is Q8_0 already, errors would add up",
    ),
    "a list of types that is not there": (
        lambda i: [i.f16, "Q4_0", "--tensor-type-file", i.folder / "types.txt"],
        "types.txt: No such file",
    ),
    "a list of types with a mistake": (
        lambda i: [i.f16, "Q4_0", "--tensor-type-file", i.file("types.txt", b"ffn_down=q8_0\nffn_up")],
        "types.txt: line 2: 'ffn_up': expected REGEX=TYPE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("old", [None, b"precious"], ids=["new", "in place of another"])
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    case: str, old: bytes | None, inputs: Inputs, tmp_path: Path
) -> None:
    arguments, message = CASES[case]
    source, mix, *options = arguments(inputs)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "o.gguf"
    if old is not None:
        out.write_bytes(old)
        options.append("--force")
    before = files(inputs.folder)
    assert message in fails("quantize", source, out, mix, *options)
    assert files(inputs.folder) == before
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == ({"o.gguf": old} if old else {})


def test_a_disk_without_room_is_seen_before_anything_is_written(
    f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    line = fails("quantize", f16, tmp_path / "o.gguf", "Q8_0")
    assert "o.gguf: needs " in line and "the disk has 1,000 free" in line
    assert files(tmp_path) == set()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(f16: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    assert "o.gguf" in fails("quantize", f16, folder / "o.gguf", "Q8_0")
    assert files(folder) == set()


# ---- real disks ------------------------------------------------------------------------------------------

# In a namespace of its own anybody may mount a disk in memory: do so, run a command, list what it left there.
ON_A_DISK = """
mount -t tmpfs -o "$1" none "$0" 2>&1 || exit 99
folder=$0; shift
"$@"
status=$?
ls -A "$folder"
exit $status
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [("size=1m", "o.gguf: needs "), ("size=9m,ro", "o.gguf: cannot be written (Read-only file system)")],
    ids=["a small one", "one to read only"],
)
def test_a_disk_that_takes_no_file(
    options: str, message: str, f16: Path, tmp_path: Path, repository: Path
) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a disk")
    quantize = [sys.executable, "-m", "phicourse", "quantize", str(f16), str(tmp_path / "o.gguf"), "Q8_0"]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_DISK, str(tmp_path), options]
    done = subprocess.run([*command, *quantize], cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stdout or done.stderr}")
    assert done.returncode == 1
    assert message in the_line(done.stderr)
    assert done.stdout == ""
