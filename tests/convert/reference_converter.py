"""llama.cpp's convert_hf_to_gguf.py, from the source distribution of llama-cpp-python 0.3.36.

`make oracles` unpacks it to .oracles/llama.cpp. One process runs all the jobs: its imports take longer than they do.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import json, sys
jobs, oracle = json.loads(sys.argv[1]), sys.argv[2]
sys.path[:0] = [oracle + "/gguf-py", oracle]
import convert_hf_to_gguf
for job in jobs:
    sys.argv = ["convert_hf_to_gguf.py", *job]
    convert_hf_to_gguf.main()
"""


def run_reference(repository: Path, jobs: list[list[str]]) -> None:
    """Run the script with each list of arguments."""
    oracle = repository / ".oracles" / "llama.cpp"
    if not (oracle / "convert_hf_to_gguf.py").is_file():
        pytest.skip("needs llama.cpp's converter in .oracles/llama.cpp: make oracles")
    for module in ("transformers", "torch"):
        pytest.importorskip(module, reason="llama.cpp's converter needs transformers and torch")
    command = [sys.executable, "-c", DRIVER, json.dumps(jobs), str(oracle)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"NO_LOCAL_GGUF": "1", "PATH": ""}
    )
    assert run.returncode == 0, run.stderr[-2000:]
