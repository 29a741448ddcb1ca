"""Fixtures that every part of the tests shares."""

import signal
from pathlib import Path

import pytest

# A shell lets its background jobs ignore Ctrl-C, and what they start with them: the tests that send one would wait.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Texts and real Phi tokenizers beside the checkout; they are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the data folder ../shared/data, which is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def stories260k(shared_data: Path) -> Path:
    """A trained 260,000-parameter Phi3ForCausalLM checkpoint."""
    return shared_data / "stories260K" / "checkpoint"


@pytest.fixture(scope="session")
def phi_tiny() -> Path:
    """The embedded model's checkpoint folder."""
    return REPOSITORY / "data" / "phi-tiny"
