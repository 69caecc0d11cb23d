"""What is told before, in and after each migration of an upgrade or downgrade."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from types import CodeType
from typing import Any

from alembic_entrypoint.worker.connections import Made, Policy
from alembic_entrypoint.worker.parent import Parent, Work


def watched(
    step: Any, n: int, of: int, parent: Parent, work: Work, context: Any, check: Callable[[], None], tells: bool
) -> Any:
    """Tell when a migration begins, and check the fence after it; before it, BEGIN or the one before it did.

    Where it `tells`, also what is there before a migration that commits half-way; before the first, the parent knows.
    """
    from alembic_entrypoint.worker.environment import shown
    from alembic_entrypoint.worker.transactions import TRANSACTION

    run, revision = step.migration_fn, step.revision
    path = shown(revision.path)

    @functools.wraps(run)
    def told(**keys: Any) -> None:
        work.migration = {
            "revision": revision.revision,
            "direction": None if step.is_upgrade else "down",
            "path": path,
            "n": n,
            "of": of,
            "doc": revision.doc or "",
        }
        parent.tell("started", **work.migration, transaction=context.connection.info.get(TRANSACTION))
        if tells and n > 1 and _commits_half_way(getattr(run, "__code__", None)):
            _tell_schema(parent, context.connection)
        run(**keys)
        check()

    step.migration_fn = told
    return step


def finished(parent: Parent, work: Work) -> Callable[..., None]:
    def told(*, step: Any, **_: Any) -> None:
        work.finished += step.up_revision_ids
        parent.tell("finished", revision=step.up_revision_id)

    return told


def see_what_no_transaction_shows(policy: Policy, work: Work) -> None:
    """Tell when a migration opens a connection of its own, or starts a program: what these commit, nobody here sees."""
    from alembic_entrypoint.worker.programs import PROGRAMS

    def asked(made: Made) -> None:
        if made.is_target:
            work.went_unseen("opened a connection of its own")

    def audit(event: str, _: tuple[Any, ...]) -> None:
        if event in PROGRAMS:
            work.went_unseen("started a program")

    policy.asked = asked
    sys.addaudithook(audit)


def _commits_half_way(code: Any) -> bool:
    """Tell whether a function, or one in it, names `autocommit_block`, which keeps what came before it."""
    if not isinstance(code, CodeType):
        return False
    return "autocommit_block" in code.co_names or any(map(_commits_half_way, code.co_consts))


def _tell_schema(parent: Parent, connection: Any) -> None:
    """Tell what is there before a migration, so that what it leaves behind can be told from what is kept of others."""
    from alembic_entrypoint.schema.reading import encoded
    from alembic_entrypoint.worker.aside import read_schema

    # Without it less is said after a failure, and nothing else is lost.
    with suppress(Exception):
        parent.tell("schema", snapshot=encoded(read_schema(connection, lock_timeout=0.5)))
