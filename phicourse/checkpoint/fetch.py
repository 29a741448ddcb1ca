"""Fetches one file over HTTP: goes on where it broke off, tries again, checks what has come."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]
from tqdm import tqdm

from phicourse.checkpoint.hub import RESUMES, RemoteFile, is_busy, is_network_error, reason
from phicourse.errors import CheckpointError
from phicourse.sizes import size_text

TRIES = 5  # in a row that bring nothing
RETRY_SECONDS = 1.0


def partial_path(target: Path) -> Path:
    """Where a file grows until it is complete."""
    return target.with_name(target.name + ".incomplete")


def size_of(path: Path) -> int:
    """The bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def fetch(url: str, file: RemoteFile, target: Path, bar: "tqdm[Any]") -> None:
    """Fetch one file: go on behind the bytes that have arrived, try again when the line breaks, check, rename.

    raises   CheckpointError where what has come is not what the Hub announced; then it is thrown away
    """
    partial = partial_path(target)
    fruitless = 0
    while (before := size_of(partial)) < file.size or not partial.exists():
        error = attempt(url, partial, file, bar)
        fruitless = 0 if size_of(partial) > before else fruitless + 1
        if fruitless == TRIES:
            raise error or CheckpointError(f"{url}: the server sends nothing; {RESUMES}")
        if error is not None:
            say(f"{file.name}: {reason(error)}; going on from {size_text(size_of(partial))}")
            time.sleep(RETRY_SECONDS * max(fruitless, 1))
    bar.set_description(f"checking {file.name}", refresh=False)
    if not file.is_at(partial):
        partial.unlink()
        raise CheckpointError(
            f"{target}: not what the Hub announced (its digest differs), removed; try again"
        )
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, target)


def attempt(url: str, partial: Path, file: RemoteFile, bar: "tqdm[Any]") -> Exception | None:
    """Fetch as much as comes; return what broke the connection, raise what will not pass by itself."""
    try:
        append(url, partial, file.size, bar)
    except Exception as error:
        if not is_network_error(error) and not is_busy(error):
            raise
        return error
    return None


def append(url: str, partial: Path, size: int, bar: "tqdm[Any]") -> None:
    """Ask for the bytes from where the file ends and write them as they come."""
    have = size_of(partial)
    headers = build_hf_headers(library_name="phicourse") | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    # Redirected to another host, the client leaves the token out.
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # the server starts from the beginning
            bar.update(-have)
            have = 0
        with partial.open("ab" if have else "wb") as stream:
            for chunk in response.iter_bytes():
                have += len(chunk)
                if have > size:
                    raise CheckpointError(f"{url}: the server sends more than the {size:,} bytes announced")
                stream.write(chunk)
                bar.update(len(chunk))


def say(text: str) -> None:
    """A line for the user, beside the bar and not in the output."""
    tqdm.write(f"phicourse: {text}", file=sys.stderr)
