"""Become the app: same process, arguments, environment and streams."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from alembic_entrypoint.errors import NotExecutable, NotFound


def become_if_off(command: Sequence[str], options: Mapping[str, str] | None = None) -> None:
    """Become the command where nothing else is to be done: asked first, so that nothing can be in the way."""
    from alembic_entrypoint.settings import is_off

    if is_off(os.environ, options or {}):
        launch(command)


def launch(command: Sequence[str]) -> NoReturn:
    """Replace this process by the command. Raises NotFound or NotExecutable, as a shell's 127 and 126."""
    _reap()
    _restore_signals()
    _flush()
    try:
        os.execvpe(command[0], list(command), _environment())
    except FileNotFoundError:
        raise NotFound(f"{command[0]}: no such command. {_hint(command[0])}") from None
    except OSError as error:
        raise NotExecutable(f"{command[0]}: cannot be executed: {error.strerror}.") from None
    except ValueError as error:
        raise NotExecutable(f"{command[0]!r}: cannot be executed: {error}.") from None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # None where the descriptor is closed; and whoever read our log may be gone, which is not the app's concern.
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _environment() -> dict[bytes, bytes]:
    """Give the environment that we were given: in the C locale Python sets an LC_CTYPE of its own (PEP 538)."""
    environ = dict(os.environb)
    try:
        with open("/proc/self/environ", "rb") as file:
            given = [each.partition(b"=") for each in file.read().split(b"\0")]
    except OSError:
        return environ
    environ.pop(b"LC_CTYPE", None)
    environ.update((name, value) for name, _, value in given if name == b"LC_CTYPE")
    return environ


def _hint(word: str) -> str:
    # A script whose interpreter is missing gives the same error as a script that is missing.
    import shutil

    if shutil.which(word):
        return "The file is there, but the interpreter in its first line is not."
    if " " in word:
        return "It is one word with spaces in it: give the command and its arguments as separate words."
    if os.path.sep in word:
        return "There is no such file."
    return f"It was looked for in PATH={os.environ.get('PATH', '')}."


def _reap() -> None:
    """As PID 1, take leave of the dead that have become our children: the app does not expect them."""
    with suppress(ChildProcessError):
        while os.getpid() == 1 and os.waitpid(-1, os.WNOHANG) != (0, 0):
            continue


def _restore_signals() -> None:
    """Undo what Python and we did: ignored SIGPIPE and SIGXFSZ, handlers, blocked signals."""
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
