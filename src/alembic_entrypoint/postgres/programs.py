"""PostgreSQL's own client programs: find those that fit a server, and run them so that they never outlive us."""

from __future__ import annotations

import glob
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

#: Where packages put them: Debian, PGDG's RPMs, Alpine, sources.
PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/usr/local/pgsql/bin",
    "/usr/local/bin",
    "/usr/bin",
)
#: Seconds in which a program may take leave of its server before it is killed.
GRACE = 0.3

# PR_SET_PDEATHSIG is 1 (prctl(2)); it survives the exec. The parent may have died before it was set.
_DIES_WITH_US = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True)
class Programs:
    """A folder with `pg_dump` and `pg_restore` of one major."""

    folder: str
    major: int

    def path(self, name: str) -> str:
        """Give the path of one of them."""
        return os.path.join(self.folder, name)


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code (negative: killed by that signal), and what it said."""

    code: int
    stderr: str


def found() -> Iterator[Programs]:
    """Find every `pg_dump` that has its `pg_restore` beside it, those on PATH first."""
    seen = set()
    on_path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for folder in (*on_path, *(each for place in PLACES for each in sorted(glob.glob(place)))):
        program = os.path.realpath(os.path.join(folder, "pg_dump"))
        # Debian's /usr/bin/pg_dump is a script that chooses a version, and not always the one that it tells.
        if program in seen or os.path.basename(program) != "pg_dump":
            continue
        seen.add(program)
        if os.access(os.path.join(folder, "pg_restore"), os.X_OK) and (major := _major(program)) is not None:
            yield Programs(os.path.abspath(folder), major)


def _major(program: str) -> int | None:
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)
        if version := re.search(r"\(PostgreSQL\) (\d+)", told.stdout):
            return int(version[1])
    return None


def run(command: Sequence[str], env: Mapping[str, str], tick: Callable[[], None], service: bytes = b"") -> Ended:
    """Run a program to its end, calling `tick` a few times a second. It ends with us, whatever ends us.

    `service` is the text of a libpq service file, for what has no variable and belongs on no command line. Both it and
    the program's stderr are files in memory: the disk may be full.
    """
    with os.fdopen(os.memfd_create("stderr"), "w+b") as stderr, os.fdopen(os.memfd_create("service"), "wb") as file:
        file.write(service)
        file.flush()
        process = subprocess.Popen(
            # Not preexec_fn, which may hang where another thread holds a lock as we fork.
            [sys.executable, "-I", "-S", "-c", _DIES_WITH_US, str(os.getpid()), *command],
            env={**env, "PGSERVICEFILE": f"/proc/self/fd/{file.fileno()}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[file.fileno()],
            # Ctrl-C in a terminal is ours to pass on.
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                tick()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.25)
        finally:
            _end(process)
        stderr.seek(0)
        return Ended(process.returncode, stderr.read().decode(errors="replace").strip())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program: SIGTERM first, on which it cancels what it runs on the server."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
