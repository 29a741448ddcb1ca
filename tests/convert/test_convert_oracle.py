"""The same bytes as llama.cpp's convert_hf_to_gguf.py, on every kind of checkpoint that we convert.

The script comes from the source distribution of llama-cpp-python 0.3.36; `make oracles` unpacks it to
.oracles/llama.cpp. One process of it converts all the cases.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle_cases import CASES, OracleCases
from small_checkpoints import WriteCheckpoint

from phicourse.convert import convert
from phicourse.gguf import GGUFFile

# Runs the script's main() for each (folder, outtype, outfile); its imports take longer than the work.
DRIVER = """
import json, sys
from pathlib import Path
jobs = json.loads(sys.argv[1])
sys.path.insert(0, str(Path(sys.argv[2])))
sys.path.insert(0, str(Path(sys.argv[2]) / "gguf-py"))
import convert_hf_to_gguf
for folder, outtype, outfile in jobs:
    sys.argv = ["convert_hf_to_gguf.py", folder, "--outtype", outtype, "--outfile", outfile]
    convert_hf_to_gguf.main()
"""


@pytest.fixture(scope="session")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    shared_data: Path,
    phi_tiny: Path,
    write_checkpoint: WriteCheckpoint,
    real_config: Callable[..., dict[str, Any]],
) -> dict[str, Path]:
    """All checkpoints of CASES."""
    for module in ("transformers", "torch"):
        pytest.importorskip(module)
    cases = OracleCases(tmp_path_factory.mktemp("checkpoints"), shared_data, write_checkpoint, real_config)
    shutil.copytree(phi_tiny, cases.base / "phi-tiny")
    cases.folders["phi-tiny"] = cases.base / "phi-tiny"
    cases.write_phi3()
    cases.write_bpe()
    cases.write_phi2()
    cases.write_phimoe()
    assert cases.folders.keys() == CASES.keys()
    return cases.folders


@pytest.fixture(scope="session")
def theirs(
    tmp_path_factory: pytest.TempPathFactory, repository: Path, folders: dict[str, Path]
) -> dict[tuple[str, str], Path]:
    """What llama.cpp's converter writes: (case, outtype) -> file."""
    oracle = repository / ".oracles" / "llama.cpp"
    if not (oracle / "convert_hf_to_gguf.py").is_file():
        pytest.skip("needs llama.cpp's converter in .oracles/llama.cpp: make oracles")
    base = tmp_path_factory.mktemp("theirs")
    files = {(case, outtype): base / f"{case}-{outtype}.gguf" for case in CASES for outtype in CASES[case]}
    jobs = [(str(folders[case]), outtype, str(path)) for (case, outtype), path in files.items()]
    command = [sys.executable, "-c", DRIVER, json.dumps(jobs), str(oracle)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"NO_LOCAL_GGUF": "1", "PATH": ""}
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return files


def first_difference(ours: Path, theirs: Path) -> str:
    """Say where two files part, in words."""
    a, b = GGUFFile.open(ours), GGUFFile.open(theirs)
    if list(a.metadata) != list(b.metadata):
        return f"keys: ours {list(a.metadata)}, theirs {list(b.metadata)}"
    for key, value in a.metadata.items():
        if str(value) != str(b.metadata[key]):
            return f"{key}: ours {value}, theirs {b.metadata[key]}"
    if list(a.tensors) != list(b.tensors):
        return f"tensors: {list(a.tensors)}, {list(b.tensors)}"
    for name, tensor in a.tensors.items():
        if tensor != b.tensors[name] or not np.array_equal(a.data(name), b.data(name)):
            return f"{tensor}: theirs {b.tensors[name]}"
    return "the padding"


@pytest.mark.parametrize(("case", "outtype"), [(case, outtype) for case in CASES for outtype in CASES[case]])
def test_same_bytes(
    tmp_path: Path, folders: dict[str, Path], theirs: dict[tuple[str, str], Path], case: str, outtype: str
) -> None:
    ours = convert(folders[case], tmp_path / "ours.gguf", outtype, compat=True, progress=False)
    expected = theirs[case, outtype]
    assert ours.read_bytes() == expected.read_bytes(), first_difference(ours, expected)


def test_our_own_keys_come_after_all_of_theirs(
    tmp_path: Path, folders: dict[str, Path], theirs: dict[tuple[str, str], Path]
) -> None:
    """GGUF has no key for "this token swallows the white space after it", which Phi-3's tokens need.

    transformers does it (`rstrip` in tokenizer.json), llama.cpp does not, so `hello<|end|> \\n` has other tokens
    there. A file without the key would give our tokenizer the wrong tokens; other readers pass over it.
    """
    case = "Phi-3.5-mini-instruct"
    ours = GGUFFile.open(convert(folders[case], tmp_path / "ours.gguf", "f16", progress=False))
    reference = GGUFFile.open(theirs[case, "f16"])
    own = [key for key in ours.metadata if key not in reference.metadata]
    assert own == ["phicourse.tokenizer.rstrip_token_ids"]
    assert list(ours.metadata) == [*reference.metadata, *own]
    assert all(str(value) == str(ours.metadata[key]) for key, value in reference.metadata.items())
    assert all(np.array_equal(ours.data(name), reference.data(name)) for name in reference.tensors)
    stories = convert(folders["stories260k"], tmp_path / "stories.gguf", "f16", progress=False)
    assert stories.read_bytes() == theirs["stories260k", "f16"].read_bytes()
