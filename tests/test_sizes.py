"""Sizes of files and memory, as people write them."""

import pytest

from phicourse.errors import PhiCourseError
from phicourse.sizes import parse_size, size_text

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("6GB", 6 * GB),
        ("2G", 2 * GB),
        ("6 gib", 6 << 30),
        ("1.5G", 1_500_000_000),
        ("800m", 800 * MB),
        ("007M", 7 * MB),
        ("3k", 3000),
        ("2TB", 2000 * GB),
        ("123", 123),
        (" 12 ", 12),
        ("0", 0),
    ],
)
def test_sizes_are_read(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "M", "GB", "-1M", "2iB", "2 G B", "1e9", "1.G", ".5G", "\u0663M", "nan", "9" * 99]
)
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(PhiCourseError, match=r"is no size: write it as 500M, 6GB or 5\.5GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (99_960, "100 kB"),
        (999_500_000, "1.00 GB"),
        (6 * GB, "6.00 GB"),
        (10**17, "100000 TB"),
    ],
)
def test_sizes_are_written_with_three_digits(n_bytes: int, text: str) -> None:
    assert size_text(n_bytes) == text
