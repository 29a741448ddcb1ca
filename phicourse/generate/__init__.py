"""From a prompt to text: samplers, the generation loop, and the models that run behind it."""

from phicourse.generate.generate import Run, StopStrings, generate_tokens
from phicourse.generate.llm import LLM, load
from phicourse.generate.sampling import Sampler

__all__ = ["LLM", "Run", "Sampler", "StopStrings", "generate_tokens", "load"]
