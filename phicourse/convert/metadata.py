"""The `general.*` keys, which say where a model comes from, and the way back from a GGUF file to a `PhiConfig`.

Each fact is taken from the first place that has it: the model card, `_name_or_path` of config.json, the folder's
name. Order and types are those of llama.cpp's converter, so that files of both have the same bytes.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from phicourse.checkpoint import Checkpoint, PhiConfig
from phicourse.convert.model_card import Card, read_card
from phicourse.convert.model_name import NameParts, count_label, parse_name, title
from phicourse.errors import CheckpointError, ConvertError, GGUFError
from phicourse.gguf import GGUFFile, ValueType

# key, value, type, type of the elements of an array
Pair = tuple[str, Any, ValueType, ValueType | None]

# generation_config.json -> general.sampling.*, in the order of the file; of two names the first one given.
_SAMPLING = (
    (("sequence",), "sequence", ValueType.STRING),
    (("top_k",), "top_k", ValueType.INT32),
    (("top_p",), "top_p", ValueType.FLOAT32),
    (("min_p",), "min_p", ValueType.FLOAT32),
    (("xtc_probability",), "xtc_probability", ValueType.FLOAT32),
    (("xtc_threshold",), "xtc_threshold", ValueType.FLOAT32),
    (("temperature",), "temp", ValueType.FLOAT32),
    (("penalty_last_n",), "penalty_last_n", ValueType.INT32),
    (("penalty_repeat", "repetition_penalty"), "penalty_repeat", ValueType.FLOAT32),
    (("mirostat",), "mirostat", ValueType.INT32),
    (("mirostat_tau",), "mirostat_tau", ValueType.FLOAT32),
    (("mirostat_eta",), "mirostat_eta", ValueType.FLOAT32),
)
_PYTHON_TYPES: dict[ValueType, tuple[type, ...]] = {
    ValueType.STRING: (str,),
    ValueType.INT32: (int,),
    ValueType.FLOAT32: (int, float),
}
_ORIGIN_FIELDS = (
    "name",
    "author",
    "version",
    "organization",
    "description",
    "url",
    "doi",
    "uuid",
    "repo_url",
)


@dataclass(frozen=True)
class Facts:
    """What is known about a model: its name taken apart, its card, its sampling settings."""

    parts: NameParts
    card: Card
    sampling: Mapping[str, Any]


def text(key: str, value: str | None) -> list[Pair]:
    """Return a pair with a text; none where there is no text."""
    return [(key, value, ValueType.STRING, None)] if value else []


def read_facts(checkpoint: Checkpoint, n_weights: int) -> Facts:
    """Gather what the folder says about the model; ConvertError where one of its files is broken."""
    card = read_card(checkpoint.folder)
    return Facts(_merge_names(checkpoint, card, n_weights), card, _read_sampling(checkpoint))


def _merge_names(checkpoint: Checkpoint, card: Card, n_weights: int) -> NameParts:
    """Fill each part of the name from the card, then config.json, then the folder's name."""
    folder = os.path.basename(os.path.abspath(checkpoint.folder))
    candidates = [_card_name(card)]
    written = checkpoint.raw_config.get("_name_or_path")
    if isinstance(written, str) and written.count("/") <= 1:  # more slashes: a path of someone's machine
        candidates.append(_titled(parse_name(written, n_weights)))
    candidates.append(_titled(parse_name(folder, n_weights)))

    def first(field: str) -> str | None:
        return next((value for name in candidates if (value := getattr(name, field)) is not None), None)

    return NameParts(
        name=first("name") or folder,
        organization=first("organization"),
        basename=first("basename"),
        finetune=first("finetune"),
        version=first("version"),
        size_label=first("size_label") or count_label(n_weights),
    )


def _titled(parts: NameParts) -> NameParts:
    name, organization = (None if part is None else title(part) for part in (parts.name, parts.organization))
    return NameParts(name, organization, parts.basename, parts.finetune, parts.version, parts.size_label)


def _card_text(card: Card, *keys: str) -> str | None:
    """Return the first of the keys that has a text."""
    return next((value for key in keys if isinstance(value := card.get(key), str)), None)


def _card_list(card: Card, *keys: str) -> list[str]:
    """Return the texts of all the keys, one after the other."""
    values = (card.get(key) or [] for key in keys)
    return [item for value in values for item in ([value] if isinstance(value, str) else value)]


def _card_name(card: Card) -> NameParts:
    return NameParts(
        name=_card_text(card, "name", "model_name"),
        organization=_card_text(card, "organization", "model_organization"),
        basename=_card_text(card, "basename", "model_basename", "model_type"),
        finetune=_card_text(card, "finetune", "model_finetune"),
        version=_card_text(card, "version", "model_version"),
        size_label=_card_text(card, "size_label", "model_size_label"),
    )


def _read_sampling(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read generation_config.json; a broken one only costs its recommendations, as with llama.cpp."""
    path = checkpoint.file("generation_config.json")
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def general_pairs(facts: Facts, n_weights: int) -> list[Pair]:
    """List `general.type` to `general.languages` in the converter's order."""
    parts, card = facts.parts, facts.card
    pairs = text("general.type", "model") + _sampling_pairs(facts.sampling)
    for key, value in (
        ("name", parts.name),
        ("author", _card_text(card, "author", "model_author", "model_creator")),
        ("version", parts.version),
        ("organization", parts.organization),
        ("finetune", parts.finetune),
        ("basename", parts.basename),
        ("description", _card_text(card, "description", "model_description")),
        ("size_label", parts.size_label),
        ("license", ",".join(_card_list(card, "license"))),
        ("license.name", _card_text(card, "license_name")),
        ("license.link", _card_text(card, "license_link")),
        ("source.url", _card_text(card, "url", "model_url")),
        ("source.doi", _card_text(card, "doi", "model_doi")),
        ("source.uuid", _card_text(card, "uuid", "model_uuid")),
        ("source.repo_url", _card_text(card, "repo_url", "model_repo_url")),
    ):
        pairs += text(f"general.{key}", value)
    pairs += _origin_pairs("base_model", card, ("base_model", "base_models", "base_model_sources"), n_weights)
    pairs += _origin_pairs("dataset", card, ("datasets", "dataset", "dataset_sources"), n_weights)
    pairs += _texts("general.tags", _card_list(card, "tags", "pipeline_tag"))
    return pairs + _texts("general.languages", _card_list(card, "languages", "language"))


def _texts(key: str, values: list[str]) -> list[Pair]:
    return [(key, values, ValueType.ARRAY, ValueType.STRING)] if values else []


def _sampling_pairs(settings: Mapping[str, Any]) -> list[Pair]:
    pairs: list[Pair] = []
    for names, key, type in _SAMPLING:
        value = next((settings[name] for name in names if name in settings), None)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, _PYTHON_TYPES[type]):
            raise ConvertError(f"generation_config.json: {names[0]} is {value!r:.60}, not a {type.name}")
        if value != "":
            pairs.append((f"general.sampling.{key}", value, type, None))
    return pairs


def _origin_pairs(kind: str, card: Card, names: Iterable[str], n_weights: int) -> list[Pair]:
    """List what a model or a dataset is made from; the first of the names that the card has counts."""
    name = next((name for name in names if name in card), None)
    if name is None:
        return []
    origins = [_origin(entry, n_weights) for entry in _card_list(card, name)]
    pairs: list[Pair] = [(f"general.{kind}.count", len(origins), ValueType.UINT32, None)]
    for i, origin in enumerate(origins):
        for field in _ORIGIN_FIELDS:
            pairs += text(f"general.{kind}.{i}.{field}", origin.get(field))
    return pairs


def _origin(entry: str, n_weights: int) -> dict[str, str]:
    """Describe an origin that is given as an address or as `organization/name`."""
    is_address = entry.startswith(("http://", "https://", "ssh://"))
    on_hub = re.fullmatch(r"https?://huggingface.co/([^/]+/[^/]+)", entry)
    if is_address and on_hub is None:
        return {"repo_url": entry}
    parts = parse_name(on_hub[1] if on_hub else entry, n_weights)
    named = _titled(parts)
    origin = {"name": named.name, "organization": named.organization, "version": named.version}
    if is_address:
        origin["repo_url"] = entry
    elif parts.organization is not None:
        origin["repo_url"] = f"https://huggingface.co/{parts.organization}/{parts.name}"
    return {field: value for field, value in origin.items() if value}


# ---- the way back -------------------------------------------------------------------------------------------


def config_from_gguf(file: GGUFFile) -> PhiConfig:
    """Return the hyperparameters that a Phi-3 family GGUF file gives, checked.

    Numbers that the file keeps as float32 (epsilon, rope base, factors) come back as float32's values.
    Raises GGUFError for another architecture, a missing key, or a value that is out of bounds.
    """
    architecture = file.get("general.architecture", str)
    if architecture != "phi3":
        raise GGUFError(
            f"{file.path}: the architecture {architecture!r:.60} is not supported, only 'phi3' is"
        )
    shape = file.tensor("token_embd.weight").shape
    if len(shape) != 2:
        raise GGUFError(f"{file.path}: token_embd.weight has the shape {shape}, not (vocabulary, embedding)")
    try:
        return _parse_keys(file, vocab_size=shape[0])
    except CheckpointError as error:
        raise GGUFError(f"{file.path}: {error}") from error


def _parse_keys(file: GGUFFile, vocab_size: int) -> PhiConfig:
    hidden, heads = file.get("phi3.embedding_length", int), file.get("phi3.attention.head_count", int)
    if not 0 < heads <= hidden:
        raise GGUFError(f"{file.path}: {heads} attention heads cannot share {hidden} dimensions")
    context, head_size = file.get("phi3.context_length", int), hidden // heads
    return PhiConfig(
        architecture="phi3",
        hidden_size=hidden,
        n_layers=file.get("phi3.block_count", int),
        n_heads=heads,
        n_kv_heads=file.get("phi3.attention.head_count_kv", int, heads),
        head_size=head_size,
        ffn_size=file.get("phi3.feed_forward_length", int),
        vocab_size=vocab_size,
        context_length=context,
        original_context_length=file.get("phi3.rope.scaling.original_context_length", int, context),
        norm_eps=file.get("phi3.attention.layer_norm_rms_epsilon", float),
        rope_theta=file.get("phi3.rope.freq_base", float, 10000.0),
        rope_size=file.get("phi3.rope.dimension_count", int, head_size),
        short_factor=_rope_factors(file, "short"),
        long_factor=_rope_factors(file, "long"),
        attention_factor=file.get("phi3.rope.scaling.attn_factor", float, 1.0),
        sliding_window=file.get("phi3.attention.sliding_window", int, 0) or None,
        tie_embeddings="output.weight" not in file.tensors,
        bos_id=file.get("tokenizer.ggml.bos_token_id", int, None),
        eos_id=file.get("tokenizer.ggml.eos_token_id", int, None),
    )


def _rope_factors(file: GGUFFile, which: str) -> tuple[float, ...] | None:
    """Return one divisor for each rotated pair, or None where the model has no LongRoPE."""
    name = f"rope_factors_{which}.weight"
    if name not in file.tensors:
        return None
    tensor = file.tensors[name]
    if tensor.type.name != "F32" or tensor.n_weights > 1 << 16:
        raise GGUFError(
            f"{file.path}: {name} must be a short list of F32, is {tensor.shape} {tensor.type.name}"
        )
    return tuple(np.asarray(file.blocks(name), dtype=np.float64).reshape(-1).tolist())
