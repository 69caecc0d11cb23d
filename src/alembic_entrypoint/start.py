"""One start, from top to bottom: reach the database, see whether there is anything to do, settle it, become the app.

Most starts have nothing to do, and end here; `settle.py` goes on where there is something, or may be.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from alembic_entrypoint import logs
from alembic_entrypoint.fast import UNFIT, UNKNOWN, Answer, ask, find_fingerprint
from alembic_entrypoint.launch import launch
from alembic_entrypoint.logs import log
from alembic_entrypoint.settings import Settings, read
from alembic_entrypoint.target import given
from alembic_entrypoint.wait import reached


def run_plainly(command: Sequence[str], options: Mapping[str, str] | None = None) -> NoReturn:
    """Do what MODE says, then become the app."""
    settings = read_settings(options or {})
    if settings.mode == "await":
        gc.enable()
        from alembic_entrypoint.commands.awaiting import await_and_become

        await_and_become(settings, "head", command)
    run(settings, command)


def read_settings(options: Mapping[str, str]) -> Settings:
    """Read the settings, and log as they say from then on. Raises Misconfigured."""
    logs.configure()
    settings = read(os.environ, options)
    logs.configure(settings.log_format, settings.log_level)
    return settings


def run(settings: Settings, command: Sequence[str]) -> NoReturn:
    """Settle the database, then become the app."""
    steps = Steps()
    state = settle(settings, steps)
    log("app.launching", state=state, elapsed=steps.elapsed, command=command[0])
    launch(command)


class Steps:
    """How long each step of a start took, in seconds, in the order of the steps."""

    def __init__(self) -> None:
        self.elapsed: dict[str, float] = {}
        self._began = time.monotonic()

    def end(self, step: str) -> None:
        """Note that a step is over and the next begins."""
        now = time.monotonic()
        self.elapsed[step] = round(now - self._began, 3)
        self._began = now


def settle(settings: Settings, steps: Steps) -> str:
    """Bring the database to the target, and name the state in which it is; or raise the reason why not."""
    target, image, known = given(settings), find_fingerprint(settings), UNKNOWN
    clean(settings)
    if target is not None:
        with reached(target.address, settings.wait_timeout) as (connection, ready):
            log("server.examined", version=ready.server.version, pooled=ready.server.is_pooled)
            if ready.server.is_pooled:
                image = None
            if image is not None:
                known = ask(connection, image)
            if known.answer is not Answer.SETTLED and not ready.server.may_lock:
                known = UNFIT  # whoever has nothing to do starts without a lock
        target = target.at(ready.address)
        steps.end("wait")
    if known.answer is Answer.SETTLED:
        return known.said()
    # Imported here, so that a start with nothing to do does not pay for it.
    from alembic_entrypoint.settle import settle_at_length

    gc.enable()
    return settle_at_length(settings, target, image, known, steps)


def clean(settings: Settings) -> None:
    """Remove stale bytecode in the folders that the setting names; those of the migrations are the worker's to find."""
    if settings.clean not in (("migrations",), ("off",)):
        from alembic_entrypoint.bytecode import remove_named
        from alembic_entrypoint.observe import log_cleaned

        log_cleaned(remove_named(settings.clean, settings.config).document())
