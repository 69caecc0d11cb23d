"""The installed command, run as a child process, and what it said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("alembic-entrypoint"))


@dataclass(frozen=True)
class Result:
    """How a run ended: exit code (negative: killed by that signal), stdout, stderr and the log events in it."""

    code: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return events_in(self.stderr)

    def named(self, event: str) -> list[dict[str, Any]]:
        """Give the events of one name."""
        return [each for each in self.events if each["event"] == event]

    @property
    def message(self) -> str:
        """Give what the run told a person at its end."""
        return next((str(each["message"]) for each in reversed(self.events) if "message" in each), "")

    @property
    def state(self) -> str | None:
        """Give the last state that was decided or refused."""
        return next((each["state"] for each in reversed(self.events) if "state" in each), None)


def events_in(text: str) -> list[dict[str, Any]]:
    """Read the log events among lines that may be other things."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and '"event"' in line]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment of a child: that of the tests, and more."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **(extra or {})}


def entrypoint(
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 90,
    **options: Any,
) -> Result:
    """Run the command to its end."""
    done = subprocess.run(
        [COMMAND, *arguments],
        cwd=cwd,
        env=environment(env),
        timeout=timeout,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        **options,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@dataclass
class Running:
    """A run under way. Its stderr goes to a file, so that it can be read meanwhile."""

    process: subprocess.Popen[str]
    log: Path
    _stdout: Path = field(repr=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def events(self) -> list[dict[str, Any]]:
        """Give the events so far; a line that is being written is left out."""
        text = self.log.read_text(errors="replace")
        return events_in(text[: text.rfind("\n") + 1])

    def has(self, event: str, **keys: Any) -> bool:
        """Tell whether an event with these keys was logged."""
        return any(
            each["event"] == event and all(each.get(name) == value for name, value in keys.items())
            for each in self.events
        )

    def end(self, timeout: float = 30) -> Result:
        """Wait for the end."""
        code = self.process.wait(timeout)
        return Result(code, self._stdout.read_text(errors="replace"), self.log.read_text(errors="replace"))

    def signal(self, signum: int) -> None:
        """Send a signal to the command alone."""
        self.process.send_signal(signum)


@contextmanager
def started(
    folder: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    name: str = "run",
    within: Sequence[str] = (),
    **options: Any,
) -> Iterator[Running]:
    """Start the command in a folder; it is killed, should it still run at the end of the block.

    `within` is a command that becomes ours in other surroundings, such as `unshare`.
    """
    log, out = folder / f"{name}.stderr", folder / f"{name}.stdout"
    with log.open("w") as stderr, out.open("w") as stdout:
        process = subprocess.Popen(
            [*within, COMMAND, *arguments],
            cwd=folder,
            env=environment(env),
            stdout=stdout,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            text=True,
            **options,
        )
    try:
        yield Running(process, log, out)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
