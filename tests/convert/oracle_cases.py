"""The checkpoints on which we are held against llama.cpp's converter: small, with the quirks of the real ones."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from small_checkpoints import TINY_MOE, TINY_PHI2, UNLIKE_RELEASED, WriteCheckpoint, random_weights

OUTTYPES = ["f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"]
# case -> outtypes: each case has quirks of its own, together they meet every outtype more than once
CASES = {
    "stories260k": OUTTYPES,
    "Phi-3.5-mini-instruct": ["f32", "f16", "q8_0", "auto"],
    "sharded-f16": ["f16", "q8_0"],
    "Tied Phi": ["bf16", "auto"],
    "mixed-dtypes-4k-instruct": ["f16", "auto"],
    "su-128k": ["f16"],
    "phi-tiny": ["auto", "q8_0", "tq1_0", "tq2_0"],
    "phi-4": ["q8_0"],
    "Phi-4-mini-instruct": ["auto"],
    "phi-2": ["f16", "tq1_0"],
    "phi-1_5": ["q8_0", "tq2_0", "auto"],
    "phi-of-transformers": ["f32", "bf16"],
    "Phi-3.5-MoE-instruct": ["f16", "auto"],
    "moe-in-shards": OUTTYPES,
    "moe-of-transformers": ["f32", "q8_0"],
}
CARD = """---
license: mit
license_link: https://huggingface.co/microsoft/Phi-3.5-mini-instruct/resolve/main/LICENSE
license_name: "phi: the license"  # a comment
language:
- multilingual
- en
- no
pipeline_tag: text-generation
tags: [nlp, 'code', "a, b"]
datasets:
  - HuggingFaceTB/cosmopedia
  - https://huggingface.co/datasets/roneneldan/TinyStories
  - https://example.org/corpus
base_model:
- microsoft/Phi-3.5-mini-instruct
- https://huggingface.co/microsoft/phi-4
model_creator: Someone
widget:
- messages:
  - role: user
    content: "Can you provide ways to eat combinations of bananas and dragonfruits?"
library_name: transformers
---
# Phi
license: not this one
"""
GENERATION = {"top_k": 40, "top_p": 0.95, "temperature": 1, "repetition_penalty": 1.1, "eos_token_id": [2, 3]}


@dataclass
class OracleCases:
    """Writes the folders of CASES below `base`."""

    base: Path
    shared_data: Path
    write: WriteCheckpoint
    real_config: Callable[..., dict[str, Any]]
    folders: dict[str, Path] = field(default_factory=dict)

    def add(self, case: str, config: dict[str, Any], dtype: str, **options: Any) -> None:
        """Write a folder with random weights."""
        weights = random_weights(config, dtype, options.pop("norm_dtype", None), seed=len(self.folders))
        self.folders[case] = self.write(self.base / case, config, weights, **options)

    @property
    def small_tokenizer(self) -> Path:
        """A SentencePiece vocabulary of 512 pieces."""
        return self.shared_data / "stories260K" / "checkpoint"

    def write_phi3(self) -> None:
        """Phi-3's configs of every year, with its tokenizer."""
        self.folders["stories260k"] = self.small_tokenizer
        phi35 = self.real_config("Phi-3.5-mini-instruct")
        longer = self.real_config("Phi-3-mini-128k-instruct", 2, num_hidden_layers=11)
        self.add("Phi-3.5-mini-instruct", phi35, "BF16")
        self.add("sharded-f16", longer, "F16", n_shards=3)
        tied = {key: phi35[key] for key in phi35.keys() - {"rope_scaling", "rope_theta", "_name_or_path"}}
        tied |= {
            "tie_word_embeddings": True,
            "sliding_window": None,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 5e5,
                "partial_rotary_factor": 0.75,
                "short_factor": np.linspace(1, 2, 24).tolist(),
                "long_factor": np.linspace(1, 60, 24).tolist(),
            },
        }
        self.add("Tied Phi", tied, "F32", README__md=CARD, generation_config__json=json.dumps(GENERATION))
        self.add(
            "mixed-dtypes-4k-instruct", self.real_config("Phi-3-mini-4k-instruct"), "BF16", norm_dtype="F32"
        )
        own_factor = {"type": "su", "attention_factor": 1.5}  # which llama.cpp's converter does not read
        self.add("su-128k", phi35 | {"rope_scaling": phi35["rope_scaling"] | own_factor}, "F16")

    def write_bpe(self) -> None:
        """phi-4 (grouped heads, no window) and Phi-4-mini (tied, rotates a part) with their own tokenizers."""
        phi = self.shared_data / "phi"
        phi4 = self.real_config("phi-4", heads=4, kv_heads=1, hidden_size=32, intermediate_size=64)
        self.add("phi-4", phi4, "BF16", tokenizer=phi / "phi-4")
        mini = self.real_config("Phi-4-mini-instruct", heads=1, hidden_size=128, num_hidden_layers=1)
        generation = (phi / "Phi-4-mini-instruct" / "generation_config.json").read_text()
        self.add(
            "Phi-4-mini-instruct",
            mini,
            "BF16",
            tokenizer=phi / "Phi-4-mini-instruct",
            generation_config__json=generation,
        )

    def write_phi2(self) -> None:
        """Phi-2 in two shards, Phi-1.5 with the holes of its config, and what transformers saves today."""
        tokenizer = self.shared_data / "phi" / "phi-2"
        sizes = {"hidden_size": 64, "intermediate_size": 256}
        phi2 = self.real_config("phi-2", heads=2, kv_heads=2, **sizes)
        generation = (tokenizer / "generation_config.json").read_text()
        self.add("phi-2", phi2, "F16", n_shards=2, tokenizer=tokenizer, generation_config__json=generation)
        self.add("phi-1_5", TINY_PHI2 | {"vocab_size": 51200}, "BF16", tokenizer=tokenizer, README__md=CARD)
        config = TINY_PHI2 | UNLIKE_RELEASED | {"vocab_size": 51200, "num_hidden_layers": 1}
        self.folders["phi-of-transformers"] = self.saved_by_transformers(
            "phi-of-transformers", config, tokenizer
        )

    def write_phimoe(self) -> None:
        """Phi-3.5-MoE with Phi-3's tokenizer, experts scattered over shards, and what transformers saves."""
        phi3 = {"vocab_size": 32064, "eos_token_id": 32000, "hidden_size": 64, "num_attention_heads": 1}
        self.add("Phi-3.5-MoE-instruct", TINY_MOE | phi3, "BF16", README__md=CARD)
        many = TINY_MOE | {"num_local_experts": 11, "lm_head_bias": False, "tie_word_embeddings": False}
        self.add("moe-in-shards", many, "BF16", n_shards=3, tokenizer=self.small_tokenizer)
        folder = self.saved_by_transformers("moe-of-transformers", TINY_MOE, self.small_tokenizer)
        # llama.cpp knows the class only by the name that it has on the Hub.
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["PhimoeForCausalLM"]
        (folder / "config.json").write_text(json.dumps(config | {"architectures": ["PhiMoEForCausalLM"]}))
        self.folders["moe-of-transformers"] = folder

    def saved_by_transformers(
        self, case: str, config: dict[str, Any], tokenizer: Path, **options: Any
    ) -> Path:
        """Let transformers make a model in float32, with weights of its own choice, and save it."""
        import torch
        import transformers

        torch.manual_seed(len(self.folders))
        folder = self.write(self.base / case, config, {}, tokenizer=tokenizer)
        settings = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        model.save_pretrained(folder, **options)
        return folder
