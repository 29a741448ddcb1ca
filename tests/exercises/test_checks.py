"""Wrong answers, and what the checks say about them: the message must name the mistake that was made."""

import struct

import numpy as np
import pytest

from phicourse.exercises import checkpoint, converter, engine, forward_pass, generation, gguf
from phicourse.exercises.exercise import Answer, Exercise
from phicourse.gguf.types import bfloat16_to_float32

BF16_AS_NUMBERS = "use `.view`, not `.astype`"


def header_big_endian(raw: bytes) -> tuple[dict, int]:
    return {}, 8 + int.from_bytes(raw[:4], "big")


def header_without_the_eight(raw: bytes) -> tuple[dict, int]:
    return {}, int.from_bytes(raw[:8], "little")


def tensor_flat(raw: bytes, name: str) -> np.ndarray:
    return np.zeros(6, np.float32)


def believes_everything(raw: bytes) -> None:
    return None


def refuses_everything(raw: bytes) -> None:
    raise ValueError("no")


def count_without_norms(config: dict) -> int:
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    return 3_821_079_552 - (2 * layers + 1) * hidden


def characters(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def short_length(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode()


def rows_first(metadata: dict, tensors: dict) -> bytes:
    return gguf.write_gguf(metadata, {name: w.T if w.ndim > 1 else w for name, w in tensors.items()})


def no_last_padding(metadata: dict, tensors: dict) -> bytes:
    return gguf.write_gguf(metadata, tensors).rstrip(b"\0")


def keys_counted_first(metadata: dict, tensors: dict) -> bytes:
    raw = gguf.write_gguf({**metadata, "more": 1}, tensors)
    return raw[:8] + raw[16:24] + raw[8:16] + raw[24:]


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (checkpoint.read_header, header_big_endian, "little-endian"),
        (checkpoint.read_header, header_without_the_eight, "8 bytes of length come before it"),
        (checkpoint.read_header, lambda raw: None, "return header, data_start"),
        (checkpoint.bf16_to_float32, lambda bits: bits.astype(np.float32), BF16_AS_NUMBERS),
        (checkpoint.bf16_to_float32, lambda bits: bits.view(np.float16).astype(np.float32), "F16 has other"),
        (checkpoint.bf16_to_float32, lambda bits: bits.astype(np.uint32).view(np.float32), "upper half"),
        (checkpoint.bf16_to_float32, lambda bits: bits.astype(np.uint32) << 16, "read as float32"),
        (checkpoint.bf16_to_float32, lambda bits: None, "without `return`"),
        (checkpoint.read_tensor, tensor_flat, "`.reshape`"),
        (checkpoint.check_header, believes_everything, "longer than the file"),
        (checkpoint.check_header, refuses_everything, "a good file"),
        (checkpoint.count_parameters, count_without_norms, "two in each layer and one behind"),
        (gguf.pack_string, characters, "counts bytes, not characters"),
        (gguf.pack_string, short_length, "Q, not I"),
        (gguf.pack_string, lambda text: characters(text)[:-1] + b"?", "the string 'phi3': byte 11"),
        (gguf.pack_value, lambda value: struct.pack("<Q", 8), "4 bytes of type"),
        (gguf.padding, lambda n, a=32: a - n % a, "no zeros at all"),
        (gguf.padding, lambda n, a=32: n % a, "missing to the next multiple"),
        (gguf.padding, lambda n, a=32: n + -n % a, "not the new size"),
        (gguf.writer, rows_first, "the sizes in reverse"),
        (gguf.writer, no_last_padding, "the last one too"),
        (gguf.writer, keys_counted_first, "the tensors are counted first"),
        (gguf.writer, lambda metadata, tensors: "text", "expected  bytes"),
        (gguf.reader, lambda raw: ({}, {}), "the keys"),
        (gguf.reader, lambda raw: (dict(gguf._METADATA), {}), "the names of the tensors"),
    ],
)
def test_a_wrong_answer_is_told_its_mistake(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise(answer)
    message = capsys.readouterr().out
    assert message.startswith("✘") and said in message, message
    assert "\n  expected  " in message and "\n  got       " in message


def test_an_error_in_the_learners_code_is_a_mistake_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(raw: bytes) -> None:
        raise KeyError("layers")  # this line

    checkpoint.read_header(answer)
    said = capsys.readouterr().out
    assert "KeyError: 'layers'" in said and 'raise KeyError("layers")  # this line' in said


def test_a_result_in_the_place_of_the_function_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    gguf.padding(0)  # type: ignore[arg-type]
    assert "without ( )" in capsys.readouterr().out.replace("write it without", "without")


def test_a_mistake_that_nobody_knows_is_given_a_way_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    forward_pass.rms_norm(lambda x, weight, eps: x / x.max())
    said = capsys.readouterr().out
    assert "likely" not in said and said.splitlines()[-1].startswith("  try       a case so small")


@pytest.mark.parametrize(
    ("exercise", "answer", "helps"),
    [
        (forward_pass.window_mask, lambda n, window: np.tri(n, dtype=int), "a comparison gives"),
        (generation.new_mask, lambda new, total: np.tri(total)[-new:], "a comparison gives"),
        (gguf.writer, lambda metadata, tensors: "text", '"".join'),
        (engine.product, lambda blocks, codes, scales: np.zeros((len(blocks), 1), np.float32), "each row"),
        (converter.converter, lambda folder, path: path.write_bytes(b"GGUF"), "GGUFWriter"),
    ],
)
def test_the_reason_fits_the_mistake(exercise: Exercise, answer: Answer, helps: str) -> None:
    mistake = exercise.judge(answer)
    assert mistake is not None and helps in mistake.likely


def test_no_message_names_a_folder_of_the_learner() -> None:
    mistake = converter.converter.judge(lambda folder, path: path.write_bytes(b"GGUF"))
    assert mistake is not None and mistake.got.startswith("byte 4: ")


def test_a_check_does_not_let_the_answer_change_its_data() -> None:
    def destructive(bits: np.ndarray) -> np.ndarray:
        widened = bfloat16_to_float32(bits)
        bits[:] = 0
        return widened

    assert checkpoint.bf16_to_float32.judge(destructive) is None
    assert checkpoint.bf16_to_float32.judge(destructive) is None


def test_your_own_goes_on_only_where_it_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    def padding(n_bytes: int, alignment: int = 32) -> int:
        return -n_bytes % alignment

    def stub(n_bytes: int, alignment: int = 32) -> int:
        raise NotImplementedError

    assert gguf.padding.yours_or(padding, stub) is padding
    assert "your own padding" in capsys.readouterr().out
    assert gguf.padding.yours_or(stub, padding) is padding
    assert "until 02.3 is solved" in capsys.readouterr().out
