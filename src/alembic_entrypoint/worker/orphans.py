"""What a worker started and left, whatever session it went to: it becomes ours, and ends with the worker.

Linux gives an orphan to the nearest of its ancestors that is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), or to
PID 1. Where we may not be one, those that left the worker's process group are left.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any

_prctl: Any
try:
    import ctypes

    _prctl = ctypes.CDLL(None).prctl
except (ImportError, AttributeError, OSError):  # not Linux, or a Python without it
    _prctl = None

#: Seconds in which what was killed is dead; what hangs in the kernel is not waited for.
LONGEST = 0.5
_SET_SUBREAPER, _GET_SUBREAPER = 36, 37


def _is_subreaper() -> bool:
    if _prctl is None:
        return False
    answer = ctypes.c_int(0)
    _prctl(_GET_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    return bool(answer.value)


#: It survives execve(2): what whoever became us was, the app is to be.
_WAS_SUBREAPER = _is_subreaper()


def be_subreaper(is_on: bool) -> None:
    """Take the orphans among our descendants, or leave them to whom they went before us."""
    if _prctl is not None:
        _prctl(_SET_SUBREAPER, int(is_on or _WAS_SUBREAPER), 0, 0, 0)


class Orphans:
    """Those who became our children since this was made, and not by our doing: whom a worker started.

    Whoever became us may have left us children. What these start and leave is no worker's: it is in their session or in
    ours, and nobody can go to a session that is there already.
    """

    def __init__(self) -> None:
        self._had = frozenset(_children_of(os.getpid()))
        self._sessions = {_session_of(pid) for pid in (os.getpid(), *self._had)}

    def found(self, ours: Collection[int]) -> list[int]:
        """List them; `ours` are those whom we have started since."""
        others = set(_children_of(os.getpid())).difference(self._had, ours)
        return [pid for pid in others if _session_of(pid) not in self._sessions]

    def end(self, ours: Collection[int]) -> None:
        """Kill and reap them, and who becomes ours by that."""
        deadline = time.monotonic() + LONGEST
        while (left := self.found(ours)) and time.monotonic() < deadline:
            for pid in left:
                kill(pid)
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.005)


def family_of(pids: Iterable[int]) -> Iterator[int]:
    """List processes and all their descendants."""
    for pid in pids:
        yield pid
        yield from family_of(_children_of(pid))


def kill(pid: int) -> None:
    """End a process, if there still is one."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _session_of(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getsid(pid)
    return None


def _children_of(pid: int) -> list[int]:
    """List children, zombies too: proc(5), /proc/pid/task/tid/children. None where /proc is another namespace's."""
    found: list[int] = []
    with suppress(OSError):
        if os.readlink("/proc/self") == str(os.getpid()):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
    return found
