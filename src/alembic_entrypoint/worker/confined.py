"""A process that can do nothing but talk to one scratch database: everything else ends it before it is done [R5].

A replay runs all of a user's history, in which anything may stand. Files can be written: that is not prevented.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from alembic_entrypoint.address import Place
from alembic_entrypoint.worker import statements
from alembic_entrypoint.worker.connections import Policy
from alembic_entrypoint.worker.programs import PROGRAMS

_SOCKETS = ("socket.connect", "socket.sendto", "socket.sendmsg")

#: Told why a replay cannot go on; it does not come back.
End = Callable[[str], NoReturn]


def confine(policy: Policy, end: End, executed: Callable[[], None]) -> None:
    """Confine this process for the rest of its life; `executed` is told of each statement that passes."""

    def left_alone(place: Place) -> NoReturn:
        end(f"connects to another database, {place}")

    def seen(statement: str) -> None:
        if what := statements.beyond(statement):
            end(f"runs {what}, which reaches beyond its own database")
        executed()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in PROGRAMS:
            end(f"{PROGRAMS[event]}{_program(arguments)}")
        elif event in _SOCKETS and not statements.is_connecting():
            end(f"opens a network connection to {arguments[1]}")

    policy.left_alone = left_alone
    policy.wrapped = lambda name, module: statements.watch(name, module, seen)
    _forbid_unaudited(end)
    sys.addaudithook(audit)


def _program(arguments: tuple[Any, ...]) -> str:
    return f": {arguments[0]!r}" if arguments and arguments[0] else ""


def _forbid_unaudited(end: End) -> None:
    """`multiprocessing` starts programs with what has no audit event."""
    import _posixsubprocess

    def fork_exec(*_: Any) -> NoReturn:
        end("starts a program")

    _posixsubprocess.fork_exec = fork_exec
