"""Train phi-tiny, the course's own Phi-3: 4.5 million weights that tell short stories when asked to.

    python data/train_phi_tiny.py --minutes 120            # from nothing
    python data/train_phi_tiny.py --minutes 120 --resume   # goes on where an interrupted run was
    python data/train_phi_tiny.py --minutes 60 --init data/phi-tiny   # trains the finished weights further

The learning rate warms up, stays, and falls to zero in the last part of the time given. Every few minutes the
state goes to data/checkpoints/, and the averaged weights, a talking model, to the output folder if they are
better than what is there.
"""

import argparse
import json
import math
import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import sentencepiece
import torch
import torch.distributed
import torch.multiprocessing
from phi_tiny_muon import Muon
from phi_tiny_texts import BOS, END, END_OF_TEXT, IGNORED, LONG, SHORT, Documents, grouped, load_library
from phi_tiny_tokenizer import VOCABULARY, read_documents
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from phicourse.checkpoint.config import PhiConfig, read_config
from phicourse.model import Phi

HERE = Path(__file__).resolve().parent
HEADS, HEAD_SIZE, LAYERS, FFN = 4, 64, 4, 768


def rope_factors(stretch: float) -> list[float]:
    """LongRoPE's divisors of the 32 rotation speeds.

    Pairs that turn once in a few tokens stay as they are: they tell neighbours apart. Those that would not
    finish a turn within 512 tokens are slowed by `stretch`; between the two it grows smoothly.
    """
    ramp = [min(max((pair - 6) / 10, 0.0), 1.0) for pair in range(HEAD_SIZE // 2)]
    return [round(stretch**amount, 4) for amount in ramp]


def config_json() -> dict[str, Any]:
    """config.json with the keys of Phi-3.5-mini's."""
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "embd_pdrop": 0.0,
        "eos_token_id": END_OF_TEXT,
        "hidden_act": "silu",
        "hidden_size": HEADS * HEAD_SIZE,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "max_position_embeddings": LONG,
        "model_type": "phi3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "original_max_position_embeddings": SHORT,
        "pad_token_id": END_OF_TEXT,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": rope_factors(LONG / SHORT),
            "short_factor": rope_factors(1.1),
            "type": "longrope",
        },
        "rope_theta": 10000.0,
        "sliding_window": 2 * LONG,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def write_json(path: Path, document: object) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def write_configs(folder: Path) -> None:
    """Write config.json and generation_config.json."""
    generation = {
        "bos_token_id": BOS,
        "eos_token_id": [END_OF_TEXT, END],
        "max_length": LONG,
        "pad_token_id": END_OF_TEXT,
    }
    write_json(folder / "config.json", config_json())
    write_json(folder / "generation_config.json", generation)


def export(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the weights as model.safetensors in BF16, whole or not at all."""
    narrow = {name: w.detach().to("cpu", torch.bfloat16).contiguous() for name, w in weights.items()}
    partial = folder / "model.safetensors.part"
    save_file(narrow, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # the safetensors package makes files that only their owner reads
    os.replace(partial, folder / "model.safetensors")


def load_weights(config: PhiConfig, path: Path) -> Phi:
    """A model with the weights of a safetensors file, as float32."""
    model = Phi(config)
    model.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return model


@torch.no_grad()
def initialize(model: Phi) -> None:
    """Every branch begins by adding nothing; the logits begin small."""
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
        elif weight.dim() == 2:
            weight.normal_(std=0.02 if "embed" in name or "lm_head" in name else 0.5 / weight.shape[1] ** 0.5)


def make_optimizers(model: Phi, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding, head and norms."""
    parts = {"qkv_proj": 3, "gate_up_proj": 2}
    matrices = [
        (weight, parts.get(name.split(".")[-2], 1))
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and "layers" in name
    ]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    vectors = [
        {"params": [model.model.embed_tokens.weight], "lr": 0.5 * lr, "weight_decay": 0.01},
        {"params": [model.lm_head.weight], "lr": 0.2 * lr, "weight_decay": 0.01},
        {"params": norms, "lr": 0.2 * lr, "weight_decay": 0.0},
    ]
    optimizers = [
        Muon(matrices, lr, decay=0.05),
        torch.optim.AdamW(vectors, betas=(0.9, 0.95), eps=1e-10),
    ]
    return optimizers


def learning_rate(progress: float, step: int, decay: float) -> float:
    """Share of the peak rate: up in 100 steps, level, then straight to 0 over the last `decay` of the time."""
    return min((step + 1) / 100, (1 - progress) / decay, 1.0)


def bits_per_byte(model: Phi, documents: list[str], tokenizer: sentencepiece.SentencePieceProcessor) -> float:
    """How many bits a byte of text costs: each document by itself, <s> before it and nothing after it.

    The bits of all its tokens, summed over all documents, divided by the UTF-8 bytes of all documents.
    """
    ids = sorted(([BOS, *tokens] for tokens in tokenizer.encode(documents)), key=len)
    device = next(model.parameters()).device
    nats = 0.0
    model.eval()
    for group in grouped(ids, 8192):
        time_ = max(map(len, group))
        rows = torch.tensor([row + [IGNORED] * (time_ - len(row)) for row in group], device=device)
        with torch.no_grad():
            logits = model(rows[:, :-1].clamp(min=0))  # (batch, time, vocab)
        nats += cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    model.train()
    return nats / math.log(2) / sum(len(text.encode()) for text in documents)


def always_long(config: PhiConfig) -> PhiConfig:
    """The same model with the long factors for texts of any length."""
    return replace(config, short_factor=config.long_factor)


def bits_in_both_regimes(
    model: Phi, documents: list[str], tokenizer: sentencepiece.SentencePieceProcessor
) -> dict[str, float]:
    """Bits per byte as the model is defined, and with the long factors throughout."""
    own = bits_per_byte(model, documents, tokenizer)
    model.model.config = always_long(model.config)
    long = bits_per_byte(model, documents, tokenizer)
    model.model.config = model.config
    return {"heldout_bits_per_byte": round(own, 4), "heldout_bits_per_byte_long_factors": round(long, 4)}


@dataclass
class Clock:
    """The share of the time budget that is used, across interruptions."""

    minutes: float
    used: float = 0.0  # seconds of earlier runs

    def __post_init__(self) -> None:
        """Start."""
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent in training."""
        return self.used + time.monotonic() - self.start

    @property
    def progress(self) -> float:
        """From 0 at the start to 1 at the end."""
        return min(self.seconds / (60 * self.minutes), 1.0)


class Training:
    """The model, its average, its optimizers and its log; saved together."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """A new run, or a run from finished weights, or the one that was interrupted."""
        self.arguments = arguments
        self.device = best_device()
        write_configs(arguments.out)
        self.model = Phi(read_config(arguments.out)[0], arguments.dropout).to(self.device)
        initialize(self.model)
        if arguments.init:
            weights = load_weights(self.model.config, arguments.init / "model.safetensors")
            self.model.load_state_dict(weights.state_dict())
        self.average = Phi(self.model.config).to(self.device)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizers = make_optimizers(self.model, arguments.lr)
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        self.clock = Clock(arguments.minutes)
        self.progress = 0.0
        self.step = self.tokens = 0
        self.log: list[dict[str, float]] = []
        self.improved = False  # whether this run has replaced the output folder's weights
        self.best: float | None = None  # bits per byte of the output folder's weights
        self.checkpoint = arguments.checkpoints / "latest.pt"
        if arguments.resume and self.checkpoint.exists():
            self.restore()

    def restore(self) -> None:
        """Go on where the last checkpoint was."""
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.step, self.tokens, self.log = state["step"], state["tokens"], state["log"]
        self.clock.used = state["seconds"]
        self.progress = self.clock.progress

    def save(self, name: str = "latest.pt") -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "log": self.log,
            "seconds": self.clock.seconds,
        }
        path = self.checkpoint.with_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_name(name + ".part"))
        os.replace(path.with_name(name + ".part"), path)

    def update(self, inputs: Tensor, targets: Tensor, loss_of: Any) -> float:
        """One step of gradient descent; returns the loss in nats a token."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss: Tensor = loss_of(inputs.to(self.device), targets.to(self.device))
        loss.backward()
        tokens = int((targets != IGNORED).sum())
        mean_loss, mean_tokens, self.progress = self.combine([loss.item(), tokens, self.clock.progress])
        rate = learning_rate(self.progress, self.step, self.arguments.decay)
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += round(mean_tokens * self.arguments.processes)
        self.follow(keep=0.99)
        return mean_loss

    @torch.no_grad()
    def combine(self, facts: list[float]) -> list[float]:
        """Average the gradients, and a few numbers beside them, over all processes."""
        if self.arguments.processes == 1:
            return facts
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor(facts, device=self.device)])
        torch.distributed.all_reduce(flat)
        flat /= self.arguments.processes
        *parts, mean_facts = flat.split([*(g.numel() for g in gradients), len(facts)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return [float(fact) for fact in mean_facts]

    @torch.no_grad()
    def follow(self, keep: float) -> None:
        """Move the average weights towards the present ones."""
        keep = min(keep, self.step / (self.step + 10))
        for average, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.lerp_(weight, 1 - keep)

    def report(
        self, loss: float, documents: list[str], tokenizer: sentencepiece.SentencePieceProcessor
    ) -> None:
        """Measure the average weights on held-out stories, note it, and save everything."""
        entry = {
            "step": self.step,
            "tokens": self.tokens,
            "minutes": round(self.clock.seconds / 60, 1),
            "loss": round(loss, 4),
            **bits_in_both_regimes(self.average, documents, tokenizer),
        }
        self.log.append(entry)
        print(json.dumps(entry), flush=True)
        self.save()
        if self.best is None:
            self.best = self.bits_of_output(documents, tokenizer)
        if entry["heldout_bits_per_byte"] < self.best:
            self.best = entry["heldout_bits_per_byte"]
            self.improved = True
            export(self.average.state_dict(), self.arguments.out)

    def bits_of_output(self, documents: list[str], tokenizer: sentencepiece.SentencePieceProcessor) -> float:
        """Bits per byte of the weights that the output folder has already; infinite without."""
        path = self.arguments.out / "model.safetensors"
        if not path.exists():
            return math.inf
        return bits_per_byte(load_weights(self.model.config, path).to(self.device), documents, tokenizer)


def best_device() -> torch.device:
    """A GPU where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def train(
    training: Training, batches: Iterator[tuple[Tensor, Tensor]], heldout: list[str], rank: int
) -> None:
    """Train until the time is used up; process 0 measures every so many minutes on some held-out stories."""
    arguments, model = training.arguments, training.model
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(arguments.out / "tokenizer.model"))

    def plain_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    loss_of = torch.compile(plain_loss, dynamic=True) if arguments.compile else plain_loss
    recent: list[float] = []
    next_report = training.clock.seconds + 60 * arguments.every
    is_stable = training.progress <= 1 - arguments.decay
    regimes = [model.config, always_long(model.config)]
    while training.progress < 1:
        inputs, targets = next(batches)
        # Engines with room for more than 512 tokens use the long factors from the first token on.
        model.model.config = random.choices(regimes, [1 - arguments.long, arguments.long])[0]
        recent.append(training.update(inputs, targets, loss_of))
        if rank > 0:
            continue
        if is_stable and training.progress > 1 - arguments.decay:
            training.save("stable.pt")  # a longer run can start here, before the rate fell
            is_stable = False
        if training.progress >= 1 or training.clock.seconds >= next_report:
            training.report(sum(recent) / len(recent), heldout[:: arguments.sample], tokenizer)
            recent = []
            next_report += 60 * arguments.every
    if rank == 0 and training.improved:
        finish(training, heldout, tokenizer)


def finish(training: Training, heldout: list[str], tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    """Measure the exported weights, as BF16 has rounded them, on all held-out stories; write report and curve."""
    folder = training.arguments.out
    model = load_weights(training.model.config, folder / "model.safetensors").to(training.device)
    report = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tokens": training.tokens,
        "steps": training.step,
        "minutes": round(training.clock.seconds / 60, 1),
        "device": str(training.device),
        "heldout_stories": len(heldout),
        **bits_in_both_regimes(model, heldout, tokenizer),
        "every_24th_heldout_story": bits_in_both_regimes(model, heldout[::24], tokenizer),
        "log": training.log,
    }
    write_json(folder.with_name(folder.name + "-training.json"), report)
    draw_curve(training.log, folder.with_name(folder.name + "-training.png"))
    print(json.dumps({key: value for key, value in report.items() if key != "log"}), flush=True)


def draw_curve(log: list[dict[str, float]], path: Path) -> None:
    """Held-out bits per byte over the tokens seen."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([e["tokens"] / 1e6 for e in log], [e["heldout_bits_per_byte"] for e in log], marker=".")
    axes.set(xlabel="training tokens, millions", ylabel="bits per byte, held-out stories", title="phi-tiny")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, default=HERE.parent.parent / "shared" / "data" / "text")
    parser.add_argument("--out", type=Path, default=HERE / "phi-tiny", help="folder that has the tokenizer")
    parser.add_argument("--checkpoints", type=Path, default=HERE / "checkpoints")
    parser.add_argument("--minutes", type=float, default=120.0, help="time to train, in all")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, if there is one"
    )
    parser.add_argument("--init", type=Path, help="checkpoint folder whose weights to start from")
    parser.add_argument("--lr", type=float, default=0.015, help="Muon's peak rate; the others' follow it")
    parser.add_argument("--decay", type=float, default=0.25, help="share of the time in which the rate falls")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
    parser.add_argument("--processes", type=int, default=2, help="that share the work; 1 with a GPU")
    parser.add_argument("--fables", type=float, default=0.12, help="share of fables in the tokens")
    parser.add_argument("--chat", type=float, default=0.5, help="share of conversations in the documents")
    parser.add_argument(
        "--packs", type=float, default=0.07, help="share of tokens in packs of several documents"
    )
    parser.add_argument(
        "--long", type=float, default=0.4, help="share of short batches under the long factors"
    )
    parser.add_argument("--every", type=float, default=6.0, help="minutes between measurements")
    parser.add_argument("--sample", type=int, default=12, help="measure on every so-many-th held-out story")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def run(rank: int, arguments: argparse.Namespace) -> None:
    """One of the processes that train together: each has a part of every batch and the same weights."""
    if arguments.processes > 1:
        meeting = f"tcp://127.0.0.1:{arguments.port}"
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=arguments.processes
        )
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // arguments.processes))
    torch.manual_seed(arguments.seed)
    training = Training(arguments)
    seed = arguments.seed + arguments.processes * training.step + rank
    random.seed(seed)
    vocabulary = arguments.out / "tokenizer.model"
    library = load_library(arguments.texts, vocabulary, arguments.fables, seed)
    documents = Documents(library, vocabulary, arguments.chat, arguments.packs)
    heldout = read_documents(arguments.texts / "tinystories_heldout.txt")
    training.clock.start = time.monotonic()
    train(training, documents.batches(arguments.batch // arguments.processes), heldout, rank)


def free_port() -> int:
    """A port on which the processes can meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Train phi-tiny."""
    arguments = parse()
    if best_device().type != "cpu":
        arguments.processes = 1
    arguments.port = free_port()
    if arguments.processes == 1:
        run(0, arguments)
    else:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
        torch.multiprocessing.spawn(run, args=(arguments,), nprocs=arguments.processes)


if __name__ == "__main__":
    main()
