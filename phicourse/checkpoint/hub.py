"""Asks the Hugging Face Hub what a repository has, and says in one line what it answers when it refuses.

The Hub is not trusted: names, sizes and digests are checked, since files and folders are named after them.
"""

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from phicourse.errors import CheckpointError

NEEDED = re.compile(
    r"(?:generation_|tokenizer_)?config\.json|model[\w.-]*\.safetensors|model\.safetensors\.index\.json|"
    r"tokenizer\.(?:model|json)|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|"
    r"chat_template\.(?:jinja|json)|README\.md",
    re.ASCII,  # and no slash: what is in folders of a repository is for other programs
)
PICKLED = (".bin", ".pt", ".pth")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
RESUMES = "what has arrived is kept, the same command resumes"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `digest` is the SHA-256 of a large file, Git's SHA-1 of a small one."""

    name: str
    size: int
    digest: str

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` is this one, by size and digest."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, self._hash).hexdigest() == self.digest

    def _hash(self) -> Any:
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class Snapshot:
    """The files that are needed of one commit of a repository."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]
    n_weights: int | None

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)


class Unreachable(CheckpointError):
    """The Hub does not answer, or is not to be asked."""


def repository_name(repo: str) -> str:
    """`owner/name` of a repository, also from its address; CheckpointError for what cannot be one."""
    name = repo.removeprefix(constants.ENDPOINT).removeprefix("https://huggingface.co").strip("/")
    if not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", name, re.ASCII):
        raise CheckpointError(
            f"{repo[:200]!r} is no name of a model: owner/name, such as microsoft/Phi-3.5-mini-instruct"
        )
    return name


def look_up(repo: str, revision: str) -> Snapshot:
    """Ask the Hub what files there are; Unreachable where it cannot be asked."""
    try:
        info = HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
    except OfflineModeIsEnabled:
        raise Unreachable("HF_HUB_OFFLINE is set: nothing is downloaded") from None
    except HFValidationError as error:
        raise CheckpointError(f"{repo}: {error}") from None
    except Exception as error:
        if is_network_error(error):
            raise Unreachable(f"{no_network(error)}; {RESUMES}") from error
        if isinstance(error, (ValueError, KeyError, TypeError, AttributeError)):
            raise CheckpointError(
                f"{constants.ENDPOINT} does not answer as the Hugging Face Hub does"
            ) from error
        raise
    files = choose(repo, info.siblings or [])
    if not DIGEST.fullmatch(info.sha or ""):
        raise CheckpointError(f"{repo}: the Hub names no commit for it")
    return Snapshot(repo, str(info.sha), files, info.safetensors.total if info.safetensors else None)


def choose(repo: str, siblings: list[Any]) -> tuple[RemoteFile, ...]:
    """The files that are needed, of all that a repository has; CheckpointError where weights or config lack."""
    names = {sibling.rfilename for sibling in siblings}
    if not any(NEEDED.fullmatch(name) and name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{repo}: {why_no_weights(repo, sorted(names))}")
    if "config.json" not in names:
        raise CheckpointError(f"{repo}: has no config.json, so it is no checkpoint that can be converted")
    return tuple(remote_file(repo, sibling) for sibling in siblings if NEEDED.fullmatch(sibling.rfilename))


def why_no_weights(repo: str, names: list[str]) -> str:
    """Say what a repository without model*.safetensors has in their place."""
    pickled = [name for name in names if name.endswith(PICKLED) and "/" not in name]
    if pickled:
        return (
            f"has its weights only as {pickled[0]}, a pickle, which can run code when opened; look for a"
            f" revision with safetensors among its pull requests ({constants.ENDPOINT}/{repo}/discussions)"
            " and give it as --revision refs/pr/N"
        )
    if any(name.endswith(".gguf") for name in names):
        return "has GGUF files, which need no conversion, but no model*.safetensors"
    return "has no model*.safetensors"


def remote_file(repo: str, sibling: Any) -> RemoteFile:
    """The size and digest that the Hub gives for a file."""
    size, digest = sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if not isinstance(size, int) or size < 0 or not DIGEST.fullmatch(str(digest)):
        raise CheckpointError(f"{repo}: the Hub gives no size or digest of {sibling.rfilename}")
    return RemoteFile(sibling.rfilename, size, digest)


# ---- what goes wrong -------------------------------------------------------------------------------------


def is_network_error(error: BaseException) -> bool:
    """Whether a connection failed; huggingface_hub's HTTP library is httpx or httpx2, by its version."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2")


def is_busy(error: BaseException) -> bool:
    """Whether the server asks to come back later."""
    return isinstance(error, HfHubHTTPError) and status_of(error) in (408, 429, 500, 502, 503, 504)


def status_of(error: HfHubHTTPError) -> int:
    """The HTTP status."""
    return int(error.response.status_code)


def reason(error: BaseException) -> str:
    """What broke, in a few words."""
    if isinstance(error, HfHubHTTPError):
        return f"the server answers {status_of(error)}"
    return " ".join(str(error).split())[:200] or type(error).__name__


def no_network(error: BaseException) -> str:
    """One line for a connection that failed."""
    return (
        f"{constants.ENDPOINT} cannot be reached ({reason(error)}): check the network, a proxy, HF_ENDPOINT"
    )


@contextmanager
def plain_errors(repo: str, revision: str, folder: Path | str) -> Iterator[None]:
    """Turn what the Hub, the network and the disk do into one line each."""
    try:
        yield
    except CheckpointError:
        raise
    except HfHubHTTPError as error:
        raise CheckpointError(refusal(repo, revision, error)) from error
    except OSError as error:
        if error.errno is None:  # huggingface_hub's own: something is missing in the cache
            raise CheckpointError(f"{repo}: {reason(error)}; {RESUMES}") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CheckpointError(f"{folder}: {error.strerror}: free some space; {RESUMES}") from error
    except Exception as error:
        if not is_network_error(error):
            raise
        raise CheckpointError(f"{no_network(error)}; {RESUMES}") from error


def refusal(repo: str, revision: str, error: HfHubHTTPError) -> str:
    """What to do about an answer that is no file."""
    page = f"{constants.ENDPOINT}/{repo}"
    log_in = "set HF_TOKEN or run `hf auth login`"
    if isinstance(error, GatedRepoError):
        token = "with the account of your token" if get_token() else f"then {log_in}"
        return f"{repo}: its owner wants conditions to be accepted first: do so at {page}, {token}"
    if isinstance(error, RepositoryNotFoundError):
        private = "with your token" if get_token() else f"without a token; if it is private, {log_in}"
        return f"{repo}: {constants.ENDPOINT} shows no such model {private}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo}: has no revision {revision[:200]!r}; {page}/tree/main lists branches and tags"
    if status_of(error) == 401:
        return f"{repo}: the token is not valid: {log_in}"
    if status_of(error) == 403:
        return f"{repo}: your token may not read it: use one with permission to read the model"
    return f"{repo}: {constants.ENDPOINT} answers {status_of(error)}; try again later: {RESUMES}"
