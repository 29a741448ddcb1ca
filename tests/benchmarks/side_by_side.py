"""Two programs, or two functions, measured in turns: A B A B, so that what disturbs one disturbs the other."""

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".bench"  # what is measured with, and what comes out
HEADER = f"{'':24s}{'ours':>11s}{'llama.cpp':>11s} {'':12s}{'ratio':>8s}{'best':>8s}"


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def prepare() -> None:
    """Make the folder, and say so where other programs are at work."""
    FOLDER.mkdir(exist_ok=True)
    if (load := os.getloadavg()[0]) > 0.5:
        say(f"other programs keep {load:.1f} cores busy: the ratios will be less reliable")


def look_at_the_disk(needed: float) -> None:
    """End here where the disk has no room for so many bytes."""
    free = shutil.disk_usage(FOLDER).free
    if free < 1.1 * needed:
        sys.exit(f"{FOLDER}: {needed / 1e9:.1f} GB are needed, the disk has {free / 1e9:.1f} GB free")


@dataclass(frozen=True)
class Row:
    """One line of the table; times in seconds, one a repetition."""

    what: str
    unit: str
    amount: float
    ours: list[float]
    theirs: list[float]

    @property
    def speeds(self) -> tuple[float, float]:
        """Ours and theirs in units a second, by the medians."""
        return self.amount / statistics.median(self.ours), self.amount / statistics.median(self.theirs)

    @property
    def ratio(self) -> float:
        """How many times faster we are, by the medians."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    @property
    def best_ratio(self) -> float:
        """The same by the best times, which suffer least from other programs."""
        return min(self.theirs) / min(self.ours)

    def __str__(self) -> str:
        ours, theirs = self.speeds
        speeds = f"{ours:11.2f}{theirs:11.2f} {self.unit:12s}"
        return f"{self.what:24s}{speeds}{self.ratio:7.2f}×{self.best_ratio:7.2f}×"


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long something takes."""
    start = clock()
    work()
    return clock() - start


def in_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    n: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Times of A B A B …, after one unmeasured A B."""
    ours(), theirs()
    times = [(seconds(ours, clock), seconds(theirs, clock)) for _ in range(n)]
    return [a for a, _ in times], [b for _, b in times]


# A program that is started from here would inherit our own memory as its maximum: it is started from a small one.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def run(command: list[str]) -> int:
    """Run a program to its end; the most memory that it had, in bytes."""
    launcher = [sys.executable, "-c", LAUNCHER, *command]
    return int(subprocess.run(launcher, check=True, capture_output=True, cwd=REPOSITORY).stdout)


@dataclass
class Program:
    """A command that writes a file, and what was measured, one number a run.

    seconds   from its start to its end; on_disk: until all that it wrote is on the disk
    memory    bytes resident at most, of all runs, as the kernel counts them (`ru_maxrss`): pages of files that it
              maps count, what it reads or writes without mapping does not
    digest    SHA-256 of what it wrote
    """

    command: list[str]
    out: Path
    seconds: list[float] = field(default_factory=list)
    on_disk: list[float] = field(default_factory=list)
    memory: int = 0
    n_bytes: int = 0
    digest: str = ""

    def measure(self) -> None:
        """Run it once, and delete what it wrote."""
        os.sync()  # what was written before is not its load
        start = time.perf_counter()
        memory = run(self.command)
        self.seconds.append(time.perf_counter() - start)
        os.sync()
        self.on_disk.append(time.perf_counter() - start)
        self.memory = max(self.memory, memory)
        self.n_bytes = self.out.stat().st_size
        if not self.digest:
            with self.out.open("rb") as file:
                self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.out.unlink()
        say(f"  {self.out.name}: {self.seconds[-1]:.1f} s, {memory / 1e6:.0f} MB")

    def summary(self, name: str) -> str:
        """Time and memory in a line."""
        time_and_memory = f"{statistics.median(self.seconds):9.1f} s, {self.memory / 1e6:5.0f} MB"
        return f"{name:16s}{time_and_memory} resident at most"


def measure_in_turns(programs: tuple[Program, ...], n: int) -> None:
    """Run all programs, one after the other, n times."""
    for i in range(n):
        say(f"run {i + 1} of {n}")
        for program in programs:
            program.measure()


def compare_bytes(ours: Program, theirs: Program) -> str:
    """What to print of two outputs."""
    return "the same bytes" if ours.digest == theirs.digest else "THE BYTES DIFFER"
