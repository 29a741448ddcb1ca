"""The same ids as sentencepiece 0.2, Hugging Face's tokenizers 0.23 and llama.cpp 0.3.36 give."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_texts import PLANES, RELEASES, SPECIAL_TEXTS, TEXTS

from phicourse.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")

# Fixed examples; a fixture of the session does not change between them.
FUZZ = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PARTS = (
    "<|end|>",
    "<|user|>",
    "<|",
    "|>",
    "</s>",
    "<s>",
    "<unk>",
    " ",
    "\n",
    "\t",
    "▁",
    "a",
    "The",
    "<",
    "é",
    "\u3000",
)
WITH_SPECIAL = st.lists(st.one_of(st.sampled_from(PARTS), ANY_TEXT), max_size=12).map("".join)


@pytest.fixture(scope="module")
def pieces(phi3_folder: Path) -> "sentencepiece.SentencePieceProcessor":
    return sentencepiece.SentencePieceProcessor(model_file=str(phi3_folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def fast(phi3_folder: Path) -> "tokenizers.Tokenizer":
    return tokenizers.Tokenizer.from_file(str(phi3_folder / "tokenizer.json"))


def raw(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False)


def parsed(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False, parse_special=True)


@pytest.mark.parametrize("text", (*TEXTS, *SPECIAL_TEXTS, *PLANES))
def test_as_sentencepiece(phi3: Tokenizer, pieces: "sentencepiece.SentencePieceProcessor", text: str) -> None:
    assert raw(phi3, text) == pieces.encode(text)


@pytest.mark.parametrize("text", (*TEXTS, *SPECIAL_TEXTS, *PLANES))
def test_as_the_fast_tokenizer(phi3: Tokenizer, fast: "tokenizers.Tokenizer", text: str) -> None:
    ids = parsed(phi3, text)
    assert ids == fast.encode(text, add_special_tokens=False).ids
    assert phi3.decode(ids, special=True) == fast.decode(ids, skip_special_tokens=False)


@FUZZ
@given(text=ANY_TEXT)
def test_fuzz_as_sentencepiece(
    phi3: Tokenizer, pieces: "sentencepiece.SentencePieceProcessor", text: str
) -> None:
    assert raw(phi3, text) == pieces.encode(text)


@FUZZ
@given(text=WITH_SPECIAL)
def test_fuzz_as_the_fast_tokenizer(phi3: Tokenizer, fast: "tokenizers.Tokenizer", text: str) -> None:
    assert parsed(phi3, text) == fast.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_as_its_fast_tokenizer(release_folder: dict[str, Path], release: str) -> None:
    ours = Tokenizer.from_checkpoint(release_folder[release])
    theirs = tokenizers.Tokenizer.from_file(str(release_folder[release] / "tokenizer.json"))
    for text in (*TEXTS, *SPECIAL_TEXTS, "<|placeholder12|> \n x <|image|>\n"):
        assert parsed(ours, text) == theirs.encode(text, add_special_tokens=False).ids


def test_a_long_text(
    phi3: Tokenizer, pieces: "sentencepiece.SentencePieceProcessor", shared_data: Path
) -> None:
    text = (shared_data / "text" / "wiki.test.raw").read_text(encoding="utf-8")[:300_000]
    ids = raw(phi3, text)
    assert ids == pieces.encode(text)
    assert phi3.decode(ids) == text


def test_the_embedded_model(tiny: Tokenizer, tiny_folder: Path) -> None:
    fast = tokenizers.Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tiny_folder / "tokenizer.model"))
    for text in (*TEXTS, *SPECIAL_TEXTS, *PLANES):
        assert raw(tiny, text) == pieces.encode(text)
        assert parsed(tiny, text) == fast.encode(text, add_special_tokens=False).ids
        assert tiny.encode(text, parse_special=True) == fast.encode(text).ids


def test_transformers_gives_the_same_ids_for_a_chat(phi3: Tokenizer, phi3_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(phi3_folder)
    messages = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "  Tell me\n a story. 🦥 "},
        {"role": "assistant", "content": "\n\nOnce"},
        {"role": "user", "content": "Go on."},
    ]
    for prompt in (True, False):
        ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        assert phi3.chat(messages, add_generation_prompt=prompt) == ids


@pytest.fixture(scope="module")
def llama(llama_cpp_source: Path) -> "tuple[object, Tokenizer]":
    """llama.cpp's tokenizer, and ours, on llama.cpp's own Phi-3 vocabulary file."""
    llama_cpp = pytest.importorskip("llama_cpp")
    path = llama_cpp_source / "models" / "ggml-vocab-phi-3.gguf"
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False), Tokenizer.from_gguf(path)


def test_vocabulary_tests_of_llama_cpp(llama_cpp_source: Path) -> None:
    path = llama_cpp_source / "models" / "ggml-vocab-phi-3.gguf"
    texts = path.with_name(path.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    tokenizer = Tokenizer.from_gguf(path)
    assert len(texts) == len(lines) == 47
    for text, line in zip(texts, lines, strict=True):
        assert raw(tokenizer, text) == [int(id) for id in line.split()]


# llama.cpp takes only ASCII white space for white space; Hugging Face and we take all of Unicode's.
ASCII_SPACE = [text for text in SPECIAL_TEXTS if "\u3000" not in text]


def test_as_llama_cpp(llama: "tuple[object, Tokenizer]") -> None:
    theirs, ours = llama
    for text in (*TEXTS, *ASCII_SPACE, *PLANES):
        for special in (False, True):
            expected = theirs.tokenize(text.encode(), add_bos=False, special=special)
            assert ours.encode(text, add_special=False, parse_special=special) == expected
        assert ours.encode(text) == theirs.tokenize(text.encode(), add_bos=True, special=False)


def test_white_space_that_only_llama_cpp_keeps(llama: "tuple[object, Tokenizer]") -> None:
    theirs, ours = llama
    text = "<|end|>\u3000x"
    assert theirs.tokenize(text.encode(), add_bos=False, special=True) == [32007, 29871, 30358, 29916]
    assert ours.encode(text, add_special=False, parse_special=True) == [32007, 921]


def test_end_tokens_as_llama_cpp(llama: "tuple[object, Tokenizer]") -> None:
    import llama_cpp

    theirs, ours = llama
    vocabulary = theirs._model.vocab
    ends = {id for id in range(ours.n_vocab) if llama_cpp.llama_vocab_is_eog(vocabulary, id)}
    assert ours.eog == ends == {2, 32000, 32007}


def test_stories260k_as_llama_cpp_reads_it(stories260k: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    from phicourse.gguf import GGUFWriter, ValueType

    ours = Tokenizer.from_checkpoint(stories260k)
    path = tmp_path / "vocabulary.gguf"
    with GGUFWriter(path) as writer:
        writer.add("general.architecture", "phi3", ValueType.STRING)
        for entry in ours.vocabulary.metadata():
            writer.add(*entry)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in (*TEXTS, "Once upon a time,  there was\n\na girl"):
        assert ours.encode(text) == theirs.tokenize(text.encode(), add_bos=True, special=False)
    assert ours.encode("")[:1] == [1]
