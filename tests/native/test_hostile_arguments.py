"""Whatever the compiled module is handed, it refuses in a line or computes; nothing crashes, nothing is left behind.

Arrays of every dtype, shape and layout, numbers at the edges of their types, and things that are no arrays.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
native = pytest.importorskip("phicourse.native", reason="the compiled module is not built")

from test_engine import PHIMOE, PLAIN, engine, random_ids, random_model, tensors  # noqa: E402

from phicourse.generate.backends import ENGINE_TYPES  # noqa: E402
from phicourse.gguf import tensor_type  # noqa: E402
from phicourse.quantize.grids import hand_over  # noqa: E402

REFUSALS = (TypeError, ValueError, IndexError, KeyError, OverflowError, MemoryError, RuntimeError)
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
DTYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "f2", "f4", "f8", "?", ">i4", ">f4", "c8", "O", "S3")
EDGES = (-(2**63), -(2**31) - 1, -1, 0, 1, 2, 3, 31, 32, 300, 1025, 2**31 - 1, 2**31, 2**63 - 1, 2**64, 2**70)

numbers = st.sampled_from(EDGES)
junk = st.sampled_from([None, "", "Q4_K", 1.5, float("nan"), [], [1, 2], {}, b"bytes", object(), True])


def misaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape) if array.dtype != object else array


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


LAYOUTS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda array: array,
    np.asfortranarray,
    lambda array: array[::2],
    lambda array: array[::-1],
    misaligned,
    read_only,
)


@st.composite
def arrays(
    draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES, sizes: tuple[int, ...] = (0, 1, 2, 32, 256)
) -> Any:
    shape = draw(st.lists(st.sampled_from(sizes), min_size=1, max_size=2))
    array = np.zeros(shape, draw(st.sampled_from(dtypes)))
    if array.dtype.kind in "iuf" and array.size:
        array.flat[-1] = draw(st.sampled_from([0, 1, 7, 127]))
    return draw(st.sampled_from(LAYOUTS))(array)


something = st.one_of(arrays(), junk, numbers)


def attempt(call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    try:
        call(*arguments, **options)
    except REFUSALS as error:
        assert str(error).strip()


@pytest.fixture(scope="module")
def grids() -> None:
    for name in ENGINE_TYPES:
        hand_over(native, name)


@pytest.fixture(scope="module")
def running() -> Any:
    return native.Engine(asdict(PLAIN), tensors(random_model(PLAIN)), 40, 2, "F16", 3)


@FUZZ
@given(st.data())
def test_an_engine_that_runs(running: Any, data: st.DataObject) -> None:
    tokens = st.one_of(arrays(("i4",), (0, 1, 2, 32)), something)
    good = arrays(("i4",), (1, 2, 7)).filter(lambda array: array.ndim == 1)
    part = st.one_of(
        st.tuples(st.integers(0, 2), good), st.tuples(st.one_of(numbers, junk), tokens), something
    )
    for _ in range(4):
        name = data.draw(
            st.sampled_from(["forward", "forward_many", "input_squares", "truncate", "copy", "length"])
        )
        if name == "forward":
            attempt(running.forward, data.draw(tokens), data.draw(st.booleans()))
        elif name == "forward_many":
            several = st.lists(st.tuples(st.integers(0, 2), good), min_size=1, max_size=2)
            parts = data.draw(st.one_of(several, st.lists(part, max_size=3), something))
            attempt(running.forward_many, parts, data.draw(st.booleans()))
        elif name == "input_squares":
            attempt(running.input_squares, data.draw(tokens))
        else:
            n = {"truncate": 2, "copy": 3, "length": 1}[name]
            values = data.draw(st.lists(st.one_of(st.integers(0, 40), numbers, junk), min_size=n, max_size=n))
            attempt(getattr(running, name), *values)
        assert all(0 <= running.length(i) <= 40 for i in range(3))


def test_it_computes_as_before(running: Any) -> None:
    """After all of the above; tests of a module run in order."""
    ids = random_ids(20)
    for i in range(3):
        running.truncate(0, i)
    expected = engine(random_model(PLAIN), cache="F16").forward(ids, True)
    assert np.array_equal(running.forward_many([(2, ids)], True), expected)


@FUZZ
@given(st.data())
def test_an_engine_that_is_made(data: st.DataObject) -> None:
    config = data.draw(st.sampled_from([PLAIN, PHIMOE]))
    fields, weights = asdict(config), tensors_of(config)
    for key in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=1)):
        fields[key] = data.draw(st.one_of(numbers, junk, st.lists(st.floats(), max_size=20)))
    for name in data.draw(st.lists(st.sampled_from(sorted(weights)), max_size=1)):
        entry = list(weights[name])
        entry[data.draw(st.integers(0, 3))] = data.draw(
            st.one_of(something, st.sampled_from(["F16", "Q8_0"]))
        )
        weights[name] = tuple(entry)  # type: ignore[assignment]
    if data.draw(st.integers(0, 3)) == 0:
        weights[data.draw(st.sampled_from(["", "output.bias", "blk.9.x"]))] = data.draw(something)
    n_ctx, threads, n_sequences = (
        data.draw(st.one_of(st.just(1), st.integers(1, 9), numbers, junk)) for _ in range(3)
    )
    attempt(
        native.Engine,
        fields,
        weights,
        n_ctx,
        threads,
        data.draw(st.sampled_from(["F16", "Q4_K", ""])),
        n_sequences,
    )


KEPT: dict[int, dict[str, Any]] = {}


def tensors_of(config: Any) -> dict[str, Any]:
    """The tensors of a random model, made once."""
    if id(config) not in KEPT:
        KEPT[id(config)] = tensors(random_model(config))
    return dict(KEPT[id(config)])


@FUZZ
@given(st.data())
@pytest.mark.usefixtures("grids")
def test_products_and_quantizers(data: st.DataObject) -> None:
    """Calls that fit, on blocks of random bytes, and the same with one argument that does not."""
    kind = tensor_type(data.draw(st.sampled_from(sorted(ENGINE_TYPES))))
    rows, blocks, tokens = (data.draw(st.integers(0, 3)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, raw = (np.zeros((n, blocks * kind.block), np.float32) for n in (tokens, rows))
    x += rng.normal(size=x.shape)
    blocks_of = rng.integers(0, 256, (rows, kind.row_bytes(blocks * kind.block)), np.uint8)
    calls = {
        native.multiply: [kind.name, blocks_of, x, np.empty((tokens, rows), np.float32)],
        native.dequantize: [kind.name, blocks_of, raw],
        native.quantize: [kind.name, raw, blocks_of],
        native.quantize_f16: [kind.name, raw.astype(np.uint16), blocks_of],
        native.set_grid: [kind.name, blocks_of.view(np.int8)],
    }
    call = data.draw(st.sampled_from(list(calls)))
    options = {
        "threads": data.draw(st.integers(-1, 3)),
        "isa": data.draw(st.sampled_from([None, "scalar", "abacus"])),
    }
    attempt(call, *calls[call], **(options if call is not native.set_grid else {}))
    at = data.draw(st.integers(0, len(calls[call]) - 1))
    old = calls[call][at]
    layouts = st.sampled_from(LAYOUTS).map(lambda layout: layout(old)) if at else st.just("Q9_Z")
    calls[call][at] = data.draw(st.one_of(something, layouts))
    attempt(call, *calls[call])


@pytest.mark.parametrize(
    "array", [np.array([1.0, 2.0]), np.array([2**32 + 1]), np.array([True]), np.array([[1]], np.int32)]
)
def test_ids_of_another_dtype_are_not_converted(running: Any, array: np.ndarray) -> None:
    """An id beyond 32 bits must not become another one."""
    for call in (
        lambda: running.forward(array, False),
        lambda: running.forward_many([(0, array)], False),
        lambda: running.input_squares(array),
    ):
        with pytest.raises(TypeError):
            call()
