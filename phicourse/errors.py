"""Every error that a user is meant to read: one clear line, what and where and what to do."""


class PhiCourseError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""


class GGUFError(PhiCourseError):
    """A GGUF file is broken, lies about itself, or cannot be written."""


class CheckpointError(PhiCourseError):
    """A checkpoint folder, its config or one of its safetensors files cannot be used."""


class TokenizerError(PhiCourseError):
    """A vocabulary or chat template is broken, or text cannot be tokenized with it."""


class ConvertError(PhiCourseError):
    """A checkpoint cannot be turned into a GGUF file."""


class QuantizeError(PhiCourseError):
    """Weights, a tensor type or a mix cannot be quantized as asked."""


class ModelError(PhiCourseError):
    """A model's tensors or configuration do not fit together, or not into this machine."""


class GenerateError(PhiCourseError):
    """A request for text, such as a prompt longer than the context, cannot be served."""
