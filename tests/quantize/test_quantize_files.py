"""Whole files: the same SHA-256 as llama_model_quantize (ggml 0.25.3) writes, for every mix and every wish."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from quantize_oracles import llama_quantize, sha256, tensor_overrides

from phicourse.convert import streaming
from phicourse.errors import GGUFError, QuantizeError
from phicourse.gguf import GGUFFile, GGUFWriter, ValueType, float32_to_bfloat16, tensor_type
from phicourse.quantize import MIXES, QUANTIZERS, Plan, files, quantize, sources, use

IDS = {mix.name: mix.file_type for mix in MIXES.values()}


def write_model(
    path: Path,
    *,
    hidden: int = 256,
    ffn: int = 256,
    vocab: int = 40,
    layers: int = 9,
    type: str = "F16",
    tied: bool = False,
    extra: tuple[tuple[str, object, ValueType], ...] = (),
    spoil: Callable[[str, np.ndarray], None] = lambda name, x: None,
) -> Path:
    """A Phi-3 of random weights, its tensors in the converter's order: layer 1, 10, 2, …"""
    rng = np.random.default_rng(4)
    tensors: list[tuple[str, tuple[int, ...]]] = [("rope_factors_long.weight", (hidden // 8,))]
    tensors += [] if tied else [("output.weight", (vocab, hidden))]
    tensors.append(("token_embd.weight", (vocab, hidden)))
    for i in sorted(range(layers), key=str):
        tensors += [
            (f"blk.{i}.attn_norm.weight", (hidden,)),
            (f"blk.{i}.ffn_down.weight", (hidden, ffn)),
            (f"blk.{i}.ffn_up.weight", (2 * ffn, hidden)),
            (f"blk.{i}.ffn_norm.weight", (hidden,)),
            (f"blk.{i}.attn_output.weight", (hidden, hidden)),
            (f"blk.{i}.attn_qkv.weight", (3 * hidden, hidden)),
        ]
    tensors.append(("output_norm.weight", (hidden,)))
    with GGUFWriter(path) as writer:
        for key, value, kind in (*metadata(hidden, ffn, layers), *extra):
            writer.add(key, value, kind)
        for name, shape in tensors:
            writer.declare(name, shape, type if len(shape) > 1 else "F32")
        for name, shape in tensors:
            x = (rng.normal(size=shape) * 0.05).astype(np.float32)
            spoil(name, x)
            writer.write(name, stored(x, type) if len(shape) > 1 else x)
    return path


def stored(x: np.ndarray, type_name: str) -> np.ndarray:
    return float32_to_bfloat16(x) if type_name == "BF16" else QUANTIZERS[type_name](x)


def metadata(hidden: int, ffn: int, layers: int) -> list[tuple[str, object, ValueType]]:
    numbers = {
        "context_length": 64,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "block_count": layers,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "rope.dimension_count": hidden // 4,
    }
    return [
        ("general.architecture", "phi3", ValueType.STRING),
        ("general.file_type", 1, ValueType.UINT32),
        ("general.quantization_version", 2, ValueType.UINT32),
        *((f"phi3.{key}", value, ValueType.UINT32) for key, value in numbers.items()),
        ("phi3.attention.layer_norm_rms_epsilon", 1e-5, ValueType.FLOAT32),
        ("general.name", "Phi für Tests", ValueType.STRING),
    ]


# Rows of 64, 160 and 48 weights are divided by no super-block, some by no block at all.
MODELS = {
    "usual": {},
    "fallbacks": {"hidden": 64, "ffn": 160, "type": "BF16"},
    "tied": {"ffn": 288, "layers": 5, "tied": True, "type": "F32"},
    "odd": {"hidden": 48, "ffn": 320, "vocab": 20, "layers": 2},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / f"{request.param}.gguf", **MODELS[request.param])


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("usual") / "usual.gguf")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small") / "small.gguf", layers=1)


@pytest.mark.parametrize("mix", MIXES)
def test_file_has_the_bytes_of_llama_model_quantize(model: Path, mix: str, tmp_path: Path) -> None:
    ours = quantize(model, tmp_path / "ours.gguf", mix, progress=False)
    llama_quantize(model, tmp_path / "theirs.gguf", IDS[mix])
    assert ours == tmp_path / "ours.gguf"
    assert sha256(ours) == sha256(tmp_path / "theirs.gguf")


WISHES = {
    "pure": ({"pure": True}, {"pure": True}),
    "leave output": ({"leave_output_tensor": True}, {"quantize_output_tensor": False}),
    "output type": ({"output_tensor_type": "q8_0"}, {"output_tensor_type": tensor_type("Q8_0").id}),
    "embedding type": ({"token_embedding_type": "F16"}, {"token_embedding_type": tensor_type("F16").id}),
    "tensor types": (
        {"tensor_types": ["blk.[12].ffn_down=q8_0", "ffn_(up|down)=Q5_K"]},
        {"overrides": [("blk.[12].ffn_down", "Q8_0"), ("ffn_(up|down)", "Q5_K")]},
    ),
    "layers that a pattern took are not counted": (
        {"tensor_types": ["blk.0.*=q5_0"], "pure": False},
        {"overrides": [("blk.0.*", "Q5_0")]},
    ),
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("mix", ["Q4_K_M", "Q4_K_S"])
def test_wishes_are_carried_out_as_by_llama(usual: Path, mix: str, wish: str, tmp_path: Path) -> None:
    ours, theirs = (dict(options) for options in WISHES[wish])
    if "overrides" in theirs:
        theirs["tt_overrides"] = tensor_overrides(*theirs.pop("overrides"))
    quantize(usual, tmp_path / "ours.gguf", mix, progress=False, **ours)
    llama_quantize(usual, tmp_path / "theirs.gguf", IDS[mix], **theirs)
    assert sha256(tmp_path / "ours.gguf") == sha256(tmp_path / "theirs.gguf")


def test_output_type_goes_to_tied_embeddings(tmp_path: Path) -> None:
    tied = write_model(tmp_path / "tied.gguf", tied=True, layers=1)
    quantize(tied, tmp_path / "ours.gguf", "Q4_K_M", output_tensor_type="Q5_K", progress=False)
    llama_quantize(tied, tmp_path / "theirs.gguf", IDS["Q4_K_M"], output_tensor_type=tensor_type("Q5_K").id)
    assert sha256(tmp_path / "ours.gguf") == sha256(tmp_path / "theirs.gguf")


def test_requantizing_on_request(small: Path, tmp_path: Path) -> None:
    eight = quantize(small, tmp_path / "q8_0.gguf", "Q8_0", progress=False)
    with pytest.raises(
        QuantizeError, match=r"weight is Q8_0 already, errors would add up; .*--allow-requantize"
    ):
        quantize(eight, tmp_path / "ours.gguf", "Q4_K_M", progress=False)
    quantize(eight, tmp_path / "ours.gguf", "Q4_K_M", allow_requantize=True, progress=False)
    llama_quantize(eight, tmp_path / "theirs.gguf", IDS["Q4_K_M"], allow_requantize=True)
    assert sha256(tmp_path / "ours.gguf") == sha256(tmp_path / "theirs.gguf")


def test_same_type_again_changes_nothing(small: Path, tmp_path: Path) -> None:
    once = quantize(small, tmp_path / "once.gguf", "Q8_0", progress=False)
    assert sha256(quantize(once, tmp_path / "twice.gguf", "Q8_0", progress=False)) == sha256(once)


def test_chunks_leave_no_trace(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize(small, tmp_path / "whole.gguf", "Q4_K_M", progress=False)
    monkeypatch.setattr(sources, "_CHUNK", 256 * 7)
    assert sha256(quantize(small, tmp_path / "chunks.gguf", "Q4_K_M", progress=False)) == sha256(whole)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_leave_no_trace(small: Path, tmp_path: Path, threads: int) -> None:
    slow = quantize(small, tmp_path / "numpy.gguf", "Q4_K_M", backend="numpy", progress=False)
    fast = quantize(small, tmp_path / "auto.gguf", "Q4_K_M", threads=threads, progress=False)
    assert sha256(slow) == sha256(fast)


def test_split_input_becomes_one_file(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole.gguf", layers=2)
    first = split_in_two(whole, tmp_path)
    ours = quantize(first, tmp_path / "ours.gguf", "Q4_K_M", progress=False)
    assert sha256(ours) == sha256(quantize(whole, tmp_path / "again.gguf", "Q4_K_M", progress=False))
    llama_quantize(first, tmp_path / "theirs.gguf", IDS["Q4_K_M"])
    assert sha256(ours) == sha256(tmp_path / "theirs.gguf")


def split_in_two(whole: Path, folder: Path) -> Path:
    paths = [folder / f"part-0000{i}-of-00002.gguf" for i in (1, 2)]
    with GGUFFile.open(whole) as file:
        names = list(file.tensors)
        for i, part in enumerate((names[:5], names[5:])):
            with GGUFWriter(paths[i]) as writer:
                for key, value in file.metadata.items() if i == 0 else ():
                    writer.add(key, value.value, value.type, value.element)
                writer.add("split.no", i, ValueType.UINT16)
                writer.add("split.count", 2, ValueType.UINT16)
                writer.add("split.tensors.count", len(names), ValueType.INT32)
                for name in part:
                    writer.declare(name, file.tensors[name].shape, file.tensors[name].type)
                for name in part:
                    writer.write(name, file.data(name))
    return paths[0]


def test_another_alignment_is_not_kept(tmp_path: Path) -> None:
    wide = write_model(tmp_path / "wide.gguf", layers=1, extra=(("general.alignment", 64, ValueType.UINT32),))
    with GGUFFile.open(quantize(wide, tmp_path / "out.gguf", "Q4_K_M", progress=False)) as file:
        assert file.alignment == 32 and "general.alignment" not in file.metadata
        assert list(file.metadata)[-2:] == ["general.quantization_version", "general.file_type"]
        assert file.get("general.file_type", int) == 15


def test_matrix_of_one_row_keeps_its_type_and_loses_a_dimension(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one.gguf", layers=1, vocab=1)
    ours = quantize(one, tmp_path / "ours.gguf", "Q4_K_M", progress=False)
    llama_quantize(one, tmp_path / "theirs.gguf", IDS["Q4_K_M"])
    assert sha256(ours) == sha256(tmp_path / "theirs.gguf")
    with GGUFFile.open(ours) as file:
        assert file.tensors["output.weight"].type.name == "F16"
        assert file.tensors["output.weight"].shape == (256,)


def test_learners_quantizer_writes_the_file(small: Path, tmp_path: Path) -> None:
    def halved(x: np.ndarray) -> np.ndarray:
        return QUANTIZERS["Q4_K"](x / np.float32(2))

    ours = quantize(small, tmp_path / "ours.gguf", "Q4_K_M", progress=False)
    with use(q4_k=halved):
        theirs = quantize(small, tmp_path / "theirs.gguf", "Q4_K_M", progress=False)
    with use(q4_k=QUANTIZERS["Q4_K"]):
        same = quantize(small, tmp_path / "same.gguf", "Q4_K_M", progress=False)
    assert sha256(same) == sha256(ours) != sha256(theirs)
    with GGUFFile.open(ours) as a, GGUFFile.open(theirs) as b:
        changed = {name for name in a.tensors if not np.array_equal(a.data(name), b.data(name))}
        assert changed == {name for name, tensor in a.tensors.items() if tensor.type.name == "Q4_K"} != set()


# ---- from a checkpoint ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q5_K_M", "Q6_K", "Q4_0"])
def test_stories260k_from_checkpoint_to_the_bytes_of_llama(
    stories260k: Path, mix: str, tmp_path: Path
) -> None:
    """Its rows have 64 weights: every K-quant falls back."""
    from_checkpoint_to_the_bytes_of_llama(stories260k, mix, tmp_path)


@pytest.mark.parametrize("mix", ["Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"])
def test_phi_tiny_from_checkpoint_to_the_bytes_of_llama(phi_tiny: Path, mix: str, tmp_path: Path) -> None:
    if not (phi_tiny / "model.safetensors").is_file():
        pytest.skip("needs the embedded model, data/phi-tiny")
    from_checkpoint_to_the_bytes_of_llama(phi_tiny, mix, tmp_path)


def from_checkpoint_to_the_bytes_of_llama(checkpoint: Path, mix: str, tmp_path: Path) -> None:
    from phicourse.convert import convert

    ours = quantize(checkpoint, tmp_path / "ours.gguf", mix, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["ours.gguf"]
    half = convert(checkpoint, tmp_path / "f16.gguf", "f16", progress=False)
    llama_quantize(half, tmp_path / "theirs.gguf", IDS[mix])
    assert sha256(ours) == sha256(tmp_path / "theirs.gguf")


@pytest.mark.parametrize(("mix", "outtype"), [("F32", "f32"), ("BF16", "bf16"), ("F16", "f16")])
def test_mixes_without_blocks_are_conversions(
    mix: str, outtype: str, stories260k: Path, tmp_path: Path
) -> None:
    from phicourse.convert import convert

    ours = quantize(stories260k, tmp_path / "ours.gguf", mix, progress=False)
    direct = convert(stories260k, tmp_path / "direct.gguf", outtype, progress=False)
    with GGUFFile.open(ours) as a, GGUFFile.open(direct) as b:
        assert set(a.tensors) == set(b.tensors)
        assert all(np.array_equal(a.data(name), b.data(name)) for name in a.tensors)


def test_a_checkpoint_is_read_in_one_pass(
    stories260k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other file is written on the way, and none at all for a plan."""
    opened: list[Path] = []

    class Recorder(GGUFWriter):
        def __init__(self, path: Path, **options: object) -> None:
            opened.append(Path(path))
            super().__init__(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "GGUFWriter", Recorder)
    monkeypatch.setattr(streaming, "GGUFWriter", Recorder)
    plan = quantize(stories260k, tmp_path / "out.gguf", "Q4_0", dry_run=True)
    assert isinstance(plan, Plan) and not opened
    quantize(stories260k, tmp_path / "out.gguf", "Q4_0", progress=False)
    assert opened == [tmp_path / "out.gguf"]


def test_a_checkpoint_s_own_files_are_never_replaced(stories260k: Path, tmp_path: Path) -> None:
    for path in stories260k.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(GGUFError, match="is an input, too"):
        quantize(tmp_path, tmp_path / "model.safetensors", "Q4_0", force=True, progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_pattern_without_a_tensor_is_mentioned(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize(small, small, "Q8_0", dry_run=True, tensor_types=["attn_qvk=q4_0", "ffn_up=q4_0"])
    said = capsys.readouterr().err
    assert "attn_qvk" in said and "ffn_up" not in said


# ---- plans and refusals --------------------------------------------------------------------------------


def test_dry_run_plans_and_writes_nothing(small: Path, tmp_path: Path) -> None:
    plan = quantize(small, tmp_path / "out.gguf", "Q4_K_M", dry_run=True)
    assert isinstance(plan, Plan) and not list(tmp_path.iterdir())
    path = quantize(small, tmp_path / "out.gguf", "Q4_K_M", progress=False)
    with GGUFFile.open(path) as file:
        assert [tensor.source.name for tensor in plan.tensors] == list(file.tensors)
        assert [tensor.type for tensor in plan.tensors] == [t.type for t in file.tensors.values()]
        assert plan.nbytes == sum(tensor.nbytes for tensor in file.tensors.values())
    text = str(plan).splitlines()
    assert text[0].split() == ["tensor", "shape", "from", "to", "MiB"]
    assert text[1].split()[:6] == ["output.weight", "40", "×", "256", "F16", "Q6_K"]
    assert text[-1] == plan.total() and "bits per weight" in plan.total()
    assert plan._repr_html_().count("<tr>") == len(plan.tensors) + 1


def test_dry_run_of_what_exists_is_no_error(small: Path) -> None:
    assert isinstance(quantize(small, small, "Q8_0", dry_run=True), Plan)


def test_output_gets_a_name(small: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(small.read_bytes())
    assert quantize(source, mix="q8_0", progress=False) == tmp_path / "ggml-model-Q8_0.gguf"
    (tmp_path / "folder").mkdir()
    assert quantize(source, tmp_path / "folder", "Q4_K", progress=False).name == "ggml-model-Q4_K_M.gguf"


def test_nothing_is_overwritten_by_accident(small: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.gguf"
    there.write_bytes(b"precious")
    with pytest.raises(GGUFError, match="exists already; --force"):
        quantize(small, there, "Q8_0", progress=False)
    assert there.read_bytes() == b"precious"
    quantize(small, there, "Q8_0", force=True, progress=False)
    assert there.read_bytes()[:4] == b"GGUF"
    link = tmp_path / "link.gguf"
    link.symlink_to(there)
    with pytest.raises(GGUFError, match="is an input, too"):
        quantize(there, link, "Q8_0", force=True, progress=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blk.0.ffn_up.weight", r"blk\.0\.ffn_up\.weight: row 300, column 9 is nan"),
        ("blk.0.attn_norm.weight", r"blk\.0\.attn_norm\.weight: row 0, column 9: not finite"),
    ],
)
def test_broken_weights_are_named_and_leave_no_file(name: str, message: str, tmp_path: Path) -> None:
    def spoil(tensor: str, x: np.ndarray) -> None:
        if tensor == name:
            x.reshape(-1, x.shape[-1])[300 if x.ndim > 1 else 0, 9] = np.nan

    broken = write_model(tmp_path / "broken.gguf", layers=1, spoil=spoil)
    with pytest.raises(QuantizeError, match=message):
        quantize(broken, tmp_path / "out.gguf", "Q4_K_M", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]


def test_interrupt_leaves_no_file(small: Path, tmp_path: Path) -> None:
    def interrupted(x: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with use(q4_k=interrupted), pytest.raises(KeyboardInterrupt):
        quantize(small, tmp_path / "out.gguf", "Q4_K_M", progress=False)
    assert not list(tmp_path.iterdir())


def test_unknown_mix_lists_the_mixes(small: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"unknown mix 'Q4'; known are F32, F16, .*Q4_K_M"):
        quantize(small, tmp_path / "out.gguf", "Q4")


def test_types_that_cannot_be_widened_are_refused(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "in.gguf") as writer:
        writer.add("general.architecture", "phi3", ValueType.STRING)
        writer.add("phi3.block_count", 1, ValueType.UINT32)
        writer.declare("blk.0.ffn_up.weight", (2, 256), "Q8_K")
        writer.write("blk.0.ffn_up.weight", np.zeros((2, 292), np.uint8))
    with pytest.raises(QuantizeError, match=r"blk\.0\.ffn_up\.weight is Q8_K, which cannot be widened"):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0", allow_requantize=True)


def test_file_without_layers_is_refused(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "in.gguf") as writer:
        writer.add("general.architecture", "phi3", ValueType.STRING)
    with pytest.raises(GGUFError, match=r"phi3\.block_count' is missing"):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")
    with pytest.raises(GGUFError, match="there is no such file"):
        quantize(tmp_path / "none.gguf", tmp_path / "out.gguf", "Q8_0")


def test_progress_goes_to_standard_error_only(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(small, tmp_path / "quiet.gguf", "Q8_0", backend="numpy", progress=False)
    assert capfd.readouterr() == ("", "")
    quantize(small, tmp_path / "loud.gguf", "Q8_0", backend="numpy")
    assert capfd.readouterr().out == ""
