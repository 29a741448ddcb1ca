"""Importance matrices: llama-imatrix's bytes in both formats, llama-quantize's numbers, and files that lie.

The hashes are of files that llama-imatrix wrote (built from the source in llama-cpp-python 0.3.36), given the
matrices below with --in-file and -c 128; the statistics are what its --show-statistics printed.
"""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from quantize_oracles import sha256

from phicourse.errors import GGUFError, QuantizeError
from phicourse.gguf import GGUFFile, GGUFWriter, ValueType
from phicourse.quantize.importance import ImportanceMatrix, Squares
from phicourse.quantize.importance_statistics import (
    importance_by_layer,
    importance_statistics,
    split_name,
)

EXPERTS, DENSE, NEXT = "blk.10.ffn_up_exps.weight", "blk.2.attn_qkv.weight", "blk.3.attn_qkv.weight"
COUNTS = [5, 384, 0, 77]


def numbers(n: int, step: int) -> np.ndarray:
    """(n,) float32, positive, not round."""
    return (np.arange(n) * step % 97 + 1).astype(np.float32) / np.float32(7)


def matrix() -> ImportanceMatrix:
    """Four experts, one of them without tokens, and a dense tensor in two layers."""
    experts = numbers(4 * 96, 11).reshape(4, 96)
    experts[2] = 0
    squares = {
        EXPERTS: Squares(experts, np.array(COUNTS)),
        DENSE: Squares(numbers(64, 13)[None], np.array([384])),
        NEXT: Squares(numbers(64, 17)[None], np.array([384])),
    }
    return ImportanceMatrix(None, ("a.txt", "ü.txt"), 3, 128, squares)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return matrix().write(tmp_path / "a.gguf")


@pytest.fixture
def dat(tmp_path: Path) -> Path:
    return matrix().write(tmp_path / "a.dat", "dat")


def equal(a: ImportanceMatrix, b: ImportanceMatrix) -> bool:
    return sorted(a.squares) == sorted(b.squares) and all(
        np.array_equal(a.squares[name].sums, b.squares[name].sums)
        and np.array_equal(a.squares[name].counts, b.squares[name].counts)
        for name in a.squares
    )


# ---- the numbers


def test_importance_is_the_mean_square_in_float32() -> None:
    entries = matrix().entries
    assert entries[EXPERTS].shape == (4, 96) and entries[EXPERTS].dtype == np.float32
    for expert in (0, 1, 3):
        assert np.array_equal(
            entries[EXPERTS][expert], matrix().squares[EXPERTS].sums[expert] / np.float32(COUNTS[expert])
        )
    assert (entries[EXPERTS][2] == 1).all()  # no token, no opinion


def test_a_dat_file_gives_values_over_chunks(tmp_path: Path) -> None:
    values = numbers(8, 5)
    (tmp_path / "a.dat").write_bytes(dat_bytes([("x", 3, values), ("y", 0, values)]))
    entries = ImportanceMatrix.read(tmp_path / "a.dat").entries
    assert np.array_equal(entries["x"], (values / np.float32(3))[None])
    assert np.array_equal(entries["y"], values[None])


def test_a_tensor_gets_a_row_for_each_expert(gguf: Path, dat: Path) -> None:
    expected = matrix().entries[EXPERTS]
    for path, tolerance in (
        (gguf, 0),
        (dat, 1e-6),
    ):  # a .dat file has the means times the chunks: 2 roundings
        found = ImportanceMatrix.read(path).for_tensor(EXPERTS, 96, 4)
        assert found is not None and found.shape == (4, 96)
        np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert ImportanceMatrix.read(gguf).for_tensor("blk.9.ffn_up.weight", 96) is None


def test_another_models_matrix_is_refused(gguf: Path) -> None:
    with pytest.raises(
        QuantizeError, match=r"a\.gguf: blk\.2\.attn_qkv\.weight has 64 columns, this model 128"
    ):
        ImportanceMatrix.read(gguf).for_tensor(DENSE, 128)


def test_an_embedding_of_another_size_is_passed_over() -> None:
    squares = {"token_embd.weight": matrix().squares[DENSE]}
    assert dataclasses.replace(matrix(), squares=squares).for_tensor("token_embd.weight", 128) is None


# ---- the files


def test_what_was_written_is_read(gguf: Path) -> None:
    read = ImportanceMatrix.read(gguf)
    assert equal(read, matrix())
    assert (read.datasets, read.n_chunks, read.chunk_size) == (("a.txt", "ü.txt"), 3, 128)


def test_gguf_bytes_are_llama_imatrix_s(gguf: Path) -> None:
    assert sha256(gguf) == "38db9e200eb37b2681f1db6ccb383fa1b777b124f881ad0d8506611819ef55a0"


def test_dat_bytes_are_llama_imatrix_s(dat: Path) -> None:
    assert sha256(dat) == "6ab8213cb48230795e2ed6d44d331588c290ee0242f804deee61442fe4b66c54"


def test_merged_bytes_are_llama_imatrix_s(gguf: Path, dat: Path, tmp_path: Path) -> None:
    merged = ImportanceMatrix.merge(ImportanceMatrix.read(dat), ImportanceMatrix.read(gguf), chunk_size=128)
    assert (
        sha256(merged.write(tmp_path / "m.gguf"))
        == "4e6127eb1b695cd8cb2039572cf6ebcb6bb3afbaf4c1b2f7091b9d4ce8e53fc4"
    )
    assert (
        sha256(merged.write(tmp_path / "m.dat", "dat"))
        == "51d785db329716d0e529af2040f3d86a18a542f07539c393d3755c3dff7d3bcd"
    )


def test_tensors_that_no_token_met_are_not_in_a_dat_file(tmp_path: Path) -> None:
    unseen = Squares(np.zeros((1, 4), np.float32), np.array([0]))
    written = dataclasses.replace(matrix(), squares={"x": unseen, DENSE: matrix().squares[DENSE]})
    assert list(ImportanceMatrix.read(written.write(tmp_path / "a.dat", "dat")).squares) == [DENSE]
    assert (ImportanceMatrix.read(written.write(tmp_path / "a.gguf")).entries["x"] == 1).all()


def test_a_file_is_replaced_only_when_forced(gguf: Path) -> None:
    before = gguf.read_bytes()
    for format in ("gguf", "dat"):
        with pytest.raises(GGUFError, match="--force"):
            matrix().write(gguf, format)
    assert gguf.read_bytes() == before and list(gguf.parent.iterdir()) == [gguf]
    matrix().write(gguf, "dat", force=True)
    assert ImportanceMatrix.read(gguf).chunk_size == 0


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="known are gguf, dat"):
        matrix().write(tmp_path / "a", "json")


# ---- merging


def test_merging_adds_sums_and_counts() -> None:
    merged = ImportanceMatrix.merge(matrix(), matrix())
    for name, squares in matrix().squares.items():
        assert np.array_equal(merged.squares[name].sums, squares.sums + squares.sums)
        assert np.array_equal(merged.squares[name].counts, 2 * squares.counts)
    assert (merged.n_chunks, merged.chunk_size) == (6, 128)
    assert merged.datasets == ("a.txt", "ü.txt") * 2


def test_merging_keeps_tensors_that_only_one_has() -> None:
    parts = [
        dataclasses.replace(matrix(), squares={name: squares}) for name, squares in matrix().squares.items()
    ]
    assert equal(ImportanceMatrix.merge(*parts), matrix())


def test_matrices_of_different_models_do_not_merge() -> None:
    other = dataclasses.replace(
        matrix(), squares={DENSE: Squares(np.ones((1, 65), np.float32), np.array([1]))}
    )
    with pytest.raises(QuantizeError, match=r"blk\.2\.attn_qkv\.weight: belongs to another model"):
        ImportanceMatrix.merge(matrix(), other)


# ---- files that lie


def dat_bytes(entries: list[tuple[str, int, np.ndarray]], tail: bytes = b"") -> bytes:
    """A .dat file, byte by byte."""
    parts = [struct.pack("<i", len(entries))]
    for name, n_chunks, values in entries:
        raw = name.encode("utf-8", "surrogateescape")
        parts.append(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", n_chunks, len(values)))
        parts.append(values.astype("<f4").tobytes())
    return b"".join(parts) + tail


ONES = np.ones(4)
BROKEN_DAT = {
    "nothing": (b"", "byte 0: the number of tensors needs 4 bytes, 0 are left"),
    "no tensors": (struct.pack("<i", 0), "is no importance matrix, or an empty one"),
    "negative number": (struct.pack("<i", -1), "the number of tensors is -1"),
    "many tensors": (struct.pack("<i", 2**31 - 1), "the length of name 0 needs 4 bytes"),
    "long name": (struct.pack("<ii", 1, 2**31 - 1), "name 0 needs 2,147,483,647 bytes"),
    "negative name": (struct.pack("<ii", 1, -5), "the length of name 0 is -5"),
    "no columns": (dat_bytes([("x", 1, ONES[:0])]), "x: 0 sums"),
    "many columns": (struct.pack("<iiBii", 1, 1, 120, 1, 2**31 - 1)[:17], "numbers of"),
    "negative chunks": (dat_bytes([("x", -1, ONES)]), "the chunks of x is -1"),
    "no UTF-8": (dat_bytes([("\udcff", 1, ONES)]), "name 0 is not UTF-8"),
    "twice": (dat_bytes([("x", 1, ONES), ("x", 1, ONES)]), "x is there twice"),
    "NaN": (dat_bytes([("x", 1, ONES * np.nan)]), "x: has infinite or undefined numbers"),
    "infinite": (dat_bytes([("x", 1, ONES * np.inf)]), "x: has infinite or undefined numbers"),
    "negative": (dat_bytes([("x", 1, -ONES)]), "x: has negative numbers"),
    "long dataset": (
        dat_bytes([("x", 1, ONES)], struct.pack("<ii", 1, 9)),
        "the dataset's name needs 9 bytes",
    ),
    "more behind": (dat_bytes([("x", 1, ONES)], struct.pack("<ii", 1, 0) + b"x"), "added at its end"),
    "a text": (b"Once upon a time there was a dog.", "is no importance matrix"),
}


@pytest.mark.parametrize("case", BROKEN_DAT)
def test_broken_dat_files_give_one_clear_line(case: str, tmp_path: Path) -> None:
    raw, message = BROKEN_DAT[case]
    path = tmp_path / "broken.dat"
    path.write_bytes(raw)
    with pytest.raises(QuantizeError) as caught:
        ImportanceMatrix.read(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dat_file_that_is_cut_anywhere_is_refused(dat: Path) -> None:
    """But for the two places where tools of old ended it: before the chunks, and before the dataset."""
    whole = dat.read_bytes()
    complete = {len(whole) - 4 - 6 - 4, len(whole) - 4 - 6, len(whole)}  # "ü.txt" has 6 bytes
    for n_bytes in range(len(whole) + 1):
        if n_bytes % 7 and n_bytes < len(whole) - 20:
            continue  # quick
        dat.write_bytes(whole[:n_bytes])
        if n_bytes in complete:
            assert len(ImportanceMatrix.read(dat).squares) == 3
        else:
            with pytest.raises(QuantizeError):
                ImportanceMatrix.read(dat)


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    metadata: dict[str, tuple[object, ValueType]] | None = None,
) -> Path:
    """A GGUF file with these tensors and, unless told otherwise, an importance matrix's metadata."""
    datasets = {"imatrix.datasets": (["a"], ValueType.ARRAY)}
    sizes = {key: (2, ValueType.UINT32) for key in ("imatrix.chunk_count", "imatrix.chunk_size")}
    with GGUFWriter(path) as writer:
        for key, (value, type) in (datasets | sizes | (metadata or {})).items():
            if value is not None:
                writer.add(key, value, type, ValueType.STRING if type is ValueType.ARRAY else None)
        for name, array in tensors.items():
            writer.declare(name, array.shape, {"f4": "F32", "f2": "F16"}[array.dtype.str[1:]])
        for name, array in tensors.items():
            writer.write(name, array)
    return path


SUMS, COUNT = np.full((2, 4), 3, np.float32), np.array([[1], [2]], np.float32)
U32 = ValueType.UINT32
BROKEN_GGUF: dict[str, tuple[dict[str, np.ndarray], dict[str, tuple[object, ValueType]], str]] = {
    "no counts": ({"x.in_sum2": SUMS}, {}, "x.counts is missing"),
    "no sums": ({"x.counts": COUNT}, {}, "x.in_sum2 is missing"),
    "a model": ({"token_embd.weight": SUMS}, {}, "token_embd.weight.in_sum2 is missing"),
    "half of one": ({"x.in_sum2": SUMS, "x.counts": COUNT, "y.counts": COUNT}, {}, "y.in_sum2 is missing"),
    "no tensors": ({}, {}, "an empty one"),
    "another type": ({"x.in_sum2": SUMS.astype(np.float16), "x.counts": COUNT}, {}, "x.in_sum2 is F16"),
    "lengths": (
        {"x.in_sum2": SUMS, "x.counts": np.ones(3, np.float32)},
        {},
        "8 sums cannot belong to 3 counts",
    ),
    "NaN": ({"x.in_sum2": SUMS * np.float32(np.nan), "x.counts": COUNT}, {}, "infinite or undefined"),
    "NaN count": ({"x.in_sum2": SUMS, "x.counts": COUNT * np.float32(np.nan)}, {}, "infinite or undefined"),
    "negative": ({"x.in_sum2": -SUMS, "x.counts": COUNT}, {}, "negative"),
    "negative count": ({"x.in_sum2": SUMS, "x.counts": -COUNT}, {}, "negative"),
    "huge count": ({"x.in_sum2": SUMS, "x.counts": COUNT * np.float32(1e30)}, {}, "tokens"),
    "no metadata": (
        {"x.in_sum2": SUMS, "x.counts": COUNT},
        {"imatrix.chunk_size": (None, U32)},
        "'imatrix.chunk_size' is missing",
    ),
    "text for a number": (
        {"x.in_sum2": SUMS, "x.counts": COUNT},
        {"imatrix.chunk_count": ("3", ValueType.STRING)},
        "'imatrix.chunk_count' is STRING",
    ),
    "no tokens": ({"x.in_sum2": SUMS, "x.counts": COUNT}, {"imatrix.chunk_size": (0, U32)}, "not possible"),
    "huge": (
        {"x.in_sum2": SUMS, "x.counts": COUNT},
        {"imatrix.chunk_count": (2**32 - 1, U32)},
        "not possible",
    ),
}


@pytest.mark.parametrize("case", BROKEN_GGUF)
def test_broken_gguf_files_give_one_clear_line(case: str, tmp_path: Path) -> None:
    tensors, metadata, message = BROKEN_GGUF[case]
    path = write_gguf(tmp_path / "broken.gguf", tensors, metadata)
    with pytest.raises(QuantizeError) as caught:
        ImportanceMatrix.read(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_files_that_those_are_broken_from_are_sound(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {"x.in_sum2": SUMS, "x.counts": COUNT})
    assert np.array_equal(ImportanceMatrix.read(path).entries["x"], SUMS / COUNT)
    (tmp_path / "a.dat").write_bytes(dat_bytes([("x", 1, ONES)], struct.pack("<ii", 1, 1) + b"x"))
    assert ImportanceMatrix.read(tmp_path / "a.dat").datasets == ("x",)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda path: None, "there is no such file"), (lambda path: path.mkdir(), "is a folder")],
)
def test_missing_files_are_said(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(QuantizeError, match=message):
        ImportanceMatrix.read(tmp_path / "x")


def test_merging_to_infinity_is_refused() -> None:
    huge = Squares(np.full((1, 2), 3e38, np.float32), np.array([1]))
    part = dataclasses.replace(matrix(), squares={"x": huge})
    with pytest.raises(QuantizeError, match="infinite"):
        ImportanceMatrix.merge(part, part)


# ---- statistics


def test_statistics_are_llama_imatrix_s() -> None:
    statistics = importance_statistics(matrix())
    assert [" ".join(tensor.row()) for tensor in statistics.tensors] == [
        "3 attn_qkv 1.15 0.0004 0.0361 0.02 0.01 100.00% 64 5.7121 95.20% 21.88% 0.7478",
        "2 attn_qkv 1.11 0.0004 0.0353 0.02 0.01 100.00% 64 5.7017 95.03% 21.88% -",  # theirs: 0.0000
        "10 ffn_up_exps 143.77 0.0004 2.7714 0.50 0.78 100.00% 288 6.7354 82.44% 18.06% -",
    ]
    layers = [(s.layer, f"{s.total:.2f} {s.above_deviation:.4%}", s.cosine) for s in statistics.layers]
    assert layers == [
        (2, "1.11 21.8750%", None),
        (3, "1.15 21.8750%", pytest.approx(0.7478, abs=5e-5)),
        (10, "143.77 18.0556%", None),
    ]


def test_equal_columns_have_the_largest_entropy_and_no_outliers() -> None:
    flat = dataclasses.replace(
        matrix(), squares={"x": Squares(np.full((1, 8), 6, np.float32), np.array([2]))}
    )
    (tensor,) = importance_statistics(flat).tensors
    assert (tensor.total, tensor.mean, tensor.std, tensor.above_deviation) == (24, 3, 0, 0)
    assert tensor.entropy == pytest.approx(3) and tensor.normalized_entropy == pytest.approx(1)
    assert tensor.layer is None and tensor.cosine is None


def test_inactive_columns_and_outliers_are_counted() -> None:
    sums = np.array([[0, 0, 1e-6, 1, 1, 1, 1, 60]], np.float32)
    one = dataclasses.replace(matrix(), squares={"blk.0.x.weight": Squares(sums, np.array([1]))})
    (tensor,) = importance_statistics(one).tensors
    assert (tensor.active, tensor.above_deviation) == (5 / 8, 1 / 8)


def test_the_table_and_the_document_have_every_tensor() -> None:
    statistics = importance_statistics(matrix())
    assert len(str(statistics).splitlines()) == 1 + 3 + 1
    assert [tensor["tensor"] for tensor in statistics.as_dict()["tensors"]] == [
        "attn_qkv",
        "attn_qkv",
        "ffn_up_exps",
    ]
    assert statistics._repr_html_().count("<tr>") == 4


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("blk.3.attn_qkv.weight", (3, "attn_qkv")),
        ("output.weight", (None, "output")),
        ("x", (None, "x")),
        ("", (None, "")),
        ("blk.99999999999999999999.x.weight", (None, "blk.99999999999999999999.x")),
    ],
)
def test_names_are_split(name: str, parts: tuple[int | None, str]) -> None:
    assert split_name(name) == parts


def test_a_picture_gets_a_row_for_each_layer_and_experts_averaged() -> None:
    rows = importance_by_layer(matrix())
    assert {kind: array.shape for kind, array in rows.items()} == {
        "attn_qkv": (3, 64),
        "ffn_up_exps": (3, 96),
    }
    assert np.isnan(rows["attn_qkv"][2]).all() and np.isnan(rows["ffn_up_exps"][:2]).all()
    np.testing.assert_array_equal(rows["attn_qkv"][:2], [matrix().entries[name][0] for name in (DENSE, NEXT)])
    np.testing.assert_allclose(rows["ffn_up_exps"][2], matrix().entries[EXPERTS].mean(axis=0))


def test_the_gguf_package_reads_it(gguf: Path) -> None:
    package = pytest.importorskip("gguf")
    reader = package.GGUFReader(gguf)
    sizes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert sizes[f"{EXPERTS}.in_sum2"] == (96, 4) and sizes[f"{EXPERTS}.counts"] == (1, 4)
    assert GGUFFile.open(gguf).get("general.type", str) == "imatrix"
