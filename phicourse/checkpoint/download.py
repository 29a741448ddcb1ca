"""Downloads a model from the Hugging Face Hub: only the files needed, checked, resumed where it broke off.

The Hub's own library says what there is and keeps the cache, which transformers and others share; it honours
HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE. The bytes are fetched here: that library takes a broken
connection up again, but a program that ends begins the shard of 5 GB anew. Checked with version 2.4.0:
`file_download._download_to_tmp_and_move` writes each try to a file with a random name and removes it in the end.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_url, snapshot_download
from huggingface_hub import try_to_load_from_cache as find_in_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
from tqdm import tqdm

from phicourse.checkpoint.fetch import fetch, partial_path, say, size_of
from phicourse.checkpoint.folder import _find_shards as find_shards
from phicourse.checkpoint.hub import (
    RemoteFile,
    Snapshot,
    Unreachable,
    look_up,
    plain_errors,
    repository_name,
)
from phicourse.errors import CheckpointError
from phicourse.progress_bar import byte_bar
from phicourse.sizes import size_text

Q4_K_M_BITS = 5.0  # a weight, about; embeddings and output, which take more, weigh more in small models


def download(
    repo: str,
    revision: str = "main",
    to: Path | str | None = None,
    *,
    force: bool = False,
    progress: bool = True,
    memory: int | None = None,
) -> Path:
    """Download a checkpoint and return its folder; what is there already is not fetched again.

    repo      `owner/name`, or the address of its page
    revision  a branch, tag or commit
    to        a folder for the files; None: the cache of huggingface_hub, which other programs share
    force     replace files in `to` that differ from the Hub's
    progress  say on standard error what is to come, and draw a bar where that is a terminal
    memory    bytes that are free on this machine, to be told beside what the model will need
    raises    CheckpointError in one line; OSError where a folder cannot be written

    Without network, or with HF_HUB_OFFLINE=1, a copy that is complete is as good.
    """
    repo = repository_name(repo)
    with plain_errors(repo, revision, to or constants.HF_HUB_CACHE):
        try:
            snapshot = look_up(repo, revision)
        except Unreachable as error:
            return already_here(repo, revision, to, error)
        if to is not None:
            return download_to_folder(snapshot, Path(to), force, progress, memory)
        return download_to_cache(snapshot, revision, progress, memory)


def already_here(repo: str, revision: str, to: Path | str | None, why: Unreachable) -> Path:
    """The folder of a download that is complete; else the error says what is missing, and why it stays so."""
    config = (
        Path(to) / "config.json" if to is not None else find_in_cache(repo, "config.json", revision=revision)
    )
    if not isinstance(config, (str, Path)) or not Path(config).is_file():
        raise CheckpointError(f"{repo} is not here yet, and {why}")
    folder = Path(config).parent
    try:
        find_shards(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {why}") from None
    if not constants.HF_HUB_OFFLINE:
        say(f"{why}; the copy that is here is complete")
    return folder


def download_to_folder(
    snapshot: Snapshot, folder: Path, force: bool, progress: bool, memory: int | None
) -> Path:
    """Put the files into a folder of the user's."""
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder / ".phicourse-download.lock"):
        if progress and any((folder / file.name).is_file() for file in snapshot.files):
            say(f"comparing what is in {folder} with the Hub's digests")
        targets = {file: folder / file.name for file in snapshot.files if not file.is_at(folder / file.name)}
        for path in targets.values():
            if path.exists() and not force:
                raise CheckpointError(f"{path}: differs from the Hub's; replace it with --force")
        fetch_all(snapshot, targets, folder, progress, memory)
    return folder


def download_to_cache(snapshot: Snapshot, revision: str, progress: bool, memory: int | None) -> Path:
    """Put the files where huggingface_hub keeps them, named by digest, and let it link them into a folder."""
    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=snapshot.repo, repo_type="model")
    folder = storage / "snapshots" / snapshot.commit
    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    with only_one(storage / ".phicourse-download.lock"):
        targets = {
            file: blob
            for file in snapshot.files
            if not (blob := storage / "blobs" / file.digest).is_file() and not (folder / file.name).is_file()
        }
        fetch_all(snapshot, targets, storage, progress, memory)
    names = [file.name for file in snapshot.files]
    options: dict[str, Any] = {"revision": revision, "allow_patterns": names, "tqdm_class": NoBar}
    return Path(snapshot_download(snapshot.repo, **options))


class NoBar(tqdm):  # type: ignore[type-arg]
    """A progress bar that stays away: the links that it would count are made at once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.pop("name", None)  # huggingface_hub's own
        super().__init__(*args, **options | {"disable": True})


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Keep two downloads from writing the same files; the second gives up at once."""
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=0.1))
        except TimeoutError:
            raise CheckpointError(f"{lock.parent}: another download writes there; let it end") from None
        try:
            yield
        finally:
            with suppress(OSError):  # where an open file cannot be removed, it may stay
                lock.unlink()


def fetch_all(
    snapshot: Snapshot, targets: dict[RemoteFile, Path], folder: Path, progress: bool, memory: int | None
) -> None:
    """Fetch the files that are not there yet, after a look at the room on the disk."""
    arrived = sum(size_of(partial_path(path)) for path in targets.values())
    missing = sum(file.size for file in targets) - arrived
    free = shutil.disk_usage(folder).free
    if progress:
        tell(snapshot, missing, free, folder, memory)
    if missing > free:
        raise CheckpointError(
            f"{folder}: {size_text(missing)} are to come, the disk has {size_text(free)} free: free some space,"
            " or choose another disk with --to or HF_HOME"
        )
    with byte_bar(missing + arrived, progress) as bar:
        bar.initial = bar.n = arrived  # the rate is that of what is yet to come
        for file, target in targets.items():
            bar.set_description(file.name, refresh=False)
            fetch(hf_hub_url(snapshot.repo, file.name, revision=snapshot.commit), file, target, bar)


def tell(snapshot: Snapshot, missing: int, free: int, folder: Path, memory: int | None) -> None:
    """Say what is to come, whether it fits, and what the model will need."""
    todo = f"{size_text(missing)} to download" if missing else "all of it here"
    say(f"{snapshot.repo} at {snapshot.commit[:7]}: {len(snapshot.files)} files, {size_text(snapshot.size)}")
    say(f"{todo}; the disk has {size_text(free)} free ({folder})")
    weights = snapshot.n_weights or snapshot.size // 2  # nearly all models come with 16 bits a weight
    f16, q4 = 2 * weights, int(Q4_K_M_BITS / 8 * weights)
    line = f"in memory it takes about {size_text(f16)} as F16, {size_text(q4)} as Q4_K_M"
    if memory is not None:
        verdict = f", too little for {'Q4_K_M' if memory < q4 else 'F16'}" if memory < f16 else ""
        line += f"; {size_text(memory)} are free{verdict}"
    say(line)
