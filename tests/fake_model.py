"""A model without weights: its logits follow from everything it has read, so that any mistake with the cache shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from phicourse.generate import LLM
from phicourse.generate.backends import OneSequence

BOS, EOG = 256, 257
VOCAB = 258  # every byte, and the two above


@dataclass
class FakeBackend(OneSequence):
    """Counts what it computes; `script` forces the tokens that follow given prefixes' lengths."""

    n_ctx: int = 64
    script: Sequence[int] = ()
    ids: list[int] = field(default_factory=list)
    n_evaluated: int = 0
    calls: list[int] = field(default_factory=list)
    threads: int = 1
    isa: str = "fake"
    name: str = "fake"
    prompt_length: int | None = None

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(
            vocab_size=VOCAB, n_layers=2, hidden_size=8, n_heads=2, n_kv_heads=1, long_factor=None
        )

    @property
    def position(self) -> int:
        return len(self.ids)

    def forward(self, ids: np.ndarray, all_logits: bool) -> np.ndarray:
        assert len(ids) and len(self.ids) + len(ids) <= self.n_ctx, "beyond the context"
        rows = []
        for token in ids:
            self.ids.append(int(token))
            rows.append(logits_after(self.ids, self._scripted()))
        self.n_evaluated += len(ids)
        self.calls.append(len(ids))
        return np.stack(rows if all_logits else rows[-1:])

    def truncate(self, length: int, sequence: int = 0) -> None:
        assert length <= len(self.ids)
        del self.ids[length:]

    def _scripted(self) -> int | None:
        """After the prompt, the next token of the script."""
        if self.prompt_length is None:
            return None
        at = len(self.ids) - self.prompt_length
        return self.script[at] if 0 <= at < len(self.script) else None


def logits_after(ids: Sequence[int], forced: int | None = None) -> np.ndarray:
    """(VOCAB,) float32, a function of all ids; `forced` is far above the others."""
    seed = hash(tuple(ids)) % (1 << 63)  # integers hash alike in every process
    logits = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)
    logits[[BOS, EOG]] = -30
    if forced is not None:
        logits[forced] = 50
    return logits


class ByteStream:
    """Bytes to text; half a character waits."""

    def __init__(self) -> None:
        self.waiting = b""

    def push(self, token: int) -> str:
        self.waiting += bytes([token]) if token < 256 else b""
        try:
            text = self.waiting.decode()
        except UnicodeDecodeError:
            return ""
        self.waiting = b""
        return text

    def finish(self) -> str:
        text, self.waiting = self.waiting.decode(errors="replace"), b""
        return text


class ByteTokenizer:
    """A token is a byte; chats are `role:content;` strings."""

    eog = frozenset({EOG})
    bos = BOS

    def __init__(self, chat_template: str | None = "a template") -> None:
        self.vocabulary = SimpleNamespace(chat_template=chat_template, add_bos=True, control={BOS, EOG})

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return [BOS] * add_special + list(text.encode())

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def stream(self, special: bool = False, *, continues: bool = False) -> ByteStream:
        return ByteStream()

    def chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        return self.encode("".join(f"{m['role']}:{m['content']};" for m in messages))


def fake_llm(script: str | bytes = b"", prompt: str = "", n_ctx: int = 64, end: bool = True) -> LLM:
    """An LLM that says `script` after `prompt` and then ends (or goes on at random)."""
    raw = script.encode() if isinstance(script, str) else script
    backend = FakeBackend(n_ctx=n_ctx, script=[*raw, EOG] if end else list(raw))
    backend.prompt_length = len(prompt.encode()) + 1
    return LLM(backend, ByteTokenizer(), name="fake")  # type: ignore[arg-type]
