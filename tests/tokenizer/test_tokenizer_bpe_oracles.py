"""Byte-pair encoding: the ids of transformers 5 and tokenizers 0.23, and of llama.cpp 0.3.36 where it is exact."""

import ast
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizer_texts import BPE_RELEASES, PLANES, SPECIAL_TEXTS, TEXTS, fuzzed_texts

from phicourse.gguf import GGUFWriter, ValueType
from phicourse.tokenizer import Tokenizer

FUZZED = 8000  # texts for each of the three releases
MESSAGES = [
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": "  Tell me\n a story. 🦥 "},
    {"role": "assistant", "content": "\n\nOnce"},
    {"role": "user", "content": "Go on."},
]


def parsed(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False, parse_special=True)


@pytest.fixture(scope="module", params=BPE_RELEASES)
def pair(
    request: pytest.FixtureRequest, bpe: dict[str, Tokenizer], shared_data: Path
) -> tuple[Tokenizer, Any]:
    """Our tokenizer and that of transformers, for one release."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(shared_data / "phi" / request.param)
    assert theirs.is_fast
    return bpe[request.param], theirs


@pytest.fixture(scope="module")
def sources(shared_data: Path, repository: Path) -> list[str]:
    """Real text, and code in two languages."""
    code = [*(repository / "phicourse").rglob("*.py"), *(repository / "native" / "src").rglob("*.?pp")]
    texts = [path.read_text(encoding="utf-8") for path in sorted(code)]
    wiki = (shared_data / "text" / "wiki.test.raw").read_text(encoding="utf-8")
    return ["".join(texts), wiki, "".join(TEXTS), (shared_data / "README.md").read_text(encoding="utf-8")]


def test_fuzz_as_transformers(pair: tuple[Tokenizer, Any], sources: list[str]) -> None:
    ours, theirs = pair
    texts = fuzzed_texts(FUZZED, ours.n_vocab, sources)
    assert len(texts) == FUZZED
    for text, ids in zip(texts, theirs(texts, add_special_tokens=False)["input_ids"], strict=True):
        assert parsed(ours, text) == ids, text


def test_texts_as_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    for text in (*TEXTS, *SPECIAL_TEXTS, *PLANES[3:14], " <|im_end|> \n x<|user|>\u3000 y"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert parsed(ours, text) == ids == ours.encode(text, parse_special=True)
        # transformers no longer cleans up spaces for vocabularies of this kind, and we never do.
        assert ours.decode(ids, special=True) == theirs.decode(ids)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_long_text(pair: tuple[Tokenizer, Any], shared_data: Path) -> None:
    ours, theirs = pair
    text = (shared_data / "text" / "wiki.test.raw").read_text(encoding="utf-8")[:300_000]
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == text


def test_a_chat_as_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    if theirs.chat_template is None:
        pytest.skip("Phi-2 has no chat template")
    for prompt in (True, False):
        ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=prompt, return_dict=False)
        assert ours.chat(MESSAGES, add_generation_prompt=prompt) == ids


def test_normalization_as_tokenizers(bpe: dict[str, Tokenizer], shared_data: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from dataclasses import replace

    theirs = tokenizers.Tokenizer.from_file(str(shared_data / "phi" / "phi-4" / "tokenizer.json"))
    theirs.normalizer = tokenizers.normalizers.NFC()
    ours = Tokenizer(replace(bpe["phi-4"].vocabulary, normalizer="NFC"))
    for text in ("e\u0301", "\u212b\u1100\u1161", "<|im_end|> e\u0301<|im_sep|>\u2126"):
        assert parsed(ours, text) == theirs.encode(text).ids != parsed(bpe["phi-4"], text)


def converters_names(llama_cpp_source: Path) -> tuple[str, dict[str, str]]:
    """Return the text that llama.cpp's converter encodes, and SHA-256 of its ids → name of the pre-tokenizer."""
    source = (llama_cpp_source / "conversion" / "base.py").read_text(encoding="utf-8")
    text = re.search(r"^ +chktxt = (.+)$", source, re.MULTILINE)
    names = re.findall(r'chkhsh == "(\w+)":(?:\s*#[^\n]*)*\s*res = "([^"]+)"', source)
    assert text is not None and len(names) > 90
    return ast.literal_eval(text[1]), dict(names)


@pytest.mark.parametrize("release", BPE_RELEASES)
def test_llama_cpps_converter_knows_our_ids(
    bpe: dict[str, Tokenizer], llama_cpp_source: Path, release: str
) -> None:
    text, names = converters_names(llama_cpp_source)
    fingerprint = hashlib.sha256(str(parsed(bpe[release], text)).encode()).hexdigest()
    assert names[fingerprint] == bpe[release].vocabulary.pre == BPE_RELEASES[release]


def test_vocabulary_tests_of_llama_cpp(llama_cpp_source: Path) -> None:
    path = llama_cpp_source / "models" / "ggml-vocab-gpt-2.gguf"
    texts = path.with_name(path.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    tokenizer = Tokenizer.from_gguf(path)
    assert len(texts) == len(lines) == 47
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == [int(id) for id in line.split()]
        assert tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def llama(
    bpe: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Tokenizer, Any]]:
    """Our tokenizers, and llama.cpp's on files with their vocabularies."""
    llama_cpp = pytest.importorskip("llama_cpp")
    pairs: dict[str, tuple[Tokenizer, Any]] = {}
    for name, ours in bpe.items():
        path = tmp_path_factory.mktemp("llama") / "vocabulary.gguf"
        with GGUFWriter(path) as writer:
            writer.add("general.architecture", "phi3", ValueType.STRING)
            for entry in ours.vocabulary.metadata():
                writer.add(*entry)
        pairs[name] = (Tokenizer.from_gguf(path), llama_cpp.Llama(str(path), vocab_only=True, verbose=False))
    return pairs


HINDI = "हिन्दी"


@pytest.mark.parametrize("release", BPE_RELEASES)
def test_as_llama_cpp(llama: dict[str, tuple[Tokenizer, Any]], release: str) -> None:
    ours, theirs = llama[release]
    own = (
        "I'Ve told you: HTTPServer x2 = 12345;\r\n\t camelCase",
        "    if x:\n\t\treturn 'a'  ",
        "ПриветМир",
    )
    for text in (*own, *TEXTS, *SPECIAL_TEXTS, *PLANES):
        if HINDI in text and release == "Phi-4-mini-instruct":
            continue
        for special in (False, True):
            expected = theirs.tokenize(text.encode(), add_bos=True, special=special)
            assert ours.encode(text, parse_special=special) == expected, text


@pytest.mark.parametrize("release", BPE_RELEASES)
def test_end_tokens_as_llama_cpp(llama: dict[str, tuple[Tokenizer, Any]], release: str) -> None:
    import llama_cpp

    ours, theirs = llama[release]
    vocabulary = theirs._model.vocab
    ends = {id for id in range(ours.n_vocab) if llama_cpp.llama_vocab_is_eog(vocabulary, id)}
    assert ours.eog == ends


def test_only_llama_cpp_cuts_gpt_4os_words_before_combining_marks(
    llama: dict[str, tuple[Tokenizer, Any]], bpe: dict[str, Tokenizer]
) -> None:
    ours, theirs = llama["Phi-4-mini-instruct"]
    their_ids = theirs.tokenize(HINDI.encode(), add_bos=False)
    assert [ours.decode([id]) for id in ours.encode(HINDI)] == ["ह", "िन्द", "ी"]
    assert [ours.decode([id]) for id in their_ids] == ["ह", "िन", "्द", "ी"]
