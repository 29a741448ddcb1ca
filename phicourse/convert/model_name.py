"""Takes a model's name apart: `Phi-3.5-mini-instruct` is basename Phi-3.5, size mini, finetune instruct.

Names follow no standard, so these are guesses; they are llama.cpp's guesses, because a file of ours must say
the same as a file of its converter. Source: gguf-py `metadata.py` and `utility.py` (llama.cpp, autumn 2026).
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

_VERSION = re.compile(r"(v|iter)?\d+(\.\d+)*", re.IGNORECASE)
_FILE_TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(r"((a|\d+x)?\d+([._]\d+)?[kmbt]\d?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_NO_TITLE = re.compile(r"v\d+(\.\d+)*|\d.*")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?/snapshots/[0-9a-f]{40}", re.ASCII)
_SCALES = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (-1, 1e-3, "K"))


@dataclass(frozen=True)
class NameParts:
    """What a model's name says; None where it says nothing."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


@dataclass
class _Part:
    """One piece of a name between hyphens, and what it may mean."""

    text: str
    labels: set[str] = field(default_factory=set)


def title(name: str) -> str:
    """Write a name as a title: hyphens become spaces, lower-case words a capital, versions stay.

    >>> title("Phi-3.5-mini-instruct")
    'Phi 3.5 Mini Instruct'
    """
    words = name.replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not _NO_TITLE.fullmatch(word) else word for word in words
    )


def hub_name(folder: Path) -> str | None:
    """Return `owner/name` of a model in the Hub's cache, whose folder there is named after a commit.

    >>> hub_name(Path("models--microsoft--phi-4/snapshots/0123456789abcdef0123456789abcdef01234567"))
    'microsoft/phi-4'
    """
    match = _SNAPSHOT.fullmatch("/".join(Path(os.path.abspath(folder)).parts[-3:]))
    return None if match is None else "/".join(part for part in match.groups() if part)


def parse_name(model_id: str, n_weights: int) -> NameParts:
    """Take `organization/name` or a name apart; n_weights tells a size (7B) from a context length (128k)."""
    if " " in model_id:
        return NameParts(name=model_id)  # a sentence for people, not an identifier
    before, slash, after = model_id.partition("/")
    organization, name = (before, after) if slash else ("", before)
    parts = [_Part(text) for text in name.split("-") if text]
    for i, part in enumerate(parts):
        _label(part, first=i == 0, n_weights=n_weights)
    _drop_words_beside_numbers(parts)
    _find_basename(parts)
    return _collect(name, None if organization.startswith(".") else organization or None, parts)


def _label(part: _Part, first: bool, n_weights: int) -> None:
    """Say what a part is by its own form; sizes and finetunes never come first."""
    if _VERSION.fullmatch(part.text):
        part.labels.add("version")
    elif _FILE_TYPE.fullmatch(part.text):
        part.labels.add("type")
        part.text = part.text.upper()
    elif not first and _SIZE.fullmatch(part.text):
        _label_size(part, n_weights)
    elif not first and _FINETUNE.fullmatch(part.text):
        part.labels.add("finetune")


def _label_size(part: _Part, n_weights: int) -> None:
    """Write a size in one way (1b7 as 1.7B); one far from the model's own size is a context length."""
    text = part.text.replace("_", ".")
    if text[-1].isdecimal():
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    if text[-2].isdecimal() and text[-1] in "kmbt":
        text = text[:-1] + text[-1].upper()
    try:
        size = float(text[:-1]) * 1000.0 ** " KMBT".find(text[-1])
    except ValueError:
        size = n_weights  # a word, or experts as in 8x7B: nothing to compare
    is_size = abs(size - n_weights) <= 7 * n_weights // 8
    part.labels.add("size_label" if is_size else "finetune")
    part.text = text if is_size else text[:-1] + text[-1].lower()


def _drop_words_beside_numbers(parts: list[_Part]) -> None:
    """Where a number gives the size, words such as `mini` are part of the name."""
    sizes = [part for part in parts if "size_label" in part.labels]
    if any(char.isdecimal() for part in sizes for char in part.text):
        for part in sizes:
            if part.text.isalpha():
                part.labels.discard("size_label")


def _find_basename(parts: list[_Part]) -> None:
    """The basename is the plain words and versions at the start, without versions at its end."""
    at_start = True
    for part in parts:
        plain_word = not part.labels and part.text[0].isalpha()
        if at_start and (plain_word or "version" in part.labels):
            part.labels.add("basename")
            continue
        at_start = False
        if not part.labels:
            part.labels.add("finetune")
    for part in reversed(parts):
        if "basename" not in part.labels or len(part.labels) == 1:
            break
        part.labels.remove("basename")


def _collect(name: str, organization: str | None, parts: list[_Part]) -> NameParts:
    def joined(label: str, but: str = "") -> str | None:
        texts = (part.text for part in parts if label in part.labels and but not in part.labels)
        return "-".join(texts) or None

    sizes = dict.fromkeys(part.text for part in parts if "size_label" in part.labels)
    size_label, finetune, version = (
        "-".join(sizes) or None,
        joined("finetune"),
        joined("version", but="basename"),
    )
    is_ambiguous = size_label is None and finetune is None and version is None
    basename = None if is_ambiguous else joined("basename")
    return NameParts(name, organization, basename, finetune, version, size_label)


def count_label(n_weights: int) -> str:
    """Write a number of weights with two digits, as people name models: 259584 is 260K, 3821079552 is 3.8B."""
    scale, suffix = next((scale, suffix) for limit, scale, suffix in _SCALES if n_weights > limit)
    scaled = n_weights * scale
    decimals = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{decimals}f}{suffix}"


def file_name(parts: NameParts, file_type: str) -> str:
    """Name a file as llama.cpp does: `Phi-3.5-mini-instruct-F16.gguf`. No name leads into another folder."""
    stem = parts.basename or parts.name or "ggml-model"
    texts = [stem, parts.size_label, parts.finetune, parts.version, file_type.upper()]
    name = "-".join(text.strip().replace(" ", "-") for text in texts if text is not None)
    return re.sub(r"[/\\\0]", "-", name) + ".gguf"
