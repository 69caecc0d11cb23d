"""A process that can do nothing but talk to one scratch database: everything else ends it before it is done [R5].

A replay runs all of a user's history, in which anything may stand. Files can be written: that is not prevented.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from alembic_entrypoint.address import Place
from alembic_entrypoint.schema.reading import NAMES, NEW_NAMES
from alembic_entrypoint.worker import statements, watched
from alembic_entrypoint.worker.connections import Policy
from alembic_entrypoint.worker.programs import PROGRAMS

_SOCKETS = ("socket.connect", "socket.sendto", "socket.sendmsg")
#: What the same is called in C, where no event tells of it.
_C_FUNCTIONS = re.compile(
    r"system|popen|v?fork|_Fork|clone3?|posix_spawnp?|exec(le?|lp|ve?|vpe?|veat)|fexecve|connect|sendto|sendmsg|kill(pg)?|tgkill|syscall"
)

#: What we ask ourselves after each migration, and need not search.
_OURS = frozenset((NAMES, NEW_NAMES))

#: Told why a replay cannot go on; it does not come back.
End = Callable[[str], NoReturn]


def confine(policy: Policy, end: End, executed: Callable[[], None]) -> None:
    """Confine this process for the rest of its life; `executed` is told of each statement that passes."""

    def left_alone(place: Place) -> NoReturn:
        end(f"connects to another database, {place}")

    def seen(statement: str) -> None:
        if statement not in _OURS and (what := statements.beyond(statement)):
            end(f"runs {what}, which reaches beyond its own database")
        executed()

    def keeps(catalog: str | None) -> None:
        if catalog:
            end(f"changes {catalog}, which all databases share")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in PROGRAMS:
            end(f"{PROGRAMS[event]}{_program(arguments)}")
        elif event in _SOCKETS:
            # Without an address it goes where the socket was connected to, of which there was an event.
            if arguments[1] is not None and not watched.is_connecting():
                end(f"opens a network connection to {arguments[1]}")
        elif event == "ctypes.dlsym":
            if _C_FUNCTIONS.fullmatch(str(arguments[1])):
                end(f"calls {arguments[1]}() of C")
        elif event in ("os.kill", "os.killpg") and not _is_own(event, *arguments):
            end(f"sends a signal to process {arguments[0]}")

    policy.left_alone = left_alone
    told = watched.Watch(seen, keeps, end)
    policy.wrapped = lambda name, module: watched.watch(name, module, told)
    _forbid_unaudited(end)
    sys.addaudithook(audit)


def _is_own(event: str, process: int, signum: int) -> bool:
    """Tell whether a signal reaches this process or its group alone; the signal 0 only asks who is there."""
    own = os.getpgrp() if event == "os.killpg" else os.getpid()
    return signum == 0 or process == own or (event == "os.killpg" and process == 0)


def _program(arguments: tuple[Any, ...]) -> str:
    return f": {arguments[0]!r}" if arguments and arguments[0] else ""


def _forbid_unaudited(end: End) -> None:
    """`multiprocessing` starts programs with what has no audit event."""
    import _posixsubprocess

    def fork_exec(*_: Any) -> NoReturn:
        end("starts a program")

    _posixsubprocess.fork_exec = fork_exec
