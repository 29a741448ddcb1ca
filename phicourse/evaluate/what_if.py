"""What if these weights were others? A loaded model, with some of them replaced for a while."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GenerateError
from phicourse.generate import LLM
from phicourse.generate.backends import TorchBackend

if TYPE_CHECKING:
    import torch

Float32 = NDArray[np.float32]


def matrix_names(model: LLM) -> list[str]:
    """The names in GGUF files of all matrices of a model, in its order.

    raises   GenerateError where the model does not run in PyTorch
    """
    return [name for name, parameter in _parameters(model).items() if parameter.ndim == 2]


def weights_of(model: LLM, name: str) -> Float32:
    """The weights of a tensor as the model uses them, by its name in GGUF files: float32, rows first.

    raises   GenerateError where the model does not run in PyTorch, or has no such tensor
    """
    weights: Float32 = _parameters(model, [name])[name].numpy()
    return weights


@contextmanager
def replaced_weights(model: LLM, weights: Mapping[str, Float32]) -> Iterator[None]:
    """Let a model use other weights while the `with` block runs.

    model    loaded with backend="torch"
    weights  name in GGUF files -> weights, of the tensor's own shape
    raises   GenerateError where the model does not run in PyTorch, or a tensor is missing or of another shape
    """
    import torch

    parameters = _parameters(model, weights)
    for name, parameter in parameters.items():
        if weights[name].shape != tuple(parameter.shape):
            raise GenerateError(
                f"{name} is {tuple(parameter.shape)}, the weights in its place are {weights[name].shape}"
            )
    kept = {name: parameter.clone() for name, parameter in parameters.items()}
    model.context.reset()  # what it remembers was computed with other weights
    try:
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name], np.float32)))
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
        model.context.reset()


def _parameters(model: LLM, names: Iterable[str] | None = None) -> "dict[str, torch.Tensor]":
    """The model's own tensors, not copies, by their names in GGUF files; all where none are named.

    Without those that a GGUF file stacks, a mixture's experts: here each is a tensor of its own.
    """
    from phicourse.model.load import gguf_places

    if not isinstance(model.backend, TorchBackend):
        raise GenerateError(
            "only a model in PyTorch lets its weights be changed: load it with backend='torch'"
        )
    state = model.backend.model.state_dict()  # shares the memory
    theirs = {
        place.tensor: state[name]
        for name, place in gguf_places(model.config).items()
        if name in state and place.n_parts == 1
    }
    missing = [name for name in names or () if name not in theirs]
    if missing:
        raise GenerateError(f"there is no tensor {missing[0]}; there are {', '.join(sorted(theirs))}")
    return theirs if names is None else {name: theirs[name] for name in names}
