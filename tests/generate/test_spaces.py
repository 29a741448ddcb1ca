"""A space belongs to the word behind it: it must be there when a text goes on, and not when one begins."""

from pathlib import Path

import pytest

import phicourse
from phicourse.generate import LLM

BEGINNING = "Once upon a time, there was a little"


@pytest.fixture(scope="module")
def storyteller(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("stories260k")
    return phicourse.load(phicourse.convert(stories260k, folder / "f32.gguf", "f32", progress=False))


def test_a_continued_text_keeps_the_space(storyteller: LLM) -> None:
    assert storyteller.generate(BEGINNING, max_tokens=2, temperature=0).startswith(" g")  # girl
    streamed = "".join(storyteller.generate(BEGINNING, max_tokens=2, temperature=0, stream=True))
    assert streamed.startswith(" g")


def test_a_text_from_nothing_begins_without_one(storyteller: LLM) -> None:
    ids = storyteller.tokenize("", special=True)
    assert storyteller.generate(ids, max_tokens=40, temperature=0).startswith(BEGINNING)
