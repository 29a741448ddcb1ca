"""The `general.*` keys, which say where a model comes from, and the way back from a GGUF file to a `PhiConfig`.

Each fact is taken from the first place that has it: what the user says (`overrides.py`), the model card, the
place in the Hub's cache, `_name_or_path` of config.json, the folder's name. Order and types are those of
llama.cpp's converter, so that files of both have the same bytes. Source: gguf-py `metadata.py`, autumn 2026.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phicourse.checkpoint import Checkpoint, PhiConfig
from phicourse.checkpoint.config import ARCHITECTURES
from phicourse.convert.model_card import Card, read_card
from phicourse.convert.model_name import NameParts, hub_name, parse_name, title
from phicourse.errors import CheckpointError, ConvertError, GGUFError
from phicourse.gguf import GGUFFile, ValueType

# key, value, type, type of the elements of an array
Pair = tuple[str, Any, ValueType, ValueType | None]

# generation_config.json -> general.sampling.*, in the order of the file; of two names the first one given.
SAMPLING = (
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
ORIGIN_FIELDS = (
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
    """What is known about a model: its name taken apart, its card, its sampling settings.

    overrides   general.* keys and what the user sets them to; the name's parts have been taken from them already
    """

    parts: NameParts
    card: Card
    sampling: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)


def text(key: str, value: str | None) -> list[Pair]:
    """Return a pair with a text; none where there is no text."""
    return [(key, value, ValueType.STRING, None)] if value else []


def read_facts(
    checkpoint: Checkpoint,
    n_weights: int,
    size_label: str,
    overrides: Mapping[str, Any] | None = None,
    compat: bool = False,
) -> Facts:
    """Gather what the folder says about the model; ConvertError where one of its files is broken.

    size_label  how large the model is, as in 3.8B, where its name does not say it
    overrides   keys and values that count instead, as `overrides.read_overrides` returns them
    compat      name a model in the Hub's cache after its folder there, a commit, as the reference does
    """
    card, overrides = read_card(checkpoint.folder), overrides or {}
    names = _names(checkpoint, card, n_weights, compat)
    return Facts(_merge_names(names, overrides, size_label), card, _read_sampling(checkpoint), overrides)


def _names(checkpoint: Checkpoint, card: Card, n_weights: int, compat: bool) -> list[NameParts]:
    """Return what the card, the Hub's cache, config.json and the folder's name say; what comes first counts."""
    candidates = []
    in_cache = None if compat else hub_name(checkpoint.folder)
    if in_cache is not None:
        candidates.append(in_cache)
    written = checkpoint.raw_config.get("_name_or_path")
    if isinstance(written, str) and written.count("/") <= 1:  # more slashes: a path of someone's machine
        candidates.append(written)
    folder = os.path.basename(os.path.abspath(checkpoint.folder))
    named = [_titled(parse_name(name, n_weights)) for name in (*candidates, folder)]
    return [_card_name(card), *named, NameParts(name=folder)]


def _merge_names(names: list[NameParts], overrides: Mapping[str, Any], size_label: str) -> NameParts:
    """Fill each part of the name with what the user says, or else the first that says it."""

    def part(which: str) -> str | None:
        said = (getattr(name, which) for name in names)
        value: str | None = overrides.get(
            f"general.{which}", next((text for text in said if text is not None), None)
        )
        return value

    return NameParts(
        name=part("name") if part("name") is not None else names[-1].name,
        organization=part("organization"),
        basename=part("basename"),
        finetune=part("finetune"),
        version=part("version"),
        size_label=part("size_label") if part("size_label") is not None else size_label,
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
    parts, card, overrides = facts.parts, facts.card, facts.overrides

    def told(key: str, *card_keys: str) -> tuple[str, str | None]:
        return key, overrides.get(f"general.{key}", _card_text(card, *card_keys))

    pairs = text("general.type", "model") + _sampling_pairs(facts)
    for key, value in (
        ("name", parts.name),
        told("author", "author", "model_author", "model_creator"),
        ("version", parts.version),
        ("organization", parts.organization),
        ("finetune", parts.finetune),
        ("basename", parts.basename),
        told("description", "description", "model_description"),
        told("quantized_by"),
        ("size_label", parts.size_label),
        ("license", ",".join(_card_list(card, "license"))),
        told("license.name", "license_name"),
        told("license.link", "license_link"),
        told("url"),
        told("doi"),
        told("uuid"),
        told("repo_url"),
        told("source.url", "url", "model_url"),
        told("source.doi", "doi", "model_doi"),
        told("source.uuid", "uuid", "model_uuid"),
        told("source.repo_url", "repo_url", "model_repo_url"),
    ):
        pairs += text(f"general.{key}", value)
    models = _origins(card, ("base_model", "base_models", "base_model_sources"), n_weights)
    datasets = _origins(card, ("datasets", "dataset", "dataset_sources"), n_weights)
    pairs += _origin_pairs("base_model", overrides.get("general.base_models", models))
    pairs += _origin_pairs("dataset", overrides.get("general.datasets", datasets))
    for key, card_keys in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        pairs += _texts(f"general.{key}", overrides.get(f"general.{key}", _card_list(card, *card_keys)))
    return pairs


def _texts(key: str, values: list[str] | None) -> list[Pair]:
    return [(key, values, ValueType.ARRAY, ValueType.STRING)] if values else []


def is_number(value: Any, type: ValueType) -> bool:
    """Whether a value of JSON is what a type holds: texts, whole numbers, or any numbers."""
    return not isinstance(value, bool) and isinstance(value, _PYTHON_TYPES[type])


def _sampling_pairs(facts: Facts) -> list[Pair]:
    pairs: list[Pair] = []
    for names, key, type in SAMPLING:
        value = next((facts.sampling[name] for name in names if name in facts.sampling), None)
        value = facts.overrides.get(f"general.sampling.{key}", value)
        if value is None:
            continue
        if not is_number(value, type):
            raise ConvertError(f"generation_config.json: {names[0]} is {value!r:.60}, not a {type.name}")
        if value != "":
            pairs.append((f"general.sampling.{key}", value, type, None))
    return pairs


def _origins(card: Card, names: Iterable[str], n_weights: int) -> list[dict[str, str]] | None:
    """Describe what a model or a dataset is made from; the first of the names that the card has counts."""
    name = next((name for name in names if name in card), None)
    return None if name is None else [_origin(entry, n_weights) for entry in _card_list(card, name)]


def _origin_pairs(kind: str, origins: list[dict[str, str]] | None) -> list[Pair]:
    if origins is None:
        return []
    pairs: list[Pair] = [(f"general.{kind}.count", len(origins), ValueType.UINT32, None)]
    for i, origin in enumerate(origins):
        for about in ORIGIN_FIELDS:
            pairs += text(f"general.{kind}.{i}.{about}", origin.get(about))
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
    """Return the hyperparameters that a GGUF file of a Phi gives, checked.

    Numbers that the file keeps as float32 (epsilon, rope base, factors) come back as float32's values.
    Raises GGUFError for another architecture, a missing key, or a value that is out of bounds.
    """
    architecture = file.get("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise GGUFError(
            f"{file.path}: the architecture {architecture!r:.60} is not supported, only"
            f" {', '.join(ARCHITECTURES)} are"
        )
    shape = file.tensor("token_embd.weight").shape
    if len(shape) != 2:
        raise GGUFError(f"{file.path}: token_embd.weight has the shape {shape}, not (vocabulary, embedding)")
    try:
        return _parse_keys(file, architecture, vocab_size=shape[0])
    except CheckpointError as error:
        raise GGUFError(f"{file.path}: {error}") from error


def _parse_keys(file: GGUFFile, name: str, vocab_size: int) -> PhiConfig:
    """Read the keys `name`.*."""
    hidden, heads = file.get(f"{name}.embedding_length", int), file.get(f"{name}.attention.head_count", int)
    if not 0 < heads <= hidden:
        raise GGUFError(f"{file.path}: {heads} attention heads cannot share {hidden} dimensions")
    context, head_size = file.get(f"{name}.context_length", int), hidden // heads
    norm = "layer_norm_epsilon" if name == "phi2" else "layer_norm_rms_epsilon"
    return PhiConfig(
        architecture=name,
        hidden_size=hidden,
        n_layers=file.get(f"{name}.block_count", int),
        n_heads=heads,
        n_kv_heads=file.get(f"{name}.attention.head_count_kv", int, heads),
        head_size=head_size,
        ffn_size=file.get(f"{name}.feed_forward_length", int),
        vocab_size=vocab_size,
        context_length=context,
        original_context_length=file.get(f"{name}.rope.scaling.original_context_length", int, context),
        norm_eps=file.get(f"{name}.attention.{norm}", float),
        rope_theta=file.get(f"{name}.rope.freq_base", float, 10000.0),
        rope_size=file.get(f"{name}.rope.dimension_count", int, head_size),
        short_factor=_rope_factors(file, "short"),
        long_factor=_rope_factors(file, "long"),
        attention_factor=file.get(f"{name}.rope.scaling.attn_factor", float, 1.0),
        rope_type="longrope" if "rope_factors_long.weight" in file.tensors else "default",
        sliding_window=file.get(f"{name}.attention.sliding_window", int, 0) or None,
        tie_embeddings="output.weight" not in file.tensors,
        bos_id=file.get("tokenizer.ggml.bos_token_id", int, None),
        eos_id=file.get("tokenizer.ggml.eos_token_id", int, None),
        attention_bias=name == "phi2" or "blk.0.attn_output.bias" in file.tensors,
        output_bias=name == "phi2" or "output.bias" in file.tensors,
        n_experts=file.get(f"{name}.expert_count", int, 0),
        n_experts_used=file.get(f"{name}.expert_used_count", int, 0),
        router_jitter=file.get("phicourse.phimoe.router_jitter", float, 0.01),
        short_mscale=file.get("phicourse.phimoe.short_mscale", float, None),
        long_mscale=file.get("phicourse.phimoe.long_mscale", float, None),
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
