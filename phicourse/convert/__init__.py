"""From a Hugging Face checkpoint to a GGUF file."""

from phicourse.convert.metadata import config_from_gguf
from phicourse.convert.streaming import OUTTYPES, convert

__all__ = ["OUTTYPES", "config_from_gguf", "convert"]
