"""Trying mixes: quantize a model, load it, and see how far it went from the original; each mix once.

Made for a small model and a short text, where a trial takes less than a second. So one can turn a knob and
watch, or spoil one tensor at a time and see which of them matter.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phicourse.errors import GenerateError, QuantizeError
from phicourse.evaluate.kl_divergence import Divergence, compare_positions, log_probabilities
from phicourse.generate.llm import LLM, load
from phicourse.quantize.files import quantize
from phicourse.quantize.importance import ImportanceMatrix
from phicourse.quantize.plan import Plan
from phicourse.sizes import size_text


@dataclass(frozen=True)
class Trial:
    """What became of a model.

    plan        the types and sizes of its tensors
    divergence  from the original, over the text
    text        how it goes on after the prompt, always the likeliest token
    """

    plan: Plan
    divergence: Divergence
    text: str

    def __str__(self) -> str:
        return (
            f"{size_text(self.plan.nbytes)}, {self.plan.bits_per_weight:.2f} bits per weight, "
            f"KL {self.divergence.mean:.4f}"
        )


class MixTrials:
    """Quantizes a model in many ways and measures each; what was measured once is remembered.

    source    a GGUF file of floats
    text      is read from its beginning, at most n_tokens of it
    folder    for the file of the trial, which the next trial replaces
    prompt    what the models go on with, for max_tokens
    n_tokens  must fit into the context
    raises    as `load`; GenerateError where the text is too short to measure anything
    """

    def __init__(
        self,
        source: Path | str,
        text: str,
        folder: Path | str,
        *,
        prompt: str = "",
        n_tokens: int = 512,
        max_tokens: int = 40,
    ) -> None:
        self.source = Path(source)
        self.file = Path(folder) / "trial.gguf"
        self.prompt, self.max_tokens = prompt, max_tokens
        self.n_tokens = n_tokens
        original = self._load(self.source)
        self.ids = [*original.tokenize("", special=True), *original.tokenize(text)][:n_tokens]
        if len(self.ids) < 2:
            raise GenerateError("trials: the text has no tokens to measure with")
        self._base = log_probabilities(original.logits(self.ids[:-1])).astype(np.float32)  # (n, vocab)
        self._known: dict[tuple[str, tuple[str, ...], ImportanceMatrix | None], Trial] = {}

    def plan(
        self, mix: str, tensor_types: Sequence[str] = (), imatrix: ImportanceMatrix | None = None
    ) -> Plan:
        """The types and sizes of a mix, without making it."""
        plan = quantize(self.source, self.file, mix, tensor_types=tensor_types, imatrix=imatrix, dry_run=True)
        assert isinstance(plan, Plan)
        return plan

    def measure(
        self, mix: str, tensor_types: Sequence[str] = (), imatrix: ImportanceMatrix | None = None
    ) -> Trial:
        """Make a mix, if it was not made before, and measure it.

        tensor_types  REGEX=TYPE; the first expression that is found in a tensor's name decides
        raises        QuantizeError where the mix needs an importance matrix, or is not known
        """
        key = (mix.upper(), tuple(tensor_types), imatrix)
        if key not in self._known:
            self._known[key] = self._measure(mix, tensor_types, imatrix)
        return self._known[key]

    def measure_alone(self, name: str, type: str) -> Trial:
        """Quantize one tensor to a type, leave all others as F16, and measure: whatever is lost, it did."""
        return self.measure("Q8_0", (f"^{re.escape(name)}$={type.lower()}", ".=f16"))

    def _measure(self, mix: str, tensor_types: Sequence[str], imatrix: ImportanceMatrix | None) -> Trial:
        plan = self.plan(mix, tensor_types, imatrix)
        if plan.needs():
            raise QuantizeError(plan.needs())
        quantize(
            self.source,
            self.file,
            mix,
            tensor_types=tensor_types,
            imatrix=imatrix,
            force=True,
            progress=False,
        )
        model = self._load(self.file)
        comparison = compare_positions(self._base, model.logits(self.ids[:-1]), self.ids[1:])
        text = model.generate(self.prompt, max_tokens=self.max_tokens, temperature=0.0) if self.prompt else ""
        return Trial(plan, comparison.summary(), text)

    def _load(self, path: Path) -> LLM:
        """Load with a context for the text, or for the prompt and what follows."""
        return load(path, n_ctx=max(self.n_tokens, 256 + self.max_tokens))
