"""The parent's side of the worker: start it, listen to it, and never leave it behind."""

from __future__ import annotations

import fcntl
import os
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from alembic_entrypoint.address import Address
from alembic_entrypoint.errors import Misconfigured
from alembic_entrypoint.logs import log
from alembic_entrypoint.target import keep_secret
from alembic_entrypoint.worker.messages import Lines, Message, Request, decode, write
from alembic_entrypoint.worker.orphans import Orphans, be_subreaper, family_of, kill

if TYPE_CHECKING:
    from alembic_entrypoint.facts import Graph

LONGEST_LINE = 1 << 14
#: Reads of 64 KiB from a pipe whose writer has ended; one that still writes got away from its process group.
MOST_READS = 256
#: Seconds between two looks at a worker that has closed a pipe, as its last act most often.
ENDING_PAUSE = 0.01
#: Seconds in which nobody looks after a migration has begun, or was replayed: being woken for each of a thousand slows
#: them down.
NAP = 0.01
#: Above what `os.closerange(3, 256)` in somebody's env.py reaches, where the limit of open files is higher; below
#: that limit there must be room for the pipes of two workers.
HIGH_DESCRIPTOR, ROOM = 300, 16

running: list[Worker] = []


class Worker:
    """A child process with the user's env.py in it, which boots and waits for an order; its output becomes log lines.

    Raises Misconfigured where `python` cannot be executed.
    """

    def __init__(self, python: str) -> None:
        self._lines = {
            "messages": Lines(1 << 30),
            "stdout": Lines(LONGEST_LINE),
            "stderr": Lines(LONGEST_LINE),
        }
        self._level: str | None = None
        #: whether it waits for another order, having looked
        self.is_idle = False
        #: the migrations, where it has told them once and will not again
        self.graph: Graph | None = None
        self._said: str | None = None
        self.exit_status: int | None = None
        self.last_output: list[str] = []
        self._boot(python)

    def _boot(self, python: str) -> None:
        be_subreaper(True)
        self._orphans = Orphans()
        reading, their_writing = _pipe()
        their_reading, self._writing = _pipe()
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
        try:
            self._process = subprocess.Popen(
                # Bytecode that nobody compares with its source, and that may not be removed from a read-only image, is
                # compared: a wrong migration must not run.
                [python, "--check-hash-based-pycs", "always", script, str(their_reading), str(their_writing)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(their_reading, their_writing),
                # A session of its own: the terminal's Ctrl-C is ours to pass on, and its children end with it.
                start_new_session=True,
            )
        except OSError as error:
            for descriptor in (reading, self._writing):
                os.close(descriptor)
            raise Misconfigured(
                f"ALEMBIC_ENTRYPOINT_PYTHON is {python!r}, which cannot be executed: {error.strerror}."
            ) from None
        finally:
            os.close(their_reading)
            os.close(their_writing)
        running.append(self)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._streams = {
            "messages": reading,
            "stdout": self._process.stdout.fileno(),
            "stderr": self._process.stderr.fileno(),
        }

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.end()

    def order(self, request: Request) -> None:
        """Ask for something, of a worker that boots or is idle."""
        self.is_idle = False
        # A look runs env.py only to see what it sees; what it prints then, it prints again when it migrates.
        # Where env.py is asked for the URL, the password that it may print is not yet known, and cannot be hidden.
        self._level = {"migrate": "info", "ask": None}.get(request.order, "debug")
        self.tell(request.encode())

    def tell(self, message: Message) -> None:
        """Say one thing; a worker that is gone does not hear it, and its end is seen elsewhere."""
        with suppress(BrokenPipeError):
            write(self._writing, message)

    def messages(self, tick: Callable[[], None] = lambda: None, every: float = 0.5) -> Iterator[Message]:
        """Give what the worker says until it has ended or is idle; call `tick` at least every so many seconds.

        Its end counts, not that of its pipes: a process that env.py left behind may hold them. An exception of `tick`
        ends the iteration; the worker is ended when its context is left.
        """
        with selectors.DefaultSelector() as selector:
            for name, descriptor in self._streams.items():
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ, name)
            next_tick = time.monotonic() + every
            pause = every
            while not self.is_idle and not self._has_ended():
                for key, _ in selector.select(max(0.0, min(next_tick - time.monotonic(), pause))):
                    if (lines := self._read(key.data)) is None:
                        selector.unregister(key.fd)
                        pause = ENDING_PAUSE
                    else:
                        yield from self._heard(key.data, lines)
                        if self._said in ("started", "visited"):
                            self._said = None
                            time.sleep(NAP)
                if time.monotonic() >= next_tick:
                    tick()
                    next_tick = time.monotonic() + every
        if not self.is_idle:
            yield from self._last_words()

    def _has_ended(self) -> bool:
        """Tell whether the worker has ended; until it is waited for, its process group cannot be another's."""
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _last_words(self) -> Iterator[Message]:
        """End what the worker left behind, and give what stands in the pipes: so much and no more."""
        self._bury()
        for name in reversed(self._streams):
            for _ in range(MOST_READS):
                if (lines := self._read(name)) is None:
                    break
                yield from self._heard(name, lines)

    def _heard(self, name: str, lines: list[bytes]) -> Iterator[Message]:
        for line in lines:
            if name == "messages":
                message = decode(line)
                if message["said"] == "secret":
                    keep_secret(Address(message["parameters"]))
                    continue
                self._said = message["said"]
                self.is_idle = self._said == "idle"
                yield message
            else:
                self._log(name, line)

    def _read(self, name: str) -> list[bytes] | None:
        """Read what is there: lines, or None at the end of the stream."""
        try:
            data = os.read(self._streams[name], 1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if data:
            return self._lines[name].feed(data)
        for line in self._lines[name].end():
            self._log(name, line)
        return None

    def _log(self, name: str, line: bytes) -> None:
        if text := line.decode(errors="replace").rstrip():
            self.last_output = [*self.last_output[-9:], text]
            if self._level is not None:
                log("worker.output", level=self._level, stream=name, line=text)

    def end(self, grace: float = 0.0) -> None:
        """End the worker and everything it started; wait `grace` seconds for it to end by itself first."""
        if self not in running:
            return
        self.is_idle = False
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        if self.exit_status is None:
            self._bury()
        running.remove(self)
        be_subreaper(bool(running))
        for name in list(self._streams):
            if name == "messages":
                os.close(self._streams.pop(name))
        os.close(self._writing)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _bury(self) -> None:
        """Kill and reap the worker and what it left behind, which would be the app's otherwise."""
        kill_group(self._process.pid)
        self._process.wait()
        self._orphans.end(_pids())
        self.exit_status = self._process.returncode


def kill_group(pid: int) -> None:
    """End a process group, if there still is one."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_all(moment: float = 0.0) -> None:
    """End every worker, and who is seen to descend from one, at once: when there is no time left for anything else.

    But for the `moment`, in seconds at the most, that it takes them to send a cancel: a server before 14 does not look
    whether its client is gone, and would go on to the end of the statement.
    """
    if moment:
        for worker in running:
            with suppress(OSError):
                worker.tell({"order": "cancel"})
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and not all(worker._has_ended() for worker in running):
            time.sleep(ENDING_PAUSE)
    workers = _pids()
    orphans = {pid for worker in running for pid in worker._orphans.found(workers)}
    family = list(family_of([*workers, *orphans]))
    for pid in workers:
        kill_group(pid)
    for pid in family:
        kill(pid)


def _pids() -> list[int]:
    return [worker._process.pid for worker in running]


def _pipe() -> tuple[int, int]:
    """Make a pipe whose ends have high numbers."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest = HIGH_DESCRIPTOR if limit == resource.RLIM_INFINITY else max(3, min(HIGH_DESCRIPTOR, limit - ROOM))
    ends = os.pipe()
    try:
        high: Any = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, lowest) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return high[0], high[1]
