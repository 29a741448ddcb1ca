"""The readable Phi in PyTorch: norms, rotary positions, attention, MLP, experts, the whole model, loading."""

from phicourse.model.attention import KVCache
from phicourse.model.load import load_checkpoint, load_gguf
from phicourse.model.phi import Phi

__all__ = ["KVCache", "Phi", "load_checkpoint", "load_gguf"]
