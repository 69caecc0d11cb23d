"""The one place where errors become words and exit codes, and where signals are caught. Nothing else exits."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from alembic_entrypoint.errors import Ended, Internal, Interrupted, TryAgain

#: Seconds from a signal to the end of this process, whatever it is doing; two are promised.
LIMIT = 1.8
#: Seconds that a worker has to send a cancel, when a second signal ends it before the first has.
CANCELLING = 0.4
CAUGHT = (signal.SIGTERM, signal.SIGINT)

_caught: list[int] = []


def guard(body: Callable[[], int]) -> NoReturn:
    """Run the program and end with its exit code, or by a signal, whenever that comes."""
    try:
        _end(_exit_code(body))
    except Interrupted as error:
        # Not where the other reasons are: it may come while they are being said. A second one is never raised.
        _end_now(error.signum)


def _exit_code(body: Callable[[], int]) -> int:
    """Run the program, and say why it ended where that is not for the best.

    Signals are caught from the first moment: PID 1 has no default.
    """
    try:
        _catch_signals()
        return body()
    except Ended as error:
        _say(error)
        return error.exit_code
    except Exception as error:
        if (lost := _lost(error)) is not None:
            _say(lost)
            return lost.exit_code
        _say_internal(error)
        return Internal.exit_code


def _lost(error: Exception) -> Ended | None:
    """Say of a database that went away or gave up, where no step has expected it, that another start may go well."""
    psycopg = sys.modules.get("psycopg")
    if psycopg is None or not isinstance(error, psycopg.OperationalError):
        return None
    reason = " ".join(str(error).split())
    return TryAgain(f"The database did not go on: {reason}. Run the same again: it looks anew at what is there.")


def _catch_signals() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for signum in CAUGHT:
        signal.signal(signum, _interrupt)
    threading.Thread(target=_limit, args=(reading,), daemon=True).start()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _caught.append(signum)
    if len(_caught) == 1:  # of a second one the thread below takes care, which knows which was the first
        raise Interrupted(signum)


def _limit(reading: int) -> None:
    """End the process and its workers some time after the first signal, and after the second once a cancel is sent.

    In a thread of its own: the main thread may hang in C, where no handler runs.
    """
    signum = _next_signal(reading)
    end = time.monotonic() + LIMIT
    while select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
        if os.read(reading, 1)[0] in CAUGHT:
            _end_now(signum, CANCELLING)
    _end_now(signum)


def _next_signal(reading: int) -> int:
    while (signum := os.read(reading, 1)[0]) not in CAUGHT:
        continue
    return signum


def _end_now(signum: int, moment: float = 0.0) -> NoReturn:
    client = sys.modules.get("alembic_entrypoint.worker.client")
    try:
        if client is not None:
            client.kill_all(moment)
    finally:
        os._exit(128 + signum)


def _say(error: Ended) -> None:
    from alembic_entrypoint.logs import log

    event = error.event or "run.ended"
    log(
        event,
        level="error",
        exit_code=error.exit_code,
        meaning=error.name,
        message=error.message,
        **error.keys,
    )


def _say_internal(error: Exception) -> None:
    import traceback

    from alembic_entrypoint.logs import log

    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    log(
        "run.ended",
        level="error",
        exit_code=Internal.exit_code,
        meaning=Internal.name,
        message="This is a fault of alembic-entrypoint, not of the app; the app was not started. Please report it "
        f"with what follows.\n{trace}",
    )


def _end(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    # Not sys.exit: it would wait for threads and run what imported packages registered, past the limit of a signal.
    os._exit(code)
