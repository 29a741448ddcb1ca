"""A Hugging Face checkpoint folder: its config, its safetensors files, and the files of its tokenizer."""

from phicourse.checkpoint.config import PhiConfig, read_config
from phicourse.checkpoint.folder import Checkpoint
from phicourse.checkpoint.json_file import read_json_object
from phicourse.checkpoint.safetensors import SafeTensor, SafetensorsFile

__all__ = ["Checkpoint", "PhiConfig", "SafeTensor", "SafetensorsFile", "read_config", "read_json_object"]
