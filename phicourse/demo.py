"""The whole way once: a checkpoint becomes an F16 file, a Q4_K_M file, an answer, a table and a picture."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phicourse.checkpoint import Checkpoint
from phicourse.convert import convert
from phicourse.convert.weights import PARTS
from phicourse.errors import CheckpointError, PhiCourseError
from phicourse.evaluate.bits_per_byte import bits_per_byte
from phicourse.generate import LLM, load
from phicourse.generate.sampling import probabilities
from phicourse.gguf import GGUFFile
from phicourse.gguf.describe import bits_per_weight
from phicourse.quantize import quantize

PROMPT = "Tell me a story about a dog."
BEGINNING = "Once upon a time, there was a little dog named"
N_STORIES = 25  # of the course's own evaluation text: enough for two digits of bits per byte
N_CANDIDATES = 8  # next tokens in the picture
LINE_WIDTH = 70  # of an answer: a word that begins behind this column goes to the next line


@dataclass(frozen=True)
class Row:
    """One line of the closing table."""

    label: str
    megabytes: float
    bits_per_weight: float
    bits_per_byte: float
    tokens_per_second: float


def run_demo(out_dir: Path | str | None = None, force: bool = False, threads: int | None = None) -> Path:
    """Convert, quantize and ask phi-tiny, and print what happens on the way.

    out_dir  folder for the files, made when missing; `phi-tiny-demo` in the current one when not given
    force    replace files of an earlier run
    threads  of the quantizer and the engine; all cores when not given
    returns  the path of the picture
    raises   PhiCourseError of the step that failed
    """
    out, folder = Path(out_dir or "phi-tiny-demo"), data_folder()
    if out.exists() and not out.is_dir():
        raise PhiCourseError(f"{out}: is a file; --out takes a folder")
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint.open(folder / "phi-tiny")
    n_weights = sum(int(np.prod(tensor.shape)) for _, tensor in checkpoint.tensors.values())
    say(1, "checkpoint", f"phi-tiny, a Phi3ForCausalLM with {n_weights / 1e6:.1f} million weights in BF16")
    say(2, "convert", "safetensors to GGUF, every matrix as 16-bit floats")
    f16 = convert(checkpoint, out / "phi-tiny-F16.gguf", "f16", force=force)
    say(3, "quantize", "blocks of 4 to 6 bits: the mix Q4_K_M")
    small = quantize(f16, out / "phi-tiny-Q4_K_M.gguf", "Q4_K_M", force=force, threads=threads)
    assert isinstance(small, Path)
    say(4, "chat", f"{PROMPT!r}, answered by the Q4_K_M file")
    models = {"F16": load(f16, threads=threads), "Q4_K_M": load(small, threads=threads)}
    answer, speeds = ask(models)
    say(5, "compare", f"both files on {N_STORIES} stories that the model has never seen")
    files = {"F16": GGUFFile.open(f16), "Q4_K_M": GGUFFile.open(small)}
    stories = read_stories(folder / "text")[:N_STORIES]
    rows = [measure(label, files[label], models[label], stories, speeds[label]) for label in models]
    print(table(rows))
    picture = out / "demo.png"
    draw(files, models, answer, picture, force)
    print(f"\npicture: {picture}\nchat on: phicourse chat {small}")
    return picture


def data_folder() -> Path:
    """The folder `data/` of the repository that this package runs from."""
    folder = Path(__file__).resolve().parent.parent / "data"
    if not (folder / "phi-tiny" / "config.json").is_file():
        raise CheckpointError(
            f"{folder / 'phi-tiny'}: phi-tiny is not here; run this from a clone of the repository"
        )
    return folder


def say(step: int, verb: str, text: str) -> None:
    """Announce a step on standard output."""
    print(f"{step}/5 {verb:10s} {text}", flush=True)


def read_stories(folder: Path) -> list[str]:
    """The course's own stories, in the order of their files."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("stories_*.txt"))]
    return [story.strip() for text in texts for story in text.split("<|endoftext|>") if story.strip()]


def ask(models: dict[str, LLM]) -> tuple[str, dict[str, float]]:
    """Let every model answer, print the last one's text as it comes; tokens per second by label."""
    speeds, answer = {}, ""
    print()
    for label, model in models.items():
        model.logits(model.tokenize(PROMPT))  # the first pass also brings the weights into memory
        start = time.perf_counter()
        pieces = model.chat([{"role": "user", "content": PROMPT}], stream=True, temperature=0, max_tokens=300)
        answer = echo(pieces) if label == list(models)[-1] else "".join(pieces)
        speeds[label] = len(model.tokenize(answer)) / (time.perf_counter() - start)
    print()
    return answer, speeds


def echo(pieces: Iterator[str]) -> str:
    """Print pieces of text as they come, with lines broken between words; returns the whole."""
    text = line = ""
    for piece in pieces:
        text += piece
        if piece.startswith(" ") and len(line) > LINE_WIDTH:
            piece, line = "\n" + piece[1:], ""
        line = (line + piece).rsplit("\n", 1)[-1]
        print(piece, end="", flush=True)
    print()
    return text


def measure(label: str, file: GGUFFile, model: LLM, stories: list[str], tokens_per_second: float) -> Row:
    """One file's line of the table."""
    return Row(
        label=label,
        megabytes=file.size / 1e6,
        bits_per_weight=bits_per_weight(file.tensors.values()),
        bits_per_byte=bits_per_byte(model, stories),
        tokens_per_second=tokens_per_second,
    )


def table(rows: list[Row]) -> str:
    """The closing table, at most 80 columns wide."""
    lines = [f"{'file':10s}{'size':>11s}{'bits/weight':>14s}{'bits/byte':>12s}{'tokens/s':>12s}"]
    for row in rows:
        lines.append(
            f"{row.label:10s}{row.megabytes:8.2f} MB{row.bits_per_weight:14.2f}"
            f"{row.bits_per_byte:12.3f}{row.tokens_per_second:12.0f}"
        )
    lines.append("bits/byte: what the model needs for a byte of an unseen story; less is better")
    return "\n".join(lines)


def part_sizes(file: GGUFFile) -> dict[str, int]:
    """Bytes of each part of the model; norms and rope factors are `other`."""
    sizes = dict.fromkeys((*PARTS, "other"), 0)
    for tensor in file.tensors.values():
        is_matrix = len(tensor.shape) > 1
        part = next((part for part, key in PARTS.items() if is_matrix and key in tensor.name), "other")
        sizes[part] += tensor.nbytes
    return sizes


def next_tokens(models: dict[str, LLM], prompt: str) -> tuple[list[str], dict[str, list[float]]]:
    """The likeliest next tokens by the first model, and what every model gives them."""
    label, first = next(iter(models.items()))
    ids = first.tokenize("", special=True) + first.tokenize(prompt)
    odds = {name: probabilities(model.logits(ids)[-1]) for name, model in models.items()}  # (vocab,) each
    best = np.argsort(-odds[label])[:N_CANDIDATES]
    return [first.detokenize([int(token)], special=True) for token in best], {
        name: [float(values[token]) for token in best] for name, values in odds.items()
    }


def draw(files: dict[str, GGUFFile], models: dict[str, LLM], answer: str, picture: Path, force: bool) -> None:
    """Write the closing picture, a PNG file: sizes, next tokens, and the answer."""
    from matplotlib.figure import Figure  # takes a second: only when a picture is asked for

    from phicourse.plots import draw_next_tokens, draw_sizes
    from phicourse.plots.style import save_png

    figure = Figure(figsize=(10, 5.8), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, height_ratios=(5, 3))
    draw_sizes({label: part_sizes(file) for label, file in files.items()}, figure.add_subplot(grid[0, 0]))
    tokens, odds = next_tokens(models, BEGINNING)
    draw_next_tokens(
        tokens, odds, figure.add_subplot(grid[0, 1]), title=f"“… {' '.join(BEGINNING.split()[-5:])} …”"
    )
    text = figure.add_subplot(grid[1, :])
    text.axis("off")
    text.text(0, 0.98, f"“{PROMPT}”   phi-tiny, Q4_K_M:", va="top", fontweight="bold", fontsize=11)
    text.text(0, 0.84, wrap(answer, 118, 9), va="top", fontsize=10)
    save_png(figure, picture, force)


def wrap(text: str, width: int, max_lines: int) -> str:
    """Text as lines of `width` characters, at most `max_lines`; $ shown as it is."""
    import textwrap

    lines = textwrap.wrap(" ".join(text.split()), width)
    cut = [*lines[: max_lines - 1], lines[max_lines - 1] + " …"] if len(lines) > max_lines else lines
    return "\n".join(cut).replace("$", r"\$")
