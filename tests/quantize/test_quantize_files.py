"""Whole files: the same SHA-256 as llama_model_quantize (ggml 0.25.3) writes, for every mix and every wish."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from file_oracles import imatrix_options, llama_plan, random_importance
from quantize_inputs import SORTING
from quantize_oracles import llama_quantize, qsort_is_stable, sha256, tensor_overrides
from small_models import write_model

from phicourse.convert import convert, streaming
from phicourse.errors import GGUFError, QuantizeError
from phicourse.evaluate.imatrix import gather_importance
from phicourse.generate import load
from phicourse.gguf import GGUFFile, GGUFWriter, ValueType, tensor_type
from phicourse.quantize import MIXES, QUANTIZERS, Plan, files, quantize, sources, use
from phicourse.quantize.importance import ImportanceMatrix, Squares

IDS = {mix.name: mix.file_type for mix in MIXES.values()}
# What a matrix in memory says of where it came from.
FILE = "texts/importance.gguf"
WEIGHED = ("blindly", "with importance")

# A few rows suffice: NumPy takes a tenth of a millisecond for a row of some types. Rows of 64, 160 and 48 weights
# are divided by no super-block, some by no block at all.
MODELS = {
    "phi3": {"rows": 4, "layers": 8, "heads": 8, "kv_heads": 2},
    "tied": {"rows": 4, "layers": 2, "ffn": 288, "tied": True, "type": "F32"},
    "phi2": {"rows": 4, "layers": 2, "architecture": "phi2"},
    "phimoe": {"rows": 3, "layers": 1, "architecture": "phimoe", "experts": 3},
    "fallbacks": {"rows": 4, "layers": 8, "hidden": 64, "ffn": 160, "type": "BF16"},
    "odd": {"rows": 4, "layers": 1, "hidden": 48, "ffn": 320},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / f"{request.param}.gguf", **MODELS[request.param])


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("usual") / "usual.gguf", rows=16)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small") / "small.gguf", layers=1)


def same_bytes(ours: Path, theirs: Path) -> None:
    """Hold two files against each other, where llama.cpp's is one that any C library would have made."""
    with GGUFFile.open(ours) as file:
        sorting = not {tensor.type.name for tensor in file.tensors.values()}.isdisjoint(SORTING)
    if sorting and not qsort_is_stable():
        pytest.skip(
            "C's qsort leaves equal weights in another order here: the test of the types bounds the cost"
        )
    assert sha256(ours) == sha256(theirs)


@pytest.mark.parametrize("weighed", WEIGHED)
@pytest.mark.parametrize("mix", MIXES)
def test_file_has_the_bytes_of_llama_model_quantize(
    model: Path, mix: str, weighed: str, tmp_path: Path
) -> None:
    matrix = random_importance(model, path=Path(FILE)) if weighed == "with importance" else None
    options = imatrix_options(matrix, FILE) if matrix is not None else {}
    try:
        plan = quantize(model, mix=mix, imatrix=matrix, dry_run=True)
    except QuantizeError as error:
        assert mix == "Q1_0" and "rows of" in str(error)
        assert llama_plan(model, IDS[mix], **options) is None
        return
    assert isinstance(plan, Plan)
    types = {tensor.source.name: tensor.type.name for tensor in plan.tensors}
    theirs = llama_plan(model, IDS[mix], **options)
    assert theirs is not None
    assert types == theirs.types
    assert bool(plan.blind) == theirs.needs_importance
    if plan.blind:
        with pytest.raises(QuantizeError, match=f"{mix} needs an importance matrix: blk.*phicourse imatrix"):
            quantize(model, tmp_path / "ours.gguf", mix, imatrix=matrix, progress=False)
        assert not list(tmp_path.iterdir())
        return
    ours = quantize(model, tmp_path / "ours.gguf", mix, imatrix=matrix, progress=False)
    assert ours == tmp_path / "ours.gguf"
    llama_quantize(model, tmp_path / "theirs.gguf", IDS[mix], **options)
    same_bytes(ours, tmp_path / "theirs.gguf")


@pytest.mark.parametrize("architecture", ["phi3", "phi2"])
@pytest.mark.parametrize("mix", ["Q4_0", "Q8_0", "Q4_K_M", "Q5_K_M"])
def test_large_matrices_have_the_bytes_of_llama_model_quantize(
    architecture: str, mix: str, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "large.gguf", architecture=architecture, ffn=512, layers=2)
    ours = quantize(model, tmp_path / "ours.gguf", mix, progress=False)
    llama_quantize(model, tmp_path / "theirs.gguf", IDS[mix])
    assert sha256(ours) == sha256(tmp_path / "theirs.gguf")


@pytest.mark.parametrize("name", ["small", "phimoe"])
def test_copy_changes_nothing_but_the_order(name: str, small: Path, tmp_path: Path) -> None:
    source = small if name == "small" else write_model(tmp_path / "moe.gguf", **MODELS["phimoe"])
    ours = quantize(source, tmp_path / "ours.gguf", "copy", pure=True, progress=False)
    llama_quantize(source, tmp_path / "theirs.gguf", 0, only_copy=True)
    assert sha256(ours) == sha256(tmp_path / "theirs.gguf")
    with GGUFFile.open(ours) as file, GGUFFile.open(source) as before:
        assert file.get("general.file_type", int) == 1
        assert list(file.tensors) != list(before.tensors)


def test_copy_takes_quantized_files(small: Path, tmp_path: Path) -> None:
    eight = quantize(small, tmp_path / "q8_0.gguf", "Q8_0", progress=False)
    copied = quantize(eight, tmp_path / "copy.gguf", "COPY", progress=False)
    assert sha256(copied) == sha256(eight)


# ---- importance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["gguf", "dat"])
def test_importance_from_a_file(
    usual: Path, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's name is in the quantized file as it was given, as far as llama.cpp keeps it."""
    monkeypatch.chdir(tmp_path)
    Path("folder" * 30).mkdir()
    name = f"./{'folder' * 30}/../importance.{format}"
    random_importance(usual).write(name, format)
    matrix = ImportanceMatrix.read(name)
    quantize(usual, "ours.gguf", "Q4_0", imatrix=name, progress=False)
    llama_quantize(usual, tmp_path / "theirs.gguf", IDS["Q4_0"], **imatrix_options(matrix, name))
    assert sha256(Path("ours.gguf")) == sha256(Path("theirs.gguf"))
    with GGUFFile.open(Path("ours.gguf")) as file:
        assert list(file.metadata)[-4:] == [
            f"quantize.imatrix.{key}" for key in ("file", "dataset", "entries_count", "chunks_count")
        ]
        assert file.get("quantize.imatrix.file", str) == name[:127]
        assert file.get("quantize.imatrix.dataset", str) == "texts/für-alle.txt"
        assert file.get("quantize.imatrix.entries_count", int) == 36


def test_keys_of_an_older_importance_are_replaced(small: Path, tmp_path: Path) -> None:
    matrix = random_importance(small, path=Path(FILE))
    first = quantize(small, tmp_path / "first.gguf", "Q8_0", imatrix=matrix, progress=False)
    ours = quantize(
        first, tmp_path / "ours.gguf", "Q4_0", imatrix=matrix, allow_requantize=True, progress=False
    )
    options = imatrix_options(matrix, FILE)
    llama_quantize(first, tmp_path / "theirs.gguf", IDS["Q4_0"], allow_requantize=True, **options)
    assert sha256(ours) == sha256(tmp_path / "theirs.gguf")


@pytest.mark.parametrize(
    ("wish", "kept"),
    [
        ({"include_weights": ["ffn_down", "attn_qkv"]}, ("attn_qkv", "ffn_down")),
        ({"exclude_weights": ["ffn", "qkv"]}, ("attn_output",)),
        ({"include_weights": "ffn_up"}, ("ffn_up",)),
    ],
)
def test_some_weights_only(
    usual: Path, wish: dict[str, list[str]], kept: tuple[str, ...], tmp_path: Path
) -> None:
    matrix = random_importance(usual, path=Path(FILE))
    some = {name: s for name, s in matrix.squares.items() if any(part in name for part in kept)}
    theirs = ImportanceMatrix(None, matrix.datasets, matrix.n_chunks, matrix.chunk_size, some)
    quantize(usual, tmp_path / "ours.gguf", "Q4_0", imatrix=matrix, progress=False, **wish)
    llama_quantize(usual, tmp_path / "theirs.gguf", IDS["Q4_0"], **imatrix_options(theirs, FILE))
    assert sha256(tmp_path / "ours.gguf") == sha256(tmp_path / "theirs.gguf")


def test_nothing_left_of_the_importance_is_as_none(small: Path, tmp_path: Path) -> None:
    matrix = random_importance(small)
    none = quantize(
        small, tmp_path / "none.gguf", "Q4_0", imatrix=matrix, exclude_weights=["blk"], progress=False
    )
    assert sha256(none) == sha256(quantize(small, tmp_path / "blind.gguf", "Q4_0", progress=False))


def test_importance_of_experts_reaches_their_rows_in_any_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "moe.gguf", **{**MODELS["phimoe"], "rows": 5})
    matrix = random_importance(model)
    whole = quantize(model, tmp_path / "whole.gguf", "Q4_K_M", imatrix=matrix, progress=False)
    monkeypatch.setattr(sources, "_CHUNK", 256 * 7)
    chunks = quantize(model, tmp_path / "chunks.gguf", "Q4_K_M", imatrix=matrix, progress=False)
    assert sha256(whole) == sha256(chunks)
    assert sha256(whole) != sha256(quantize(model, tmp_path / "blind.gguf", "Q4_K_M", progress=False))


def with_entry(matrix: ImportanceMatrix, name: str, squares: Squares) -> ImportanceMatrix:
    entries = {**matrix.squares, name: squares}
    return ImportanceMatrix(Path(FILE), matrix.datasets, matrix.n_chunks, matrix.chunk_size, entries)


DOWN = "blk.0.ffn_down.weight"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (255, r"importance\.gguf: blk\.0\.ffn_down\.weight has 255 columns, this model 256"),
        (512, r"importance\.gguf: blk\.0\.ffn_down\.weight has 512 columns, this model 256"),
    ],
)
def test_importance_of_another_size_is_refused(
    small: Path, columns: int, message: str, tmp_path: Path
) -> None:
    squares = Squares(np.ones((1, columns), np.float32), np.array([3]))
    matrix = with_entry(random_importance(small), DOWN, squares)
    with pytest.raises(QuantizeError, match=message):
        quantize(small, tmp_path / "out.gguf", "Q4_0", imatrix=matrix, progress=False)
    assert not list(tmp_path.iterdir())


def test_importance_of_another_size_does_not_matter_where_it_is_not_used(small: Path, tmp_path: Path) -> None:
    """llama.cpp never minds the embedding's, which an output matrix of the same numbers may have given."""
    squares = Squares(np.ones((1, 40), np.float32), np.array([3]))
    matrix = with_entry(random_importance(small), "token_embd.weight", squares)
    matrix = with_entry(matrix, "blk.0.attn_norm.weight", squares)
    ours = quantize(small, tmp_path / "ours.gguf", "Q4_0", imatrix=matrix, progress=False)
    llama_quantize(small, tmp_path / "theirs.gguf", IDS["Q4_0"], **imatrix_options(matrix, FILE))
    assert sha256(ours) == sha256(tmp_path / "theirs.gguf")


def test_importance_of_another_model_is_refused(small: Path, tmp_path: Path) -> None:
    theirs = write_model(tmp_path / "phi2.gguf", architecture="phi2", layers=1)
    matrix = random_importance(theirs).write(tmp_path / "phi2-imatrix.gguf")
    options = {"imatrix": matrix, "include_weights": ["attn_q.", "attn_k.", "attn_v."], "progress": False}
    with pytest.raises(
        QuantizeError, match=r"phi2-imatrix\.gguf: none of its 3 entries, as .* of this model"
    ):
        quantize(small, tmp_path / "out.gguf", "Q4_0", **options)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("format", ["gguf", "dat"])
def test_importance_that_is_no_weight_is_refused(
    small: Path, value: float, format: str, tmp_path: Path
) -> None:
    """The value is put into the file behind the writer's back."""
    path = random_importance(small).write(tmp_path / f"importance.{format}", format)
    stored = ImportanceMatrix.read(path).squares[DOWN].sums[0, 9].tobytes()
    raw = path.read_bytes()
    assert raw.count(stored) == 1
    path.write_bytes(raw.replace(stored, struct.pack("<f", value)))
    with pytest.raises(QuantizeError, match=r"importance\.(gguf|dat): .*ffn_down"):
        quantize(small, tmp_path / "out.gguf", "Q4_0", imatrix=path, progress=False)
    assert not (tmp_path / "out.gguf").exists()


def test_negative_importance_made_by_hand_is_refused(small: Path, tmp_path: Path) -> None:
    sums = np.ones((1, 256), np.float32)
    sums[0, 9] = -1
    matrix = with_entry(random_importance(small), DOWN, Squares(sums, np.array([1])))
    with pytest.raises(QuantizeError, match=r"blk\.0\.ffn_down\.weight: the importance of column 9 is -1"):
        quantize(small, tmp_path / "out.gguf", "Q4_0", imatrix=matrix, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mix", [mix.name for mix in MIXES.values() if mix.needs_importance])
def test_mixes_that_need_importance_say_so(usual: Path, mix: str, tmp_path: Path) -> None:
    matrix = random_importance(usual)
    whole = quantize(usual, mix=mix, imatrix=matrix, dry_run=True)
    assert isinstance(whole, Plan) and not whole.blind and "imatrix" not in str(whole)
    for options in ({}, {"imatrix": matrix, "exclude_weights": ["ffn"]}):
        plan = quantize(usual, mix=mix, dry_run=True, **options)
        assert isinstance(plan, Plan)
        assert str(plan).splitlines()[-1] == plan.needs()
        with pytest.raises(
            QuantizeError, match=r"usual\.gguf: .* needs an importance .*phicourse imatrix"
        ) as error:
            quantize(usual, tmp_path / "out.gguf", mix, progress=False, **options)
        assert plan.blind[0].source.name in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("type_name", ["IQ1_S", "IQ2_XXS", "IQ2_XS"])
def test_types_that_cannot_do_without_importance_say_so_anywhere(
    small: Path, type_name: str, tmp_path: Path
) -> None:
    """Where llama.cpp would end the process."""
    message = f"token_embd.weight would be {type_name}"
    with pytest.raises(QuantizeError, match=message):
        quantize(small, tmp_path / "out.gguf", "Q8_0", token_embedding_type=type_name, progress=False)


def test_rows_that_no_block_divides_are_an_error_where_nothing_steps_in(tmp_path: Path) -> None:
    model = write_model(tmp_path / "odd.gguf", hidden=64, layers=1)
    with pytest.raises(
        QuantizeError, match=r"weight: rows of 64 weights cannot be Q1_0, whose blocks have 128"
    ):
        quantize(model, tmp_path / "out.gguf", "Q1_0", progress=False)
    assert not (tmp_path / "out.gguf").exists()


def test_a_folder_that_takes_no_files(small: Path) -> None:
    folder = Path("/proc/self")
    if not folder.is_dir():
        pytest.skip("needs a folder that even root cannot write to")
    with pytest.raises((GGUFError, OSError), match="/proc/self"):
        quantize(small, folder / "out.gguf", "Q8_0", progress=False)


@pytest.mark.parametrize("kv_heads", ["four", 1.5])
def test_head_counts_that_are_no_numbers_are_refused(kv_heads: object, tmp_path: Path) -> None:
    kind = ValueType.STRING if isinstance(kv_heads, str) else ValueType.FLOAT32
    with GGUFWriter(tmp_path / "in.gguf") as writer:
        writer.add("general.architecture", "phi3", ValueType.STRING)
        writer.add("phi3.block_count", 1, ValueType.UINT32)
        writer.add("phi3.attention.head_count", 4, ValueType.UINT32)
        writer.add("phi3.attention.head_count_kv", kv_heads, kind)
    with pytest.raises(QuantizeError, match=r"in\.gguf: .*head_count_kv must be whole numbers"):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")


# ---- wishes --------------------------------------------------------------------------------------------


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


def from_checkpoint_to_the_bytes_of_llama(checkpoint: Path, mix: str, tmp_path: Path) -> None:
    ours = quantize(checkpoint, tmp_path / "ours.gguf", mix, via="f16", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["ours.gguf"]
    half = convert(checkpoint, tmp_path / "f16.gguf", "f16", progress=False)
    llama_quantize(half, tmp_path / "theirs.gguf", IDS[mix])
    assert sha256(ours) == sha256(tmp_path / "theirs.gguf")


@pytest.fixture(scope="module")
def phi_tiny_f16(phi_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (phi_tiny / "model.safetensors").is_file():
        pytest.skip("needs the embedded model, data/phi-tiny")
    return convert(phi_tiny, tmp_path_factory.mktemp("phi-tiny") / "F16.gguf", "f16", progress=False)


@pytest.fixture(scope="module")
def phi_tiny_importance(phi_tiny_f16: Path, repository: Path) -> ImportanceMatrix:
    """What it multiplies its weights with while it reads a story."""
    text = (repository / "data" / "text" / "stories_01.txt").read_text(encoding="utf-8")
    matrix = gather_importance(load(phi_tiny_f16), text, dataset="stories_01.txt", n_ctx=128, chunks=4)
    return replace(matrix, path=Path(FILE))


@pytest.mark.parametrize(
    ("mix", "weighed"),
    [(mix.name, weighed) for mix in MIXES.values() for weighed in WEIGHED[mix.needs_importance :]],
)
def test_phi_tiny_from_checkpoint_to_the_bytes_of_llama(
    phi_tiny: Path,
    phi_tiny_f16: Path,
    mix: str,
    weighed: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """A model that was trained, and an importance that was measured."""
    matrix = request.getfixturevalue("phi_tiny_importance") if weighed == "with importance" else None
    options = imatrix_options(matrix, FILE) if matrix is not None else {}
    ours = quantize(phi_tiny, tmp_path / "ours.gguf", mix, via="f16", imatrix=matrix, progress=False)
    llama_quantize(phi_tiny_f16, tmp_path / "theirs.gguf", IDS[mix], **options)
    same_bytes(ours, tmp_path / "theirs.gguf")


@pytest.mark.parametrize(("mix", "outtype"), [("F32", "f32"), ("BF16", "bf16"), ("F16", "f16")])
def test_mixes_without_blocks_are_conversions(
    mix: str, outtype: str, stories260k: Path, tmp_path: Path
) -> None:
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
