"""Load the migrations, which may be thousands: without looking for garbage, and while a child process looks."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from alembic_entrypoint.worker.connections import Made, Policy
from alembic_entrypoint.worker.messages import Request, ended_with
from alembic_entrypoint.worker.parent import Parent, end_at_once


@contextmanager
def unswept() -> Iterator[None]:
    """Look for no garbage in what is imported, neither meanwhile nor later: it stays, and is much."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def looked_in_a_fork(
    look: Callable[[], NoReturn], request: Request, parent: Parent, policy: Policy, environment: Any
) -> bool:
    """Look in a child process; False where that cannot be.

    Threads and connections that the imports left cannot be forked; and a label of a branch means nothing without the
    migrations, which are loaded meanwhile.
    """
    if "@" in request.target or policy.made or threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
        return False
    child = os.fork()
    if child == 0:
        look()
    # Two must not speak at once: what one says would come in the midst of the other.
    asked: list[Made] = []
    policy.asked, tell = asked.append, policy.asked
    try:
        with unswept():
            environment.prepare()
    finally:
        _, status = os.waitpid(child, 0)
        policy.asked = tell
    for made in asked:
        tell(made)
    if status:
        code = os.waitstatus_to_exitcode(status)
        why = ended_with(code, f"env.py ended its process with status {code}")
        parent.tell("failed", kind="died", error=why, migration=None)
        end_at_once()
    parent.tell("loaded", **environment.loaded())
    return True
