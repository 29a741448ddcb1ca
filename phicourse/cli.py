"""The command line: a thin layer over the package.

Text goes to standard output, progress and logs to standard error. Exit status 0: done; 1: an error, said in
one line; 2: wrong usage. Nothing heavy is imported before a verb needs it.
"""

import errno
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from phicourse import __version__
from phicourse.errors import GenerateError, PhiCourseError
from phicourse.quantize.mixes import ALIASES, COPY, MIXES

if TYPE_CHECKING:
    from phicourse.evaluate import Measurement
    from phicourse.evaluate.rates import Comparison
    from phicourse.generate import LLM
    from phicourse.quantize.importance import ImportanceMatrix

INTERRUPTED = {
    "convert": "interrupted, nothing was written",
    "quantize": "interrupted, nothing was written",
    "split": "interrupted, nothing was written",
    "merge": "interrupted, nothing was written",
    "imatrix": "interrupted, nothing was written",
    "download": "interrupted; what has arrived is kept, the same command resumes",
}


Function = TypeVar("Function", bound=Callable[..., Any])


class Verbs(TyperGroup):
    """The group of all verbs: turns exceptions into one line and an exit status."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Let `--debug` stand behind the verb as well."""
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(arg for arg in args[:end] if arg != "--debug"), *args[end:]]
        with errors_as_one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the verb."""
        with errors_as_one_line(ctx):
            result = super().invoke(ctx)
            sys.stdout.flush()  # a full disk behind `>` shows here
            return result


class Verb(TyperCommand):
    """A verb whose usage line has arguments as the manual writes them: FILE, not {FILE}."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the parts of the usage line."""
        return [
            piece.removesuffix("...").strip("{}") if piece.startswith("{") else piece
            for piece in super().collect_usage_pieces(ctx)
        ]


class App(typer.Typer):
    """The application: every command of it is a `Verb`."""

    def command(self, **settings: Any) -> Callable[[Function], Function]:  # type: ignore[override]
        """Register a function as a verb."""
        return super().command(cls=Verb, **settings)


app = App(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def main() -> None:
    """Run the command line and end the program."""
    prepare_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app(prog_name="phicourse")
    except KeyboardInterrupt:  # before a verb began
        print("phicourse: interrupted", file=sys.stderr)
        sys.exit(1)


def prepare_streams() -> None:
    """Make the standard streams take everything: bytes of file names that are no UTF-8 go through unchanged."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as with `>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the program ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "replace")


@contextmanager
def errors_as_one_line(ctx: typer.Context) -> Iterator[None]:
    """Print what went wrong as `phicourse: what, where, what to do` and exit with 1.

    With --debug the traceback comes as well. A reader that closes the pipe ends the program quietly.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if hasattr(error, "exit_code") or isinstance(error, typer.Abort):
            raise  # Typer's own: wrong usage, --help
        if ctx.params.get("debug"):
            traceback.print_exc()
        if isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE:
            drop_output()
            raise typer.Exit(0) from None
        if isinstance(error, OSError):
            drop_output()  # it may be what failed
        print(f"phicourse: {one_line(error, ctx.invoked_subcommand or '')}", file=sys.stderr)
        raise typer.Exit(1) from None


def one_line(error: BaseException, verb: str) -> str:
    """What to tell the user of an exception, on one line, without control characters."""
    if isinstance(error, KeyboardInterrupt):
        text = INTERRUPTED.get(verb, "interrupted")
    elif isinstance(error, PhiCourseError):
        text = str(error)
    elif isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        text = f"{place}{error.strerror or error}"
        text += "; free some space and try again" * (error.errno == errno.ENOSPC)
    elif isinstance(error, ImportError) and error.name and not error.name.startswith("phicourse"):
        package = error.name.partition(".")[0]
        text = f"the Python package {package} is missing here: pip install {package}"
    elif isinstance(error, MemoryError):
        text = f"not enough memory: close other programs or take a smaller model ({error})"
    else:
        text = f"{type(error).__name__}: {error} (a mistake in phicourse itself; --debug shows where)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def drop_output() -> None:
    """Send what is still buffered for standard output nowhere, so that the exit does not fail over it."""
    with suppress(OSError):  # a test's stream has no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        print(f"phicourse {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with errors; may stand anywhere.")
    ] = False,
) -> None:
    """A Phi model from checkpoint to GGUF, quantized, and run."""


def a_path(text: str | Path) -> Path:
    """A path from the command line. An empty one, of a shell variable that is not set, is no current folder."""
    if not str(text):
        raise typer.BadParameter("it is empty")
    return Path(text)


def a_size(text: str) -> int:
    """A size from the command line, as 500M or 2G, in bytes."""
    from phicourse.errors import GGUFError
    from phicourse.gguf import parse_size

    try:
        return parse_size(text)
    except GGUFError as error:
        raise typer.BadParameter(str(error)) from None


def an_amount(text: str) -> int:
    """An amount of memory from the command line, as 6GB or 5.5GiB, in bytes."""
    from phicourse.memory import parse_memory

    try:
        return parse_memory(text)
    except GenerateError as error:
        raise typer.BadParameter(str(error)) from None


def print_json(document: Any) -> None:
    """Print one JSON document. JSON has no infinity and no NaN: null stands for them."""
    print(json.dumps(finite(document), indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """The value with None for every number in it that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="Threads at work.  [default: all cores]")
]
Context = Annotated[
    int | None,
    typer.Option("--ctx", min=1, metavar="N", help="Context in tokens.  [default: the model's, up to 4096]"),
]
CacheType = Annotated[
    str,
    typer.Option(metavar="T", help="Keep keys and values as f16, bf16, f32, or smaller: q8_0, q4_0."),
]
GpuLayers = Annotated[
    int,
    typer.Option("--gpu-layers", metavar="N", help="Layers in PyTorch on a GPU, from the first on; -1: all."),
]
SplitSize = Annotated[
    int | None,
    typer.Option("--split-max-size", parser=a_size, metavar="SIZE", help="Bytes a file at most: 500M, 2G."),
]
SplitTensors = Annotated[
    int | None, typer.Option("--split-max-tensors", min=1, metavar="N", help="Tensors a file at most.")
]
KeysFirst = Annotated[
    bool, typer.Option("--no-tensor-first-split", help="Put only the keys into the first file.")
]
Model = Annotated[Path, typer.Argument(parser=a_path, metavar="FILE", help="A GGUF file.")]


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            parser=a_path,
            metavar="DIR",
            help="Folder for the files.  [default: phi-tiny-demo]",
        ),
    ] = None,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """phi-tiny the whole way: convert, quantize, chat, compare."""
    from phicourse.demo import run_demo

    run_demo(out, force, threads)


@app.command()
def download(
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="Owner and name, as microsoft/Phi-3.5-mini-instruct.")
    ],
    revision: Annotated[str, typer.Option(metavar="R", help="A branch, tag or commit.")] = "main",
    to: Annotated[
        Path | None,
        typer.Option(
            parser=a_path, metavar="FOLDER", help="Folder for the files.  [default: the cache, HF_HOME]"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files in FOLDER that differ from the Hub's.")
    ] = False,
) -> None:
    """Fetch a model from the Hugging Face Hub and print its folder."""
    from phicourse.checkpoint.download import download
    from phicourse.memory import available_memory

    print(download(repo, revision, to, force=force, memory=available_memory()))


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(parser=a_path, metavar="CHECKPOINT", help="A Hugging Face checkpoint folder.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", "--outfile", parser=a_path, metavar="OUT", help="The GGUF file to write."
        ),
    ] = None,
    outtype: Annotated[
        str, typer.Option(metavar="TYPE", help="f32, f16, bf16, q8_0, tq1_0, tq2_0 or auto.")
    ] = "f16",
    compat: Annotated[
        bool, typer.Option("--compat", help="Leave out our own keys: the bytes of llama.cpp's converter.")
    ] = False,
    split_max_size: SplitSize = None,
    split_max_tensors: SplitTensors = None,
    no_tensor_first_split: KeysFirst = False,
    metadata: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="FILE", help="JSON of general.* keys that count instead."),
    ] = None,
    model_name: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name.")] = None,
    force: Force = False,
) -> None:
    """Turn a checkpoint into a GGUF file and print its path.

    With --split-max-size or --split-max-tensors it may become several files: model.gguf is then
    model-00001-of-00002.gguf and so on, and the path of the first is printed.
    """
    from phicourse.convert import convert
    from phicourse.gguf import Split

    if model_name == "":
        raise typer.BadParameter("--model-name is empty")
    split = Split(split_max_tensors, split_max_size, no_tensor_first_split)
    print(
        convert(
            checkpoint,
            out,
            outtype,
            force=force,
            compat=compat,
            split=None if split == Split() else split,
            metadata=metadata,
            model_name=None if model_name is None else checked(model_name),
        )
    )


def table_of_mixes() -> str:
    """All mixes with their bits per weight, a * behind those that need importance: five in a line."""
    cells = [f"{mix.name:<8}{mix.bits:5.2f}{'*' * mix.needs_importance}" for mix in MIXES.values()]
    rows = [cells[start : start + 5] for start in range(0, len(cells), 5)]
    return "\n    ".join("  ".join(f"{cell:<14}" for cell in row).rstrip() for row in rows)


@app.command(
    short_help="Write a smaller GGUF file and print its path.",
    help=f"""Write a smaller GGUF file and print its path.

    IN is a GGUF file or a checkpoint folder. OUT is the new file, or a folder for it; without OUT it is
    ggml-model-TYPE.gguf beside IN. TYPE is one of these, with the bits per weight of a Phi-3.5-mini:

    \b
    {table_of_mixes()}

    Those with * need --imatrix. {", ".join(f"{alias} is {name}" for alias, name in ALIASES.items())};
    {COPY.name} changes no tensor.
    """,
)
def quantize(
    paths: Annotated[list[str], typer.Argument(metavar="IN [OUT] TYPE", hidden=True)],
    via: Annotated[
        str | None,
        typer.Option(metavar="f16", help="Round a checkpoint to f16 first, as llama.cpp's two tools do."),
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mix.")] = False,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Do not quantize output.weight.")
    ] = False,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="T", help="Type of output.weight.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="T", help="Type of token_embd.weight.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=T", help="Type of the tensors that match; may be repeated."),
    ] = None,
    tensor_type_file: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="F", help="A file of REGEX=T, after those given here."),
    ] = None,
    imatrix: Annotated[
        str | None, typer.Option(metavar="F", help="An importance matrix: which columns count.")
    ] = None,
    include_weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Use it for tensors with NAME only; may be repeated."),
    ] = None,
    exclude_weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Do not use it for tensors with NAME; may be repeated."),
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a file that is quantized already.")
    ] = False,
    search: Annotated[
        Literal["reference", "best"],
        typer.Option(
            help="llama.cpp's bytes, or smaller errors in the same formats (slower; some types far slower)."
        ),
    ] = "reference",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, write nothing.")
    ] = False,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Write a smaller GGUF file and print its path; the help text is above."""
    from phicourse.quantize import quantize
    from phicourse.quantize.mixes import read_tensor_types

    if len(paths) not in (2, 3):
        raise typer.BadParameter(f"expected IN [OUT] TYPE, got {len(paths)} of them")
    if "" in (*paths, imatrix):
        raise typer.BadParameter("one of IN, OUT, TYPE and --imatrix is empty")
    if include_weights and exclude_weights:
        raise typer.BadParameter("--include-weights and --exclude-weights contradict each other")
    listed = read_tensor_types(tensor_type_file) if tensor_type_file is not None else []
    print(
        quantize(
            paths[0],
            paths[1] if len(paths) == 3 else None,
            paths[-1],
            via=via,
            threads=threads,
            force=force,
            dry_run=dry_run,
            pure=pure,
            leave_output_tensor=leave_output_tensor,
            output_tensor_type=output_tensor_type,
            token_embedding_type=token_embedding_type,
            tensor_types=[*(tensor_type or ()), *listed],
            imatrix=imatrix,
            include_weights=include_weights or (),
            exclude_weights=exclude_weights or (),
            allow_requantize=allow_requantize,
            search=search,
        )
    )


@app.command()
def split(
    file: Model,
    out: Annotated[
        Path | None,
        typer.Argument(
            parser=a_path, metavar="OUT", help="Name of the set, without numbers.  [default: FILE's]"
        ),
    ] = None,
    split_max_size: SplitSize = None,
    split_max_tensors: SplitTensors = None,
    no_tensor_first_split: KeysFirst = False,
    force: Force = False,
) -> None:
    """Cut a GGUF file into several and print their paths.

    model.gguf becomes model-00001-of-00003.gguf and so on, with 128 tensors each where nothing else is said. The
    bytes are llama-gguf-split's.
    """
    from phicourse.gguf import split

    paths = split(
        file,
        out,
        max_bytes=split_max_size,
        max_tensors=split_max_tensors,
        keys_first=no_tensor_first_split,
        force=force,
    )
    print(*paths, sep="\n")


@app.command()
def merge(
    first: Annotated[
        Path, typer.Argument(parser=a_path, metavar="FIRST", help="The first file, …-00001-of-0000N.gguf.")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(parser=a_path, metavar="OUT", help="The new file.  [default: FIRST's name]"),
    ] = None,
    compat: Annotated[
        bool, typer.Option("--compat", help="Keep the split.* keys: the bytes of llama-gguf-split.")
    ] = False,
    force: Force = False,
) -> None:
    """Put the files of a split model together and print the path."""
    from phicourse.gguf import merge

    print(merge(first, out, compat=compat, force=force))


@app.command()
def info(
    file: Model,
    as_json: Json = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check every block for broken numbers.")] = False,
) -> None:
    """Show what is in a file, where, and how many bits."""
    from phicourse.errors import GGUFError
    from phicourse.gguf import GGUFFile, describe, summary
    from phicourse.gguf import verify as damaged_tensors

    gguf = GGUFFile.open(file)
    damage = damaged_tensors(gguf, progress=True) if verify else []
    if as_json:
        print_json(summary(gguf) | ({"damaged": damage} if verify else {}))
    else:
        print(describe(gguf, tensors=tensors))
    if damage:
        raise GGUFError(f"{file}: {len(damage)} of {len(gguf.tensors)} tensors are damaged: {damage[0]}")
    if verify and not as_json:
        print(f"\nall blocks of {len(gguf.tensors)} tensors are sound")


@app.command()
def tokenize(
    file: Model, text: Annotated[str, typer.Argument(metavar="TEXT", help="What to tokenize.")]
) -> None:
    """Show the ids of a text and the piece that each stands for."""
    from phicourse.gguf import GGUFFile
    from phicourse.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_gguf(GGUFFile.open(file))
    for token in tokenizer.encode(checked(text), add_special=True, parse_special=True):
        decoder = tokenizer.stream(special=True, continues=True)  # alone, but with the space in front
        piece = decoder.push(token) + decoder.finish()
        if "\ufffd" in piece:  # a lone byte is no text
            piece = tokenizer.vocabulary.tokens[token]
        print(f"{token:6d} -> {piece!r}")


def checked(text: str) -> str:
    """A text from the command line, where bytes that are no UTF-8 have become lone surrogates."""
    return decoded(text.encode("utf-8", "surrogateescape"), "the command line")


def decoded(raw: bytes, place: str) -> str:
    """Bytes as text; GenerateError says where they are no UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GenerateError(f"{place}: not a UTF-8 text (byte {error.start:,})") from None


@app.command()
def run(
    file: Model,
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", metavar="PROMPT", help="The prompt; - reads standard input.")
    ],
    n: Annotated[
        int, typer.Option("-n", min=-1, metavar="N", help="Tokens at most; -1: until the model ends.")
    ] = -1,
    temp: Annotated[
        float, typer.Option(metavar="T", help="Temperature; 0: always the likeliest token.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(metavar="K", help="Keep the K likeliest; 0: off.")] = 40,
    top_p: Annotated[
        float, typer.Option(metavar="P", help="Keep the likeliest that reach P; 1: off.")
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option(metavar="P", help="Keep those P times as likely as the best.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=-1, metavar="S", help="Same seed, same text; -1: a new one.")] = -1,
    threads: Threads = None,
    ctx: Context = None,
    cache_type: CacheType = "f16",
    gpu_layers: GpuLayers = 0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue PROMPT itself, without the chat template.")
    ] = False,
    lookup: Annotated[
        bool, typer.Option("--lookup", help="Guess from the text so far: same answer, sooner.")
    ] = False,
    draft: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="FILE", help="Let a smaller model guess: same answer, sooner."),
    ] = None,
) -> None:
    """Answer a prompt."""
    from phicourse.generate import load

    if lookup and draft is not None:
        raise typer.BadParameter("--lookup and --draft exclude each other")
    text = read_prompt(prompt)
    llm = load(file, n_ctx=ctx, threads=threads, cache_type=cache_type, gpu_layers=gpu_layers)
    options: dict[str, Any] = {
        "max_tokens": None if n < 0 else n,
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": None if seed < 0 else seed,
        "draft": "lookup" if lookup else None if draft is None else load(draft, n_ctx=ctx, threads=threads),
    }
    if raw or not llm.tokenizer.vocabulary.chat_template:
        pieces = llm.generate(text, stream=True, **options)
    else:
        pieces = llm.chat([{"role": "user", "content": text}], stream=True, **options)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print()  # after Ctrl-C, too
    warn_if_cut(llm, n)
    tell_guesses(llm)


def read_prompt(prompt: str) -> str:
    """The prompt of the command line; for - that of standard input, without the newline that ends its last line."""
    if prompt != "-":
        return checked(prompt)
    text = decoded(sys.stdin.buffer.read(), "standard input")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise GenerateError("standard input is empty, there is no prompt")
    return text


def warn_if_cut(llm: "LLM", n: int) -> None:
    """Say so where the context, and not the model or -n, ended the answer."""
    run = llm.last_run
    if run is not None and run.finish_reason == "length" and not 0 <= n <= len(run.tokens):
        print(f"phicourse: cut off, the context of {llm.n_ctx:,} tokens is full", file=sys.stderr)


def tell_guesses(llm: "LLM") -> None:
    """Say how well a draft guessed."""
    run = llm.last_run
    if run is not None and run.guessed:
        print(
            f"phicourse: {run.accepted:,} of {run.guessed:,} guesses were right, "
            f"{len(run.tokens) / run.steps:.1f} tokens a step",
            file=sys.stderr,
        )


@app.command()
def chat(
    file: Model,
    system: Annotated[str | None, typer.Option(metavar="S", help="What the model is to be.")] = None,
    threads: Threads = None,
    ctx: Context = None,
    cache_type: CacheType = "f16",
    gpu_layers: GpuLayers = 0,
) -> None:
    """Talk with a model: /help says how, Ctrl-D ends."""
    from phicourse.generate import load
    from phicourse.generate.repl import Repl

    llm = load(file, n_ctx=ctx, threads=threads, cache_type=cache_type, gpu_layers=gpu_layers)
    Repl(llm, None if system is None else checked(system)).run()


@app.command()
def imatrix(
    file: Annotated[
        Path | None,
        typer.Argument(parser=a_path, metavar="FILE", help="A GGUF file, or a checkpoint folder."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("-f", "--file", parser=a_path, metavar="TEXT", help="A text file, UTF-8."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", parser=a_path, metavar="OUT", help="The file to write."),
    ] = None,
    ctx: Annotated[int, typer.Option(min=16, metavar="N", help="Tokens a chunk.")] = 512,
    chunks: Annotated[int, typer.Option(min=-1, metavar="N", help="Chunks at most; -1: all.")] = -1,
    output_format: Annotated[
        str, typer.Option(metavar="F", help="gguf, or dat for tools of before 2025.")
    ] = "gguf",
    in_file: Annotated[
        list[Path] | None,
        typer.Option(parser=a_path, metavar="F", help="Add to this matrix; may be repeated."),
    ] = None,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Measure output.weight, too.")
    ] = False,
    show_statistics: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="F", help="Measure nothing, show what the matrix F has."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="PNG", help="Draw which columns matter."),
    ] = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure which columns of the weights matter, for quantize.

    Without FILE and TEXT the matrices of --in-file are added up.
    """
    from phicourse.evaluate import write_importance
    from phicourse.quantize.importance import ImportanceMatrix
    from phicourse.quantize.importance_statistics import importance_statistics

    if show_statistics is not None:
        if file or text or out or in_file:
            raise typer.BadParameter("--show-statistics goes without FILE, --file, --out and --in-file")
        matrix = ImportanceMatrix.read(show_statistics)
    else:
        if out is None:
            raise typer.BadParameter("there is no name for the output: -o OUT")
        if (file is None) != (text is None) or not (file or in_file):
            raise typer.BadParameter("expected FILE and -f TEXT, or --in-file, or --show-statistics")
        with progress_bar("chunk") as progress:
            matrix = write_importance(
                out,
                model=file,
                text="" if text is None else decoded(text.read_bytes(), str(text)),
                dataset="" if text is None else str(text),
                in_files=in_file or (),
                format=output_format,
                force=force,
                threads=threads,
                n_ctx=ctx,
                chunks=None if chunks < 0 else chunks,
                process_output=process_output,
                progress=progress,
            )
    if picture is not None:
        draw_columns(matrix, picture, force)
    if as_json:
        print_json(importance_statistics(matrix).as_dict())
    else:
        print(importance_statistics(matrix) if out is None else out)


def draw_columns(matrix: "ImportanceMatrix", picture: Path, force: bool) -> None:
    """Write a PNG file of the importance of all columns."""
    from phicourse.gguf import atomic_output
    from phicourse.plots import draw_importance
    from phicourse.quantize.importance_statistics import importance_by_layer

    with atomic_output(picture, force) as temporary:
        draw_importance(importance_by_layer(matrix)).savefig(temporary, format="png", dpi=150)


@app.command()
def perplexity(
    file: Model,
    text: Annotated[
        Path, typer.Option("-f", "--file", parser=a_path, metavar="TEXT", help="A text file, UTF-8.")
    ],
    ctx: Annotated[int, typer.Option(min=4, metavar="N", help="Tokens a chunk.")] = 512,
    chunks: Annotated[int, typer.Option(min=-1, metavar="N", help="Chunks at most; -1: all.")] = -1,
    kl_base: Annotated[
        Path | None,
        typer.Option(
            parser=a_path,
            metavar="F",
            help="Log-probabilities of a base model: compared with F, written where F is not there.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """How many tokens the model hesitates between: less is better."""
    from phicourse.evaluate import evaluate_text
    from phicourse.generate import load

    words = decoded(text.read_bytes(), str(text))
    llm = load(file, n_ctx=ctx)
    with progress_bar("chunk") as progress:
        result = evaluate_text(
            llm, words, chunks=None if chunks < 0 else chunks, kl_base=kl_base, progress=progress
        )
    if as_json:
        print_json({"model": str(file), "text": str(text)} | result)
    else:
        print_perplexity(result)


def print_perplexity(result: dict[str, Any]) -> None:
    """Print what `evaluate_text` found."""
    print(
        f"perplexity {result['perplexity']:.4f} ± {result['stderr']:.4f}, {result['tokens']:,} tokens scored"
    )
    if "kl" in result:
        kl = result["kl"]
        print(f"base model {kl['base_perplexity']:.4f}, ln of the ratio {kl['log_ratio']:+.5f}")
        print(
            f"KL divergence {kl['mean']:.6f} ± {kl['stderr']:.6f}, median {kl['median']:.6f}, "
            f"99 % {kl['percentile_99']:.6f}, maximum {kl['maximum']:.4f}"
        )
        print(
            f"same likeliest token {kl['same_top']:.2%}, "
            f"RMS change of the true token's probability {kl['rms_delta_p']:.3%}"
        )


@contextmanager
def progress_bar(unit: str) -> Iterator[Any]:
    """Give a function (done, total, value if any) that draws a bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(unit=unit, file=sys.stderr, disable=None, leave=False) as bar:

        def show(done: int, total: int, value: float | None = None) -> None:
            bar.total = total
            bar.set_postfix_str("" if value is None else f"{value:.4f}", refresh=False)
            bar.update(done - bar.n)

        yield show


@app.command()
def bench(
    file: Model,
    n_prompt: Annotated[int, typer.Option("-p", min=0, metavar="N", help="Tokens of the prompt test.")] = 512,
    n_gen: Annotated[
        int, typer.Option("-n", min=0, metavar="N", help="Tokens of the generation test.")
    ] = 128,
    repetitions: Annotated[int, typer.Option("-r", min=1, metavar="N", help="Repetitions of each test.")] = 3,
    depth: Annotated[
        int, typer.Option("-d", "--depth", min=0, metavar="N", help="Tokens of text before each test.")
    ] = 0,
    threads: Threads = None,
    cache_type: CacheType = "f16",
    gpu_layers: GpuLayers = 0,
    plot: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="PNG", help="Draw the speeds below the machine's roof."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure tokens per second of prompt processing and generation.

    Beside them stand multiply-adds and bytes a second, and what this machine does of both at best.
    """
    from phicourse.evaluate import bench
    from phicourse.evaluate.rates import compare_with_machine
    from phicourse.generate import load

    n_ctx = depth + max(n_prompt, n_gen, 1)
    llm = load(file, n_ctx=n_ctx, threads=threads, cache_type=cache_type, gpu_layers=gpu_layers)
    bos = llm.tokenizer.bos if llm.tokenizer.vocabulary.add_bos else None
    measured = bench(
        llm.backend, n_prompt=n_prompt, n_gen=n_gen, repetitions=repetitions, depth=depth, bos=bos
    )
    compared = compare_with_machine(llm, measured, n_prompt, n_gen, depth)
    if plot is not None:
        draw_roof(compared, plot, force)
    if as_json:
        size = sum(tensor.nbytes for tensor in llm.tensors)
        about = {"model": str(file), "tensor_bytes": size}
        rates = (
            [rate.as_dict(compared.machine) for rate in compared.rates] if compared else [{}] * len(measured)
        )
        print_json([m.as_dict() | about | rate for m, rate in zip(measured, rates, strict=True)])
    else:
        print(f"{file.name}, {llm.backend.name}, mean of {repetitions}")
        print_speeds(measured, compared)


def print_speeds(measured: "Sequence[Measurement]", compared: "Comparison | None") -> None:
    """Print a benchmark, and how far it is from the machine's limits where that is known."""
    for i, m in enumerate(measured):
        print(f"{m.test:16s} {m.tokens_per_second:12.2f} ± {m.stddev:.2f} tokens/s")
        if compared is not None:
            print(f"    {compared.rates[i].line(compared.machine)}")
    if compared is not None:
        print(compared.machine)


def draw_roof(compared: "Comparison | None", plot: Path, force: bool) -> None:
    """Write a PNG file of a benchmark below the machine's roof."""
    from phicourse.evaluate.rates import draw_rates
    from phicourse.gguf import atomic_output

    if compared is None:
        raise GenerateError("--plot shows the engine alone: not with --gpu-layers, nor where PyTorch runs")
    with atomic_output(plot, force) as temporary:
        figure = draw_rates(compared.machine, {"phicourse": compared.rates})
        figure.savefig(temporary, format="png", dpi=150)


@app.command()
def plan(
    file: Model,
    memory: Annotated[int, typer.Option(parser=an_amount, metavar="SIZE", help="The GPU's: 6GB, 5.5GiB, 0.")],
    ram: Annotated[
        int | None,
        typer.Option(
            parser=an_amount, metavar="SIZE", help="The machine's own.  [default: what is free here]"
        ),
    ] = None,
    ctx: Context = None,
    cache_type: CacheType = "f16",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say what fits where: layers on a GPU, context, keys and values."""
    from phicourse.generate.backends import thread_count
    from phicourse.generate.fit import plan_memory
    from phicourse.gguf import GGUFFile
    from phicourse.memory import available_memory

    ram = available_memory() if ram is None else ram
    if ram is None:
        raise GenerateError("this system does not say how much memory is free: tell it with --ram")
    report = plan_memory(
        GGUFFile.open(file), memory, ram, threads=thread_count(threads), n_ctx=ctx, cache_type=cache_type
    )
    if as_json:
        print_json(report.as_dict())
    else:
        print(report)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(parser=a_path, metavar="A", help="A GGUF file.")],
    b: Annotated[Path, typer.Argument(parser=a_path, metavar="B", help="The file to compare with it.")],
    as_json: Json = False,
) -> None:
    """Show what differs between two files: keys, tensors, types, bytes, error."""
    from phicourse.evaluate.diff import diff

    difference = diff(a, b)
    if as_json:
        print_json(difference.as_dict())
    else:
        print(difference)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check that everything the course needs is here: [OK] or [FAIL] a line, and what to do."""
    from phicourse.doctor import examine, report

    checks = examine()
    if as_json:
        print_json([check.as_dict() for check in checks])
    else:
        print(report(checks))
    if failed := [check.name for check in checks if not check.ok]:
        raise PhiCourseError(f"not ready: {', '.join(failed)}")
