"""A replay of a project's migrations, as a proof makes it, for a database of a test."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

import pytest

from alembic_entrypoint.address import parse
from alembic_entrypoint.observe import find_target, observe
from alembic_entrypoint.postgres.scratch import scratch_server
from alembic_entrypoint.replay import Visited, replay
from alembic_entrypoint.schema import reading, snapshot
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.worker.messages import Replay
from projects import Project
from servers import Database

IGNORED = (snapshot.LEDGER, ("public", "alembic_version"))


def replayed(
    made: Project,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    order: Iterable[str] = (),
    shown: Iterable[tuple[str, ...]] = (),
    url: str | None = None,
    scratch: str = "auto",
) -> tuple[Visited, ...]:
    """Replay a project's migrations for a database."""
    monkeypatch.chdir(made.folder)
    settings = Settings(database_url=parse(url or database.url), wait_timeout=10, scratch=scratch)
    seen = observe(settings, find_target(settings))
    with ExitStack() as stack:
        connection = stack.enter_context(database.connect())
        row = connection.execute(reading.NAMES).fetchone()
        assert row is not None
        wanted = Replay(
            revisions=seen.facts.graph.heads,
            order=tuple(order),
            live=tuple(reading.names_of(row[0], IGNORED)),
            ignore=(snapshot.LEDGER,),
            shown=tuple(shown),
        )
        server = stack.enter_context(scratch_server(settings, seen.target.address, connection))
        return replay(settings, seen.target, server, wanted, seen.facts, connection)


def recorded(visits: Iterable[Visited]) -> list[tuple[str, ...]]:
    """Give the sets that a replay visited, in order."""
    return [each.recorded for each in visits]
