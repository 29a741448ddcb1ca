"""Fills a `Phi` with the weights of a checkpoint folder or of a GGUF file, one tensor at a time."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from phicourse.checkpoint import Checkpoint, PhiConfig
from phicourse.checkpoint.config import check_runs_here
from phicourse.convert.metadata import config_from_gguf
from phicourse.convert.phi3 import RULES
from phicourse.errors import ModelError
from phicourse.gguf import GGUFFile
from phicourse.model.phi import Phi
from phicourse.quantize.registry import dequantize_rows

# What a file may have besides weights: the model computes these from its config.
COMPUTED = ("rotary_emb.inv_freq", "rope_factors_long.weight", "rope_factors_short.weight")


def gguf_names(config: PhiConfig) -> dict[str, str]:
    """Every parameter's name in a GGUF file: `model.norm.weight` is `output_norm.weight` there."""
    return {
        rule.source.replace(".N.", f".{layer}."): rule.target.replace(".N.", f".{layer}.")
        for rule in RULES
        for layer in (range(config.n_layers) if ".N." in rule.source else [0])
    }


def load_checkpoint(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Phi:
    """A model with the weights of a Hugging Face folder; without `lm_head.weight` it uses its embedding twice.

    raises   ModelError where tensors are missing, left over, or of another shape than the config says
    """
    config = replace(checkpoint.config, tie_embeddings="lm_head.weight" not in checkpoint.tensors)
    names = {name: name for name in checkpoint.tensors}
    return _fill(config, checkpoint.as_float32, names, dtype, device, str(checkpoint.folder))


def load_gguf(file: GGUFFile, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Phi:
    """A model with the weights of a GGUF file, which are dequantized.

    raises   ModelError where tensors are missing, left over, or of another shape than the metadata says
    """

    def read(name: str) -> NDArray[np.float32]:
        info = file.tensor(name)
        return dequantize_rows(file.data(name), info.type.name).reshape(info.shape)

    config = config_from_gguf(file)
    names = {theirs: ours for ours, theirs in gguf_names(config).items()}
    stored = {names.get(name, name): name for name in file.tensors}
    return _fill(config, read, stored, dtype, device, str(file.path))


def _fill(
    config: PhiConfig,
    read: Callable[[str], NDArray[np.float32]],
    stored: dict[str, str],
    dtype: torch.dtype,
    device: torch.device | str,
    where: str,
) -> Phi:
    """Make a model without memory, then give it each tensor; `stored`: parameter name to name in the file."""
    check_runs_here(config, where)
    with torch.device("meta"):
        model = Phi(config)
    parameters = model.state_dict()
    extra = {name for name in stored if not name.endswith(COMPUTED)} - parameters.keys()
    missing = parameters.keys() - stored.keys()
    if missing or extra:
        what, name = ("has no tensor", min(missing)) if missing else ("has an unknown tensor", min(extra))
        raise ModelError(f"{where}: {what} {name}; is it a Phi-3 model with the sizes of its config?")
    for name, parameter in parameters.items():
        weights = read(stored[name])
        if weights.shape != parameter.shape:
            expected = tuple(parameter.shape)
            raise ModelError(f"{where}: {stored[name]} has the shape {weights.shape}, expected {expected}")
        tensor = torch.from_numpy(np.array(weights, copy=True)).to(device, dtype)
        model.load_state_dict({name: tensor}, strict=False, assign=True)
    return model.eval()
