"""Tokenizers of real releases and of the embedded model."""

import shutil
from pathlib import Path

import pytest
from tokenizer_texts import BPE_RELEASES, RELEASES

from phicourse.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def phi3_folder(shared_data: Path) -> Path:
    """The tokenizer files of Phi-3-mini-4k-instruct."""
    return shared_data / "phi" / "Phi-3-mini-4k-instruct"


@pytest.fixture(scope="session")
def phi3(phi3_folder: Path) -> Tokenizer:
    """The tokenizer of Phi-3-mini."""
    return Tokenizer.from_checkpoint(phi3_folder)


@pytest.fixture(scope="session")
def release_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the releases, each with the one tokenizer.model that they share."""
    folders: dict[str, Path] = {}
    for name in RELEASES:
        folders[name] = folder = tmp_path_factory.mktemp(name)
        for source in (shared_data / "phi" / name).iterdir():
            shutil.copyfile(source, folder / source.name)
        for shared in ("tokenizer.model", "config.json"):
            shutil.copyfile(shared_data / "phi" / RELEASES[0] / shared, folder / shared)
    return folders


@pytest.fixture(scope="session")
def bpe(shared_data: Path) -> dict[str, Tokenizer]:
    """The tokenizers of the releases with byte-pair encoding as in GPT-2."""
    return {name: Tokenizer.from_checkpoint(shared_data / "phi" / name) for name in BPE_RELEASES}


@pytest.fixture(scope="session")
def tiny_folder(phi_tiny: Path) -> Path:
    """The embedded model's folder, where it has a tokenizer already."""
    if not (phi_tiny / "tokenizer.model").is_file():
        pytest.skip("needs data/phi-tiny/tokenizer.model")
    return phi_tiny


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Tokenizer:
    """The tokenizer of the embedded model."""
    return Tokenizer.from_checkpoint(tiny_folder)


@pytest.fixture(scope="session")
def llama_cpp_source(repository: Path) -> Path:
    """The source of llama.cpp's converter and its vocabulary tests."""
    path = repository / ".oracles" / "llama.cpp"
    if not path.is_dir():
        pytest.skip("needs llama.cpp's converter in .oracles (make oracles)")
    return path
