"""Measure whole processes: their time, and what their tree holds in memory when it holds most.

`ru_maxrss` is not asked: it begins with the size of the process that spawns, and of two that live at once it knows the
larger only.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SAMPLED_EVERY = 0.002


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, and seconds of CPU with those of children that were waited for."""

    wall: float
    cpu: float


def columns(costs: Mapping[str, Sequence[Cost]]) -> dict[str, dict[str, list[float]]]:
    """Sort costs by measure, wall and CPU, and in each by name."""
    return {
        "wall": {name: [each.wall for each in taken] for name, taken in costs.items()},
        "CPU": {name: [each.cpu for each in taken] for name, taken in costs.items()},
    }


@dataclass(frozen=True)
class Command:
    """What is run, and where."""

    words: list[str]
    folder: Path

    def run(self, url: str, watch: Callable[[int], None] = lambda _: None) -> Cost:
        """Run it on a database to its end; `watch` is given its pid."""
        environment = {**os.environ, "DATABASE_URL": url, "ALEMBIC_ENTRYPOINT_LOG_LEVEL": "warning"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        null = subprocess.DEVNULL
        with tempfile.TemporaryFile() as errors:
            began = time.perf_counter()
            process = subprocess.Popen(
                self.words, cwd=self.folder, env=environment, stdin=null, stdout=null, stderr=errors
            )
            watch(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                errors.seek(0)
                raise SystemExit(f"{self.words} ended with {process.returncode}: {errors.read().decode()}")
        return Cost(wall, usage.ru_utime + usage.ru_stime)

    def peak(self, url: str) -> float:
        """Run it on a database to its end; give the most that it and its descendants held at one time, in MB."""
        held = [0.0]

        def watch(pid: int) -> None:
            while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                held.append(_held(pid))
                time.sleep(SAMPLED_EVERY)

        self.run(url, watch)
        return max(held)


def _held(root: int) -> float:
    """Sum up what a process and its descendants hold now, in MB; what they share counts once.

    Not the Pss of the whole: of code that others run too, such as the interpreter's, that is a part. See
    proc_pid_smaps(5).
    """
    memory = 0
    files: dict[tuple[str, ...], int] = {}
    for pid in _tree(root):
        for place, sizes in _mappings(pid):
            if place is None:
                memory += sizes["Pss:"]
            else:
                memory += sizes["Anonymous:"]
                files[place] = max(files.get(place, 0), sizes["Rss:"] - sizes["Anonymous:"])
    return (memory + sum(files.values())) / 1024


def _tree(pid: int) -> Iterator[int]:
    yield pid
    # A thread that has ended meanwhile has no children.
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in file.read_text().split():
                yield from _tree(int(child))


def _mappings(pid: int) -> Iterator[tuple[tuple[str, ...] | None, dict[str, int]]]:
    """Give each mapping of a process: the place in a file, none for memory; its sizes in kB."""
    place: tuple[str, ...] | None = None
    sizes: dict[str, int] = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                offset, device, inode = words[2:5]
                place, sizes = None if inode == "0" else (device, inode, offset), {}
            elif words[0] == "VmFlags:":  # the last line
                yield place, sizes
            elif words[-1] == "kB":
                sizes[words[0]] = int(words[1])


def paired(actions: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Do everything in turn, in so many rounds, and give what each gave, round by round.

    One round more comes first, which warms caches and is not counted. Every other one goes backwards, so that nobody
    always comes after the same.
    """
    given: dict[str, list[T]] = {name: [] for name in actions}
    for n in range(rounds + 1):
        for name in list(actions)[:: 1 if n % 2 else -1]:
            each = actions[name]()
            if n:
                given[name].append(each)
    return given
