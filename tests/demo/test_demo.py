"""The demo is the course in one command: it must leave two good files, a table and a picture."""

from pathlib import Path

import pytest

from phicourse.demo import LINE_WIDTH, PARTS, echo, part_sizes, read_stories, run_demo, wrap
from phicourse.errors import PhiCourseError
from phicourse.gguf import GGUFFile


def test_demo_makes_files_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = run_demo(tmp_path, threads=2)
    printed = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "dog" in printed.split("5/5")[0].split("4/5")[1].split("\n", 1)[1]  # the answer itself
    for label in ("F16", "Q4_K_M"):
        row = next(line for line in printed.splitlines() if line.startswith(label))
        size, bits = float(row.split()[1]), float(row.split()[3])
        assert size == pytest.approx((tmp_path / f"phi-tiny-{label}.gguf").stat().st_size / 1e6, abs=0.01)
        assert bits == pytest.approx({"F16": 16.0, "Q4_K_M": 5.2}[label], abs=0.3)
    assert max(len(line) for line in printed.split("5/5")[1].splitlines()[:5]) <= 80


def test_demo_keeps_files_that_are_there(tmp_path: Path) -> None:
    old = tmp_path / "phi-tiny-F16.gguf"
    old.write_bytes(b"mine")
    with pytest.raises(PhiCourseError, match="force"):
        run_demo(tmp_path)
    assert old.read_bytes() == b"mine"


def test_demo_does_not_take_a_file_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(PhiCourseError, match="--out takes a folder"):
        run_demo(tmp_path / "x")


def test_parts_cover_the_whole_file(tmp_path: Path, phi_tiny: Path) -> None:
    import phicourse

    file = GGUFFile.open(phicourse.convert(phi_tiny, tmp_path / "f16.gguf"))
    sizes = part_sizes(file)
    assert sum(sizes.values()) == sum(tensor.nbytes for tensor in file.tensors.values())
    assert all(sizes[part] > 0 for part in PARTS)


def test_stories_are_the_course_s_own(repository: Path) -> None:
    stories = read_stories(repository / "data" / "text")
    assert len(stories) >= 190 and len(set(stories)) == len(stories)
    assert all(len(story) > 200 for story in stories)


def test_wrap_cuts_long_answers() -> None:
    assert wrap("one two three four", 9, 1) == "one two …"
    assert wrap("a $ b", 80, 3) == r"a \$ b"


def test_echo_breaks_lines_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = echo(iter([*(" wo", "rd") * 50, "\n", *(" wo", "rd") * 50]))
    lines = capsys.readouterr().out.splitlines()
    assert text == " word" * 50 + "\n" + " word" * 50
    assert all(line.split() == ["word"] * len(line.split()) for line in lines)
    assert LINE_WIDTH < max(map(len, lines)) <= LINE_WIDTH + len(" word")
    assert len(lines) == 8
