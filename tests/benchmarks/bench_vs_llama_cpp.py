"""Our speed and llama.cpp's, side by side in one process: A B A B, the same files, the same threads.

    python tests/benchmarks/bench_vs_llama_cpp.py [--layers 16] [--repetitions 3] [--threads N] [--json FILE]
    python tests/benchmarks/bench_vs_llama_cpp.py --types Q4_K_M,Q8_0,IQ3_S [--layers 4] [--threads N] [--depth 2048]

Makes a Phi with random weights (200 million of them) in .bench/, then converts it, quantizes it F16 -> Q4_K_M,
reads a prompt and generates with both. With --types it only reads and generates, from files with some layers of
Phi-3.5-mini's shapes in these mixes, whose rows repeat a few quantized ones. With --depth N tokens are generated
behind a text of N tokens, which is read once and not measured. Prints speeds and ratios, how near both come to this
machine's limits, and the most memory that each has; draws that in out/roofline.png. Decides nothing.
"""

import argparse
import ctypes
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import llama_cpp
import numpy as np
from phi_3_5_mini import make_f16
from side_by_side import FOLDER, HEADER, REPOSITORY, Row, in_turns, prepare, run, say

sys.path.insert(0, str(REPOSITORY / "tests"))

from random_phi import write_random_phi

import phicourse
from phicourse.convert.metadata import config_from_gguf
from phicourse.evaluate import Measurement
from phicourse.evaluate.rates import Rate, draw_rates, measure_machine, rate, work_of
from phicourse.generate.backends import NativeBackend, thread_count
from phicourse.generate.cache_size import kv_cache_bytes
from phicourse.gguf import GGUFFile, GGUFWriter, TensorInfo, TensorType, Value, ValueType
from phicourse.gguf.layers import Tensor
from phicourse.quantize import MIXES, quantize_rows

N_PROMPT, N_GEN = 512, 128
ROOM = 1024  # tokens of context behind a text, enough for the prompt or the generation
DIFFERENT_ROWS = 32  # that are quantized, which is slow for some types, and repeated
Q4_K_M_FILE_TYPE = 15


def make_checkpoint(layers: int, depth: int) -> Path:
    """A checkpoint of a random Phi in BF16: 12.6 million weights a layer.

    Half of its context has room behind `depth` tokens. In that half LongRoPE has its short factors, whoever asks:
    llama.cpp goes by the context that it is to have, we by the text.
    """
    context = 2 * (depth + ROOM)
    folder = FOLDER / f"random-{layers}-{context}"
    if not (folder / "model.safetensors").exists():
        say(f"making {folder.name} …")
        tokenizer = REPOSITORY / "data" / "phi-tiny"
        write_random_phi(folder, tokenizer, hidden=1024, layers=layers, ffn=3072, context=context)
    return folder


def bench_convert(checkpoint: Path, converter: Path, repetitions: int) -> tuple[list[Row], Path]:
    """BF16 safetensors -> F16 GGUF, each as a program of its own, from its start to its end."""
    ours_path, theirs_path = FOLDER / f"{checkpoint.name}-F16.gguf", FOLDER / "theirs-F16.gguf"
    our_memory, their_memory = [0], [0]

    def ours() -> None:
        command = [
            sys.executable,
            "-m",
            "phicourse",
            "convert",
            str(checkpoint),
            "-o",
            str(ours_path),
            "--force",
        ]
        our_memory[0] = run(command)

    def theirs() -> None:
        command = [
            sys.executable,
            str(converter),
            str(checkpoint),
            "--outfile",
            str(theirs_path),
            "--outtype",
            "f16",
        ]
        their_memory[0] = run(command)

    if not converter.exists():
        say("no llama.cpp converter here (make oracles): conversion is not compared")
        ours()
        return [], ours_path
    say("converting …")
    times = in_turns(ours, theirs, repetitions)
    theirs_path.unlink()
    size = ours_path.stat().st_size / 1e6
    say(f"memory: ours {our_memory[0] / 1e6:.0f} MB, llama.cpp's converter {their_memory[0] / 1e6:.0f} MB")
    return [Row("convert BF16 -> F16", "MB/s of F16", size, *times)], ours_path


@llama_cpp.llama_log_callback
def be_quiet(level: int, text: bytes, data: object) -> None:
    """Take llama.cpp's log and drop it."""


class Llama:
    """llama.cpp without the Python around it: a context, its cache, decode."""

    def __init__(self, path: Path, n_ctx: int, threads: int) -> None:
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_load_model_from_file(str(path).encode(), model_parameters)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = n_ctx, 2048, 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_new_context_with_model(self.model, parameters)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def close(self) -> None:
        """Give back the memory."""
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), 0, length, -1)

    def forward(self, ids: np.ndarray) -> np.ndarray:
        """Append ids (n,) and give the logits after the last (vocab,)."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids.tolist())
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, shape=(self.n_vocab,))


def bench_quantize(f16: Path, threads: int, repetitions: int) -> tuple[Row, Path]:
    """F16 -> Q4_K_M with both; the bytes must be the same."""
    ours_path, theirs_path = FOLDER / "ours-Q4_K_M.gguf", FOLDER / "theirs-Q4_K_M.gguf"

    def ours() -> None:
        phicourse.quantize(f16, ours_path, "Q4_K_M", threads=threads, force=True, progress=False)

    def theirs() -> None:
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.nthread, parameters.ftype = threads, Q4_K_M_FILE_TYPE
        if llama_cpp.llama_model_quantize(
            str(f16).encode(), str(theirs_path).encode(), ctypes.byref(parameters)
        ):
            raise RuntimeError("llama_model_quantize failed")

    say("quantizing …")
    times = in_turns(ours, theirs, repetitions)
    say("same bytes" if ours_path.read_bytes() == theirs_path.read_bytes() else "THE BYTES DIFFER")
    theirs_path.unlink()
    return Row("quantize F16 -> Q4_K_M", "MB/s of F16", f16.stat().st_size / 1e6, *times), ours_path


def bench_forward(path: Path, threads: int, repetitions: int, depth: int = 0) -> list[Row]:
    """Prompt and generation with both: the prompt from an empty cache, generation behind `depth` tokens."""
    file, n_ctx = GGUFFile.open(path), depth + ROOM
    native, llama = NativeBackend(file, n_ctx, threads), Llama(path, n_ctx, threads)
    rng = np.random.default_rng(1)
    ids = rng.integers(0, native.config.vocab_size, N_PROMPT).astype(np.int32)

    def ours(*parts: np.ndarray, behind: int = 0) -> np.ndarray:
        native.truncate(behind)
        return [native.forward(part, False) for part in parts][-1][0]

    def theirs(*parts: np.ndarray, behind: int = 0) -> np.ndarray:
        llama.truncate(behind)
        return [llama.forward(part) for part in parts][-1]

    difference = np.abs(ours(ids) - theirs(ids)).max() / theirs(ids).std()
    say(f"largest difference of logits after the prompt: {difference:.3f} standard deviations")
    steps = [ids[i : i + 1] for i in range(N_GEN)]
    say("prompt …")
    prompt = Row(
        f"prompt, {N_PROMPT} tokens",
        "tokens/s",
        N_PROMPT,
        *in_turns(lambda: ours(ids), lambda: theirs(ids), repetitions),
    )
    say("generation …")
    text = np.array_split(
        rng.integers(0, native.config.vocab_size, depth).astype(np.int32), depth // N_PROMPT or 1
    )
    if depth:
        ours(*text), theirs(*text)
    generation = Row(
        f"generation, {N_GEN} tokens" + (f" at {depth}" if depth else ""),
        "tokens/s",
        N_GEN,
        *in_turns(lambda: ours(*steps, behind=depth), lambda: theirs(*steps, behind=depth), repetitions),
    )
    llama.close()
    return [prompt, generation]


def compare_with_machine(path: Path, rows: list[Row], threads: int, depth: int) -> dict:
    """Print how near both come to this machine's limits, measured now, and draw it; give what was printed."""
    say("measuring the machine …")
    machine, file = measure_machine(threads), GGUFFile.open(path)
    config = config_from_gguf(file)
    tensors = [Tensor(t.name, t.shape, t.type.name, t.nbytes) for t in file.tensors.values()]
    series: dict[str, list[Rate]] = {"phicourse": [], "llama.cpp": []}
    tests = (
        (f"pp{N_PROMPT}", [N_PROMPT], 0),
        (f"tg{N_GEN}" + f" @ d{depth}" * (depth > 0), [1] * N_GEN, depth),
    )
    for row, (test, calls, behind) in zip(rows, tests, strict=True):
        work = work_of(config, tensors, "F16", calls, behind)
        for (name, rates), speed in zip(series.items(), row.speeds, strict=True):
            rates.append(rate(Measurement(test, speed, 0, threads, name, len(row.ours)), sum(calls), work))
            print(f"{name:10s} {test:6s} {rates[-1].line(machine)}")
    print(machine)
    picture = REPOSITORY / "out" / "roofline.png"
    picture.parent.mkdir(exist_ok=True)
    draw_rates(machine, series).savefig(picture, format="png", dpi=150)
    say(f"drawn in {picture.relative_to(REPOSITORY)}")
    return {
        "bandwidth": machine.bandwidth,
        "products": machine.products,
        "rates": {name: [r.as_dict(machine) for r in rates] for name, rates in series.items()},
    }


MEMORY_OF = ("nothing", "phicourse", "llama.cpp")


def read_once(name: str, path: Path, threads: int) -> None:
    """A prompt and some tokens, in a program of its own whose memory is measured."""
    if name == "nothing":
        return
    ids = np.random.default_rng(1).integers(0, 2000, N_PROMPT).astype(np.int32)
    native = NativeBackend(GGUFFile.open(path), ROOM, threads) if name == "phicourse" else None
    llama = Llama(path, ROOM, threads) if name == "llama.cpp" else None
    for part in (ids, *(ids[i : i + 1] for i in range(8))):
        if native is not None:
            native.forward(part, False)
        if llama is not None:
            llama.forward(part)


def compare_memory(path: Path, threads: int) -> dict[str, int]:
    """Print the most memory that each side has, beyond the same program that does nothing, in bytes."""
    say("measuring memory …")
    script = [sys.executable, str(Path(__file__).resolve()), "--threads", str(threads)]
    most = {name: run([*script, "--memory-of", name, str(path)]) for name in MEMORY_OF}
    file = GGUFFile.open(path)
    needed = file.size + kv_cache_bytes(config_from_gguf(file), ROOM)
    taken = {name: most[name] - most["nothing"] for name in MEMORY_OF[1:]}
    parts = (f"{name} {n / 1e6:.0f} MB ({n / needed:.2f}×)" for name, n in taken.items())
    print(f"peak memory: {', '.join(parts)}; file and cache of {ROOM:,} tokens are {needed / 1e6:.0f} MB")
    return taken


def make_mix(f16: Path, mix: str) -> Path:
    """A file like f16 in another mix."""
    path, source = FOLDER / f"repeated-{mix}.gguf", GGUFFile.open(f16)
    plan = phicourse.quantize(f16, path, mix, dry_run=True)
    own = {"general.file_type": Value(ValueType.UINT32, MIXES[mix].file_type)}
    with GGUFWriter(path, force=True) as writer:
        for key, value in (source.metadata | own).items():
            writer.add(key, value.value, value.type, value.element)
        for tensor in plan.tensors:
            writer.declare(tensor.source.name, tensor.source.shape, tensor.type)
        for tensor in plan.tensors:
            writer.write(tensor.source.name, repeated_rows(tensor.source, tensor.type))
    return path


def repeated_rows(tensor: TensorInfo, type: TensorType) -> np.ndarray:
    """Ones where the type is F32, else a few random rows again and again, quantized."""
    n = tensor.shape[-1]
    if type.name == "F32":
        return np.ones((tensor.rows, n), np.float32)
    x = np.random.default_rng(n).standard_normal((DIFFERENT_ROWS, n), np.float32) / np.sqrt(
        n, dtype=np.float32
    )
    rows = quantize_rows(x, type.name, importance=np.ones(n, np.float32))
    return np.resize(rows, (tensor.rows, rows.shape[1]))


def bench_types(mixes: list[str], layers: int, threads: int, repetitions: int, depth: int) -> list[Row]:
    """Prompt and generation in each mix."""
    f16, rows = make_f16(layers), []
    for mix in mixes:
        path = make_mix(f16, mix)
        rows += [
            replace(row, what=f"{mix} {row.what}") for row in bench_forward(path, threads, repetitions, depth)
        ]
        print(*rows[-2:], sep="\n", flush=True)
        path.unlink()
    return rows


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, help="default: 16, with --types 4")
    parser.add_argument(
        "--types", help="mixes with commas between them: compare these with Phi-3.5-mini's shapes"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--depth", type=int, default=0, help="tokens in the context before generation begins")
    parser.add_argument("--threads", type=int, default=thread_count(None))
    parser.add_argument(
        "--converter", type=Path, default=REPOSITORY / ".oracles/llama.cpp/convert_hf_to_gguf.py"
    )
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    parser.add_argument("--memory-of", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    llama_cpp.llama_log_set(be_quiet, None)
    if args.memory_of:
        read_once(args.memory_of[0], Path(args.memory_of[1]), args.threads)
        return
    prepare()
    if args.types:
        print(HEADER)
        bench_types(
            args.types.upper().split(","), args.layers or 4, args.threads, args.repetitions, args.depth
        )
        return
    converted, f16 = bench_convert(
        make_checkpoint(args.layers or 16, args.depth), args.converter, args.repetitions
    )
    quantized, q4 = bench_quantize(f16, args.threads, args.repetitions)
    rows = [*converted, quantized, *bench_forward(q4, args.threads, args.repetitions, args.depth)]
    print(
        f"llama-cpp-python {llama_cpp.__version__}, {args.threads} threads, {args.repetitions} repetitions, medians"
    )
    print(HEADER, *rows, sep="\n")
    limits = compare_with_machine(q4, rows[-2:], args.threads, args.depth)
    memory = compare_memory(q4, args.threads)
    if args.json:
        document = {
            "threads": args.threads,
            "machine": limits,
            "peak_memory": memory,
            "rows": [asdict(r) | {"ratio": r.ratio} for r in rows],
        }
        args.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
