"""Finding llama.cpp's libraries, where PyPI's package has them and where conda-forge's has them."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from phicourse.evaluate import llama_library
from phicourse.evaluate.llama_library import llama_cpp_library


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama_cpp without libraries, in an environment without any."""
    origin = tmp_path / "site-packages" / "llama_cpp" / "__init__.py"
    origin.parent.mkdir(parents=True)
    spec = ModuleSpec("llama_cpp", None, origin=str(origin))
    monkeypatch.setattr(llama_library, "find_spec", lambda name: spec)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    return origin.parent


def test_the_packages_own_folder_comes_first(package: Path, tmp_path: Path) -> None:
    assert llama_cpp_library("ggml-base") is None
    in_environment = tmp_path / "environment" / "lib" / "libggml-base.so"
    for path in (in_environment, package / "lib" / "libggml-base.so"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert llama_cpp_library("ggml-base") == package / "lib" / "libggml-base.so"
    (package / "lib" / "libggml-base.so").unlink()
    assert llama_cpp_library("ggml-base") == in_environment
    assert llama_cpp_library("ggml-cpu") is None


def test_without_the_package_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_library, "find_spec", lambda name: None)
    assert llama_cpp_library("ggml-base") is None
