"""The servers that schemas are read on, and a database with at least one of everything on each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
from cases import HERE

from alembic_entrypoint.schema.facts import Snapshot
from alembic_entrypoint.schema.snapshot import LEDGER, take
from dumps import normalised
from servers import Database, Server, fresh_database

IGNORED = (LEDGER, ("public", "alembic_version"))


@pytest.fixture(scope="session", params=[18, *(pytest.param(major, marks=pytest.mark.extra) for major in (13, 15, 16))])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(f"pg{request.param}")
    return found


def snapshot_of(database: Database) -> Snapshot:
    with database.connect() as connection:
        return take(connection, ignore=IGNORED)


@dataclass(frozen=True)
class Rich:
    """A database with at least one of everything that counts, and what was read of it."""

    server: Server
    database: Database
    snapshot: Snapshot
    dump: list[str]
    extension: str

    def copy(self) -> AbstractContextManager[Database]:
        quickly = "STRATEGY file_copy" if self.server.major > 14 else ""
        return fresh_database(self.server, like=f'TEMPLATE "{self.database.name}" {quickly}')


@pytest.fixture(scope="session")
def rich(server: Server) -> Iterator[Rich]:
    with fresh_database(server) as database:
        database.execute((HERE / "rich.sql").read_text())
        # What extensions there are depends on how the server was packaged.
        (extension,) = database.query(
            "SELECT min(name) FROM pg_available_extensions WHERE name IN ('citext', 'vector')"
        )[0]
        yield Rich(server, database, snapshot_of(database), normalised(database), extension)
