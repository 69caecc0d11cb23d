"""Become the app: same process, arguments, environment and streams."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from alembic_entrypoint.errors import NotExecutable, NotFound


def launch(command: Sequence[str]) -> NoReturn:
    """Replace this process by the command. Raises NotFound or NotExecutable, as a shell's 127 and 126."""
    _restore_signals()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], list(command), os.environ)
    except FileNotFoundError:
        raise NotFound(f"{command[0]}: no such command. {_hint(command[0])}") from None
    except OSError as error:
        raise NotExecutable(f"{command[0]}: cannot be executed: {error.strerror}.") from None
    except ValueError as error:
        raise NotExecutable(f"{command[0]!r}: cannot be executed: {error}.") from None


def _hint(word: str) -> str:
    # A script whose interpreter is missing gives the same error as a script that is missing.
    if os.path.sep in word and os.path.exists(word):
        return "The file is there, but the interpreter in its first line is not."
    if " " in word:
        return "It is one word with spaces in it: give the command and its arguments as separate words."
    return f"It was looked for in PATH={os.environ.get('PATH', '')}."


def _restore_signals() -> None:
    """Undo what Python and we did: ignored SIGPIPE and SIGXFSZ, handlers, blocked signals."""
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
