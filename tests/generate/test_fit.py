"""What `phicourse plan` counts against what is really taken, and how it says so."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_phi import write_random_phi
from typer.testing import CliRunner

import phicourse
from phicourse.cli import app
from phicourse.convert.metadata import config_from_gguf
from phicourse.errors import GenerateError
from phicourse.generate import backends
from phicourse.generate.backends import NativeBackend, engine_config, engine_tensors
from phicourse.generate.cache_size import CACHE_TYPES, engine_work_bytes
from phicourse.generate.fit import DRIVER_BYTES, FitReport, gpu_use, machine_use, plan_memory
from phicourse.generate.split import Split, torch_work_bytes
from phicourse.gguf import GGUFFile

MB, GB = 10**6, 10**9


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    """phi-tiny in Q4_K_M: 4 layers."""
    folder = tmp_path_factory.mktemp("fit")
    f16 = phicourse.convert(phi_tiny, folder / "phi-tiny-F16.gguf", "f16", progress=False)
    return phicourse.quantize(f16, folder / "phi-tiny-Q4_K_M.gguf", "Q4_K_M", progress=False)


def plan(path: Path, gpu: int, machine: int = 20 * GB, **options: object) -> FitReport:
    """Plan for two threads."""
    return plan_memory(GGUFFile.open(path), gpu, machine, threads=2, **options)  # type: ignore[arg-type]


# ---- the numbers -------------------------------------------------------------------------------


def needs_engine() -> None:
    if backends.native_module() is None:
        pytest.skip("needs the compiled engine")


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("shape", [(256, 512), (256, 768), (1024, 9216)])  # hidden, ffn
def test_the_engine_works_in_as_many_bytes_as_we_say(
    shape: tuple[int, int], cache_type: str, phi_tiny: Path, tmp_path: Path
) -> None:
    needs_engine()
    checkpoint = write_random_phi(tmp_path / "c", phi_tiny, hidden=shape[0], ffn=shape[1], context=2048)
    path = phicourse.convert(checkpoint, tmp_path / "m.gguf", "f16", progress=False)
    native = backends.native_module()
    with GGUFFile.open(path) as file:
        config, tensors = config_from_gguf(file), engine_tensors(native, file, file.tensors.values())
        for n_ctx, threads in ((1, 1), (33, 3), (2048, 2)):
            engine = native.Engine(engine_config(config), tensors, n_ctx, threads, cache_type)
            assert engine.work_bytes == engine_work_bytes(config, n_ctx, threads, cache_type)


@pytest.mark.parametrize("layers", [1, 3, 4, 5])
def test_each_number_is_what_a_loaded_model_has(
    tiny: Path, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With matrices of 16 bits on the CPU, as they are on a GPU."""
    needs_engine()
    torch = pytest.importorskip("torch")
    from phicourse.generate import torch_layers
    from phicourse.generate.hybrid import HybridBackend

    monkeypatch.setattr(torch_layers, "matrix_dtype", lambda device: torch.float16)
    file = GGUFFile.open(tiny)
    backend = HybridBackend(file, layers, 1000, 2, "Q8_0")
    gpu = gpu_use(file, backend.split, 1000)
    machine = machine_use(file, backend.split, 1000, "Q8_0", 2)
    weights = backend._layers._model.state_dict().values()
    assert gpu.weights == sum(w.nbytes for w in weights if w.device.type != "meta")
    assert gpu.cache == backend._layers.cache.nbytes
    assert gpu.driver == DRIVER_BYTES
    if layers == 5:
        assert machine.total == machine.weights == file.tensor("token_embd.weight").nbytes
        return
    assert machine.cache == backend._engine.cache_bytes
    assert machine.work == backend._engine.work_bytes
    kept = {tensor.name for tensor in backend.split.in_engine(file)} | {"token_embd.weight"}
    assert machine.weights == sum(file.tensor(name).nbytes for name in kept)


RESIDENT = """
import gc, sys
from pathlib import Path
import numpy as np
from phicourse.generate.backends import NativeBackend
from phicourse.generate.hybrid import HybridBackend
from phicourse.gguf import GGUFFile

def resident():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

def run(path, layers, n_ctx):
    file = GGUFFile.open(path)
    backend = HybridBackend(file, layers, n_ctx, 2) if layers else NativeBackend(file, n_ctx, 2)
    backend.forward(np.random.default_rng(1).integers(0, 2000, n_ctx).astype(np.int32), False)
    return backend

run(sys.argv[2], int(sys.argv[3]), 32)  # what libraries take is taken
gc.collect()
before = resident()
backend = run(sys.argv[1], int(sys.argv[3]), int(sys.argv[4]))
print(resident() - before)
"""


@pytest.mark.parametrize(("layers", "n_ctx"), [(0, 512), (0, 2048), (2, 2048)])
def test_what_becomes_resident_is_what_was_counted(
    tiny: Path, tmp_path: Path, layers: int, n_ctx: int
) -> None:
    """A full context, in a process of its own.

    The engine alone takes what is counted, less codings that no weight asks for: 80 to 100 %, and 2 MB that
    malloc keeps here and there. PyTorch's room to work in is counted for its slowest kernels: up to all of it.
    """
    needs_engine()
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    if layers:
        pytest.importorskip("torch")
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny.read_bytes())  # pages of the file itself must be new
    command = [sys.executable, "-c", RESIDENT, str(tiny), str(other), str(layers), str(n_ctx)]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    file = GGUFFile.open(tiny)
    split = Split.of(config_from_gguf(file), layers)
    machine, gpu = machine_use(file, split, n_ctx, "F16", 2), gpu_use(file, split, n_ctx)
    least = machine.total + 2 * (gpu.weights + gpu.cache)  # float32 on a CPU
    assert 0.8 * least < taken < least + 2 * gpu.work + 2 * MB


@pytest.mark.parametrize("n_ctx", [512, 2048])
def test_pytorch_works_in_no_more_than_is_counted(tiny: Path, n_ctx: int) -> None:
    """All that it takes and gives back while the last batch of a full context is read, with its slowest kernel."""
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from phicourse.generate.torch_layers import TorchLayers

    file = GGUFFile.open(tiny)
    split = Split.of(config_from_gguf(file), 2)
    layers = TorchLayers(file, split, n_ctx)
    ids = np.random.default_rng(1).integers(0, 2000, n_ctx).tolist()
    for start in range(0, n_ctx - 512, 512):
        layers.read(ids[start : start + 512], n_ctx)
    activity = [torch.profiler.ProfilerActivity.CPU]
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.profiler.profile(activities=activity, profile_memory=True) as seen,
    ):
        layers.read(ids[-512:], n_ctx)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak = np.cumsum([event.nbytes() for event in events]).max()
    counted = torch_work_bytes(split, n_ctx, 4)
    assert counted / 2 < peak < counted


def test_no_layer_more_would_fit(tiny: Path) -> None:
    file = GGUFFile.open(tiny)
    config = config_from_gguf(file)
    for memory in range(500 * MB, 560 * MB, 2 * MB):
        best = plan(tiny, memory).best
        assert best.gpu.total <= memory
        if best.gpu_layers <= config.n_layers:
            assert gpu_use(file, Split.of(config, best.gpu_layers + 1), best.n_ctx).total > memory
    assert {plan(tiny, memory * MB).best.gpu_layers for memory in (0, 500, 538, 600)} >= {0, 1, 5}


def test_less_context_or_a_smaller_cache_leave_more_room(tiny: Path) -> None:
    report = plan(tiny, 540 * MB)
    by_context = [row[0].gpu_layers for row in report.alternatives]
    assert by_context == sorted(by_context, reverse=True) and by_context[0] > by_context[-1]
    for row in report.alternatives:
        machine = [fit.machine.total for fit in row]
        assert [fit.cache_type for fit in row] == ["F16", "Q8_0", "Q4_0"]
        assert machine == sorted(machine, reverse=True)
        assert len({fit.gpu for fit in row}) == 1  # the GPU's are always float16
    assert plan(tiny, 0, cache_type="bf16").alternatives[0][0].cache_type == "BF16"


def test_the_machine_s_own_memory_counts(tiny: Path) -> None:
    needed = plan(tiny, 0, n_ctx=2048).best.machine.total
    assert plan(tiny, 0, needed, n_ctx=2048).best.fits
    short = plan(tiny, 0, needed - 1, n_ctx=2048)
    assert not short.best.fits and short.alternatives[0][1].fits
    with pytest.raises(GenerateError, match=r"does not fit: .* 1\.00 MB are free"):
        plan(tiny, 0, MB)


# ---- how it is said ------------------------------------------------------------------------------


def run(*args: object) -> str:
    """The command's standard output."""
    result = CliRunner().invoke(app, ["plan", *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_has_at_most_80_columns_and_says_what_to_type(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.parent)
    for memory in ("0", "540MB", "6GB"):
        text = run(tiny.name, "--memory", memory, "--ram", "12MB" if memory == "540MB" else "8 GiB")
        assert max(map(len, text.splitlines())) <= 80
    assert "phicourse run phi-tiny-Q4_K_M.gguf --gpu-layers 5 --ctx 2048 -p PROMPT" in text
    assert "4 of 4 and head" in text
    assert "Not one layer fits on the GPU" in run(tiny.name, "--memory", "0")
    assert "no room" in run(tiny.name, "--memory", "0", "--ram", "21MB")


def test_one_json_document(tiny: Path) -> None:
    document = json.loads(run(tiny, "--memory", "6GB", "--ram", "1GB", "--ctx", "600", "--json"))
    assert document["layers"] == 4 and document["gpu_memory"] == 6 * GB and document["machine_memory"] == GB
    best = document["plan"]
    assert (best["context"], best["cache_type"], best["gpu_layers"], best["fits"]) == (600, "F16", 5, True)
    gpu = best["gpu"]
    assert gpu["total"] == gpu["weights"] + gpu["cache"] + gpu["work"] + gpu["driver"]
    assert [other["cache_type"] for other in document["alternatives"]] == ["F16", "Q8_0", "Q4_0"]


def test_what_cannot_be_planned(tiny: Path, phi_tiny: Path) -> None:
    def fails(code: int, *args: object) -> str:
        result = CliRunner().invoke(app, ["plan", *map(str, args)])
        assert result.exit_code == code, result.output
        return result.stderr

    for wrong in ("6XB", "-1GB", "", "GB", "6iB"):
        assert "6GB" in fails(2, tiny, "--memory", wrong)
    assert "--memory" in fails(2, tiny)
    assert "GGUF" in fails(1, phi_tiny, "--memory", "6GB")
    assert "GGUF" in fails(1, phi_tiny / "config.json", "--memory", "6GB")
    assert "does not fit" in fails(1, tiny, "--memory", "1MB", "--ram", "1MB")
    assert "1 to 2,048" in fails(1, tiny, "--memory", "6GB", "--ctx", "5000")
    assert "F16" in fails(1, tiny, "--memory", "6GB", "--cache-type", "q9")


def test_an_engine_alone_needs_no_torch_to_plan(tiny: Path) -> None:
    code = "import sys; from phicourse.generate import fit; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_native_backend_is_planned_with_its_default_context(tiny: Path) -> None:
    needs_engine()
    backend = NativeBackend(GGUFFile.open(tiny))
    assert plan(tiny, 0).best.n_ctx == backend.n_ctx
    assert np.isclose(plan(tiny, 0).best.machine.cache, backend._engine.cache_bytes)
