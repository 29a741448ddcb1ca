"""Names taken apart, and the front matter of model cards."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from phicourse.convert.model_card import parse_card, read_card
from phicourse.convert.model_name import NameParts, count_label, file_name, parse_name, title
from phicourse.errors import ConvertError

NAMES = [
    ("Phi-3.5-mini-instruct", 3_821_079_552, ("Phi-3.5", "instruct", None, "mini")),
    ("microsoft/Phi-3-mini-128k-instruct", 3_821_079_552, ("Phi-3", "128k-instruct", None, "mini")),
    ("phi-4", 14_659_507_200, ("phi", None, "4", None)),
    ("Phi-4-mini-instruct", 3_836_021_760, ("Phi-4", "instruct", None, "mini")),
    ("Phi-4-reasoning-plus", 14_659_507_200, (None, None, None, None)),  # all of it could be the basename
    ("Mixtral-8x7B-Instruct-v0.1", 46_702_792_704, ("Mixtral", "Instruct", "v0.1", "8x7B")),
    ("bloom-7b1", 7_069_016_064, ("bloom", None, None, "7.1B")),
    ("checkpoint", 260_000, (None, None, None, None)),
    ("Phi-3-mini-q4_K-chat", 3_821_079_552, ("Phi-3", "chat", None, "mini")),
    ("my model 7B", 7_000_000_000, (None, None, None, None)),
]


@pytest.mark.parametrize("case", NAMES, ids=lambda case: case[0])
def test_known_names(case: tuple) -> None:
    name, n_weights, expected = case
    parts = parse_name(name, n_weights)
    assert (parts.basename, parts.finetune, parts.version, parts.size_label) == expected


WORDS = [
    "phi",
    "Phi",
    "3",
    "3.5",
    "v2",
    "iter3",
    "mini",
    "medium",
    "xl",
    "7B",
    "7b1",
    "1_5b",
    "8x7B",
    "A14B",
    "128k",
]
WORDS += [
    "instruct",
    "Chat",
    "lora",
    "vision",
    "Q4_K",
    "f16",
    "bf16",
    "plus",
    "",
    "2x",
    "b",
    "9",
    "0.5T",
    "1.5B-x",
]


@settings(max_examples=600, deadline=None)
@given(
    st.lists(
        st.sampled_from(WORDS) | st.text("aAkKmMbB19.vx_", min_size=1, max_size=5), min_size=1, max_size=6
    ),
    st.sampled_from(["", "microsoft/", "./", "a/b/"]),
    st.sampled_from([260_000, 8_000_000, 3_821_079_552, 14_659_507_200, 41_873_153_344]),
)
def test_names_equal_the_gguf_packages(words: list[str], prefix: str, n_weights: int) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package as an oracle")
    name = prefix + "-".join(words)
    full, organization, basename, finetune, version, size = gguf.Metadata.get_model_id_components(
        name, n_weights
    )
    assert parse_name(name, n_weights) == NameParts(full, organization, basename, finetune, version, size)
    assert title(name) == gguf.Metadata.id_to_title(name)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10**13) | st.sampled_from([10**i + j for i in range(1, 13) for j in (-1, 0, 1)]))
def test_counts_equal_the_gguf_packages(n_weights: int) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package as an oracle")
    assert count_label(n_weights) == gguf.size_label(n_weights, n_weights, 0, 0)


def test_count_label() -> None:
    assert [count_label(n) for n in (259_584, 8_400_000, 3_821_079_552)] == ["260K", "8.4M", "3.8B"]


def test_file_names() -> None:
    parts = NameParts("Phi 3.5 Mini Instruct", None, "Phi-3.5", "instruct", None, "mini")
    assert file_name(parts, "q8_0") == "Phi-3.5-mini-instruct-Q8_0.gguf"
    assert file_name(NameParts("My Model/x", size_label="260K"), "F16") == "My-Model-x-260K-F16.gguf"


PHI35_CARD = """\
license: mit
license_link: https://huggingface.co/microsoft/Phi-3.5-mini-instruct/resolve/main/LICENSE
language:
- multilingual
pipeline_tag: text-generation
tags:
- nlp
- code
widget:
- messages:
  - role: user
    content: Can you provide ways to eat combinations of bananas and dragonfruits?
library_name: transformers
"""
CARDS = {
    "Phi-3.5": PHI35_CARD,
    "quotes": 'a: \'it\'\'s: so\'\nb: "a \\"b\\"\\n"\nc: plain text\'s end\nd: "# no comment"  # comment\n',
    "flow": "tags: [a, 'b, c', \"d\", e f]\nempty: []\n",
    "indented": "tags:\n  - a\n  - 'b'\n\nlanguage: en # only\n",
    "nulls": "a:\nb: ~\nc: null\nd: text\n",
    "comments": "# first\na: x#y\n# - b\nb:\n# inside\n- c # after\n",
    "twice": "a: one\na: two\n",
}


@pytest.mark.parametrize("case", CARDS)
def test_cards_equal_pyyaml(case: str) -> None:
    expected = yaml.safe_load(CARDS[case])
    ours = parse_card(CARDS[case])
    assert expected.pop("widget", []) == [] or ours.pop("widget") == []
    assert ours == expected


def test_scalars_stay_texts_and_objects_are_left_out() -> None:
    card = parse_card(
        "model-index:\n- name: x\n  results:\n  - task: y\nnote: >-\n  folded\n  text: z\nobject:\n  a: b\n"
        "anchor: &x y\nagain: *x\nopen: [a,\n  1.50, null, [b]]\nversion: 1.0\nlanguage: no\ndate: 2024-01-01\n"
        "quoted: 'null'\ntagged: !!int seven\ncode: !!python/object/apply:os.system [ls]\n1: one\n"
    )
    assert card == {
        "model-index": [],
        "note": "folded text: z",
        "object": None,
        "anchor": "y",
        "again": "y",
        "open": ["a", "1.50"],
        "version": "1.0",
        "language": "no",
        "date": "2024-01-01",
        "quoted": "null",
        "tagged": "seven",
        "code": ["ls"],
        "1": "one",
    }


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "# nothing but this"])
def test_front_matter_without_keys_says_nothing(text: str) -> None:
    assert parse_card(text) == {}


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: b: c",
        "? [x]\n: y",
        "a: \0",
        "a: *nowhere",
        pytest.param("[" * 5000, id="deep"),
        pytest.param("a" * 300_000, id="long"),
    ],
)
def test_front_matter_that_is_no_yaml_is_one_clear_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
    with pytest.raises(
        ConvertError, match=r"README.md: the lines between --- are no YAML \(.*\); mend"
    ) as info:
        read_card(tmp_path)
    assert "\n" not in str(info.value) and len(str(info.value)) < 500


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("---\nlicense: mit\n---\nlicense: x\n", {"license": "mit"}),
        ("---\nlicense: mit\n", {"license": "mit"}),
        ("# Phi\n---\nlicense: mit\n---\n", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_front_matter(tmp_path: Path, content: str | None, expected: dict) -> None:
    if content is not None:
        (tmp_path / "README.md").write_text(content)
    assert read_card(tmp_path) == expected


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\n\xff\xfe")
    with pytest.raises(ConvertError, match="cannot be read as text"):
        read_card(tmp_path)
