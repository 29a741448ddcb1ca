"""Fills a `Phi` with the weights of a checkpoint folder or of a GGUF file, one parameter at a time.

The tables of the converter say which tensor of a GGUF file holds which tensor of a checkpoint, whose names the
parameters of a `Phi` have. There they are read the other way round.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from phicourse.checkpoint import Checkpoint, PhiConfig
from phicourse.convert.architecture import Rule
from phicourse.convert.metadata import config_from_gguf
from phicourse.convert.streaming import ARCHITECTURES
from phicourse.errors import ModelError
from phicourse.gguf import GGUFFile
from phicourse.model.phi import Phi
from phicourse.quantize.registry import DEQUANTIZERS, dequantize_rows

# What a file may have besides weights: the model computes these from its config.
COMPUTED = ("rotary_emb.inv_freq", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a file: the `part`-th of `n_parts` equal parts of a tensor's rows.

    A tensor that is one parameter has one part. One that holds a layer's experts has a part for each.
    """

    tensor: str
    part: int = 0
    n_parts: int = 1


Places = dict[str, Place]  # by the name of the parameter


def _rules(config: PhiConfig) -> Iterator[tuple[Rule, int, list[str]]]:
    """The rules of an architecture, layer by layer, with the parameters that each names: one, or all experts."""
    for rule in ARCHITECTURES[config.architecture].tables[0]:
        for layer in range(rule.n_layers(config)):
            yield rule, layer, rule.sources(layer, config)


def gguf_places(config: PhiConfig) -> Places:
    """Where a GGUF file has each parameter: `model.norm.weight` is `output_norm.weight` there."""
    return {
        parameter: Place(rule.target.replace(".N.", f".{layer}."), i, len(parameters))
        for rule, layer, parameters in _rules(config)
        for i, parameter in enumerate(parameters)
    }


def checkpoint_places(config: PhiConfig, names: Mapping[str, object]) -> Places:
    """Where a checkpoint with tensors of these names has each parameter.

    Mostly under its own name; but transformers 5 keeps the experts of a layer in two tensors, and may save them so.
    """
    tables = ARCHITECTURES[config.architecture].tables
    table = max(tables, key=lambda table: sum(rule.sources(0, config)[0] in names for rule in table))
    stored = {rule.target: rule for rule in table}
    places: Places = {}
    for rule, layer, parameters in _rules(config):
        tensors, (part, n_parts) = stored[rule.target].sources(layer, config), stored[rule.target].part
        for i, parameter in enumerate(parameters):
            places[parameter] = (
                Place(tensors[i])
                if len(tensors) == len(parameters)
                else Place(tensors[0], i * n_parts + part, len(parameters) * n_parts)
            )
    return places


def load_checkpoint(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Phi:
    """A model with the weights of a Hugging Face folder; without `lm_head.weight` it uses its embedding twice.

    raises   ModelError where tensors are missing, left over, or of another shape than the config says
    """
    config = replace(checkpoint.config, tie_embeddings="lm_head.weight" not in checkpoint.tensors)
    shapes = {name: tensor.shape for name, (_, tensor) in checkpoint.tensors.items()}

    def read(place: Place) -> NDArray[np.float32]:
        if place.n_parts == 1:
            return checkpoint.as_float32(place.tensor)
        n_experts = shapes[place.tensor][0]
        expert, part = divmod(place.part, place.n_parts // n_experts)
        rows = checkpoint.as_float32(place.tensor, slice(expert, expert + 1))[
            0
        ]  # one expert's, maybe two parts
        return np.split(rows, place.n_parts // n_experts)[part]

    places = checkpoint_places(config, shapes)
    return _fill(config, places, shapes, read, dtype, device, str(checkpoint.folder))


def load_gguf(file: GGUFFile, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Phi:
    """A model with the weights of a GGUF file, which are dequantized.

    raises   ModelError where tensors are missing, left over, of another shape than the metadata says, or of a type
             that stands for no weights
    """
    config = config_from_gguf(file)
    _check_types(file)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    read = partial(_read_gguf, file)
    return _fill(config, gguf_places(config), shapes, read, dtype, device, str(file.path))


def load_first_layers(
    file: GGUFFile, n_layers: int, has_head: bool, dtype: torch.dtype, device: torch.device
) -> Phi:
    """A model with the first layers of a GGUF file alone; where `has_head`, also with its last norm and output head.

    Everything else is not read, takes no memory and cannot be called: use `model.run_layers`. Matrices become
    `dtype`; vectors, which are small and sensitive, float32.
    raises   ModelError as `load_gguf`, for all tensors of the file
    """
    config = config_from_gguf(file)
    _check_types(file)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}

    def is_wanted(parameter: str) -> bool:
        if found := re.match(r"model\.layers\.(\d+)\.", parameter):
            return int(found[1]) < n_layers
        return has_head and (config.tie_embeddings or parameter != "model.embed_tokens.weight")

    def read(place: Place) -> NDArray[np.float32]:
        rows = _read_gguf(file, place)
        file.release(place.tensor)
        return rows

    model = _fill(
        config, gguf_places(config), shapes, read, dtype, device, str(file.path), torch.float32, is_wanted
    )
    model.model.layers = model.model.layers[:n_layers]
    return model


def _check_types(file: GGUFFile) -> None:
    for tensor in file.tensors.values():
        if tensor.type.name not in DEQUANTIZERS:
            raise ModelError(
                f"{file.path}: {tensor.name} is {tensor.type.name}, which is no type of weights; these are "
                f"{', '.join(DEQUANTIZERS)}"
            )


def _read_gguf(file: GGUFFile, place: Place) -> NDArray[np.float32]:
    data = file.data(place.tensor)  # (rows, bytes of a row)
    n_rows = len(data) // place.n_parts
    rows = data[place.part * n_rows : (place.part + 1) * n_rows]
    return dequantize_rows(rows, file.tensor(place.tensor).type.name)


def _fill(
    config: PhiConfig,
    places: Places,
    shapes: dict[str, tuple[int, ...]],
    read: Callable[[Place], NDArray[np.float32]],
    dtype: torch.dtype,
    device: torch.device | str,
    where: str,
    vector_dtype: torch.dtype | None = None,
    is_wanted: Callable[[str], bool] = lambda parameter: True,
) -> Phi:
    """Make a model without memory, then give it each tensor that is wanted.

    shapes         of the file's tensors
    vector_dtype   of norms and biases; None: `dtype`
    """
    with torch.device("meta"):
        model = Phi(config)
    parameters = model.state_dict()
    places = {name: places[name] for name in parameters}
    _check_names(config, {place.tensor for place in places.values()}, shapes, where)
    for name, parameter in parameters.items():
        place, shape = places[name], tuple(parameter.shape)
        _check_shape(place, shapes[place.tensor], shape, where)
        if not is_wanted(name):
            continue
        weights = np.array(read(place), copy=True).reshape(shape)
        own_dtype = dtype if vector_dtype is None or len(shape) > 1 else vector_dtype
        tensor = torch.from_numpy(weights).to(device, own_dtype)
        model.load_state_dict({name: tensor}, strict=False, assign=True)
    return model.eval()


def _check_names(config: PhiConfig, wanted: set[str], shapes: dict[str, tuple[int, ...]], where: str) -> None:
    extra = {name for name in shapes if not name.endswith(COMPUTED)} - wanted
    missing = wanted - shapes.keys()
    if missing or extra:
        what, name = ("has no tensor", min(missing)) if missing else ("has an unknown tensor", min(extra))
        raise ModelError(
            f"{where}: {what} {name}; is it a {config.architecture} model with the sizes of its config?"
        )


def _check_shape(place: Place, shape: tuple[int, ...], parameter: tuple[int, ...], where: str) -> None:
    """Check a tensor that is a parameter, or that has the parts of a layer's experts one below the other."""
    fits = shape == parameter
    if len(shape) == 3 and len(parameter) == 2:
        n_experts, rows, columns = shape
        fits = (n_experts * rows, columns) == (place.n_parts * parameter[0], parameter[1])
        fits = fits and place.n_parts % n_experts == 0
    if not fits:
        expected = f"{place.n_parts} times {parameter}" if place.n_parts > 1 else f"{parameter}"
        raise ModelError(f"{where}: {place.tensor} has the shape {shape}, expected {expected}")
