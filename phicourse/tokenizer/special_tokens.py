"""Which token begins, ends or pads a text: gathered from the JSON files of a checkpoint folder.

The facts are spread over tokenizer_config.json, tokenizer.json and config.json, and contradict each other at
times. Precedence and order of finding are those of llama.cpp's converter (`SpecialVocab` of its gguf package),
for both can be seen in the bytes of a GGUF file.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phicourse.checkpoint import read_json_object
from phicourse.errors import TokenizerError

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass
class SpecialTokens:
    """What was found, in the order of finding.

    ids   role → token id
    add   role → whether the tokenizer puts that token around every text
    """

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    chat_template: str | None = None

    def set_id(self, role: str, id: object, n_vocab: int) -> None:
        """Keep an id unless it is no number, outside the vocabulary, or the role has one already."""
        if type(id) is int and id < 0:
            raise TokenizerError(f"the {role} token has the negative id {id}")
        if type(id) is int and id < n_vocab:
            self.ids.setdefault(role, id)


def read_special_tokens(folder: Path, n_vocab: int, tokenizer: dict[str, Any]) -> SpecialTokens:
    """Gather the special tokens of a checkpoint folder; each of the tokenizer's JSON files may be missing.

    tokenizer   the content of tokenizer.json
    """
    config = read_optional_json(folder / "tokenizer_config.json")
    model_config = read_optional_json(folder / "config.json")
    found = SpecialTokens()
    _apply_post_processor(tokenizer, config, found)
    if config:
        found.chat_template = _chat_template(folder, config)
        _apply_tokenizer_config(added_tokens(tokenizer), config, found, n_vocab)
    for role in ROLES:
        found.set_id(role, model_config.get(f"{role}_token_id"), n_vocab)
    return found


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; a missing one is an empty object."""
    return read_json_object(path) if path.is_file() else {}


def named_special_tokens(folder: Path) -> list[str]:
    """Return the texts in special_tokens_map.json, where older folders say what is special."""
    named = read_optional_json(folder / "special_tokens_map.json").values()
    texts = [token.get("content") if isinstance(token, dict) else token for token in named]
    return [text for text in texts if isinstance(text, str)]


def added_tokens(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the added tokens of a tokenizer.json, each checked to have an id and a text."""
    tokens = tokenizer.get("added_tokens") or []
    if not isinstance(tokens, list):
        raise TokenizerError("tokenizer.json: added_tokens must be a list")
    for token in tokens:
        check_added_token("tokenizer.json", token)
        if type(token.get("id")) is not int:
            raise TokenizerError(f"tokenizer.json: added token {token['content'][:50]!r} has no id")
    return tokens


def check_added_token(source: str, token: object) -> None:
    """Check that an entry for an added token is an object with a text that is not empty."""
    if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
        raise TokenizerError(f"{source}: an added token must be an object with a content that is not empty")


def _apply_post_processor(tokenizer: dict[str, Any], config: dict[str, Any], found: SpecialTokens) -> None:
    """Read from tokenizer.json whether texts are put between special tokens; `config` gets what it lacks."""
    processor = tokenizer.get("post_processor")
    if not isinstance(processor, dict):
        return
    for part in _objects(processor.get("processors", [processor])):
        if part.get("type") == "ByteLevel":
            found.add.setdefault("bos", False)
            found.add.setdefault("eos", False)
        elif part.get("type") == "TemplateProcessing":
            _apply_template(_objects(part.get("single", [])), _objects(part.get("pair", [])), config, found)


def _apply_template(
    single: list[dict[str, Any]], pair: list[dict[str, Any]], config: dict[str, Any], found: SpecialTokens
) -> None:
    """Read a template such as [<s>, A] for one text and [<s>, A, <s>, B] for two."""
    first = _special(single[0]) if len(single) > 1 else None
    last = _special(single[-1]) if len(single) > 1 else None
    if first:
        found.add["bos"] = True
        config.setdefault("bos_token", first)
    if last:
        found.add["eos"] = True
        config.setdefault("eos_token", last)
    if pair and first and _special(pair[0]) == first:
        pair = pair[1:]
    if pair and last and _special(pair[-1]) == last:
        pair = pair[:-1]
    if len(pair) > 2 and (_sequence(pair[0]), _sequence(pair[-1])) == ("A", "B"):
        separators = (config.get("sep_token"), config.get("eos_token"))
        between = [_special(part) for part in pair[1:-1]]
        after_first = between[0] is not None and between[0] in separators and not last
        found.add["sep"] = after_first or (len(between) == 2 and between[1] in separators)


def _objects(values: object) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise TokenizerError("tokenizer.json: post_processor is not in the form of a tokenizer.json")
    return values


def _special(part: dict[str, Any]) -> str | None:
    return _id_of(part.get("SpecialToken"))


def _sequence(part: dict[str, Any]) -> str | None:
    return _id_of(part.get("Sequence"))


def _id_of(entry: object) -> str | None:
    id = entry.get("id") if isinstance(entry, dict) else None
    return id if isinstance(id, str) else None


def _apply_tokenizer_config(
    added: list[dict[str, Any]], config: dict[str, Any], found: SpecialTokens, n_vocab: int
) -> None:
    """Read `add_…_token` and `…_token`; a token's id is that of the added token with the same text."""
    for role in ROLES:
        add = config.get(f"add_{role}_token")
        if isinstance(add, bool):
            found.add.setdefault(role, add)
        content = config.get(f"{role}_token")
        if isinstance(content, dict):
            content = content.get("content")
        id = next((token["id"] for token in added if token["content"] == content), None)
        found.set_id(role, id, n_vocab)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Take tokenizer_config's template, else chat_template.jinja, else chat_template.json."""
    if "chat_template" in config:
        template = config["chat_template"]
    elif (path := folder / "chat_template.jinja").is_file():
        template = _read_text(path)
    else:
        template = read_optional_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named templates: one for chat, one for tools, …
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: cannot be read as UTF-8 text: {error}") from error
