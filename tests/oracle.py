"""Whose schema a database has, by `pg_dump` of what plain Alembic makes: an oracle that knows nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from commands import entrypoint, environment
from dumps import normalised
from servers import Database, Server, fresh_database

#: Upgrades databases to revisions, one after the other.
PLAIN = """
import json, os, sys
from alembic import command
from alembic.config import Config
for url, revisions in json.load(sys.stdin):
    os.environ["DATABASE_URL"] = url
    config = Config(sys.argv[1])
    config.set_main_option("sqlalchemy.url", url)
    for revision in revisions:
        command.upgrade(config, revision)
"""
TABLES = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema$)'"
VERSION_TABLE = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, c.conname, pg_get_constraintdef(c.oid)
  FROM pg_attribute AS a LEFT JOIN pg_constraint AS c ON c.conrelid = a.attrelid AND c.contype = 'p'
 WHERE a.attrelid = 'public.alembic_version'::regclass AND a.attnum > 0
"""
#: What people do to a version table.
LOSSES = {
    "emptied": "DELETE FROM alembic_version",
    "dropped": "DROP TABLE alembic_version",
    "lost": "UPDATE alembic_version SET version_num = 'a2242b61af45' "
    "WHERE version_num = (SELECT min(version_num) FROM alembic_version)",
}


@dataclass(frozen=True)
class Tree:
    """Migrations, and what is known of them without a look at any database."""

    folder: Path
    #: each revision with what it follows or depends on, oldest first
    beneath: dict[str, tuple[str, ...]]
    #: revisions that execute no statement
    silent: set[str] = field(default_factory=set)
    ini: str = "alembic.ini"

    def applied(self, *revisions: str) -> frozenset[str]:
        """Give revisions with all that lies beneath them."""
        return frozenset(revisions).union(*(self.applied(*self.beneath[each]) for each in revisions))

    def newest(self, applied: Collection[str]) -> list[str]:
        """Give those of these that lie beneath none of the others."""
        below = {parent for each in applied for parent in self.beneath[each]}
        return [each for each in self.beneath if each in applied and each not in below]

    @property
    def sets(self) -> list[frozenset[str]]:
        """Give every set of revisions that can have been applied."""
        found = [frozenset[str]()]
        for revision, below in self.beneath.items():
            found += [each | {revision} for each in found if each.issuperset(below)]
        return found


@dataclass(frozen=True)
class Made:
    """A database that plain Alembic made, and what can be seen of it."""

    database: Database
    applied: frozenset[str]
    recorded: list[str]
    schema: list[str]
    filled: frozenset[str]


def recorded(database: Database) -> list[str]:
    return [row[0] for row in database.query("SELECT version_num FROM alembic_version ORDER BY 1")]


@dataclass(frozen=True)
class Oracle:
    """All that plain Alembic can make of a tree."""

    tree: Tree
    all: Mapping[frozenset[str], Made]

    def candidates(self, at: Made) -> list[Made]:
        """Find whose schema this is: no table is empty here that they fill, and what executed nothing is one."""
        same = [each for each in self.all.values() if each.schema == at.schema and each.filled <= at.filled]

        def is_one_with(each: Made, other: Made) -> bool:
            return each.applied < other.applied and other.applied - each.applied <= self.tree.silent

        return [each for each in same if not any(is_one_with(each, other) for other in same)]

    @property
    def head(self) -> Made:
        return self.all[frozenset(self.tree.beneath)]


def upgraded(tree: Tree, jobs: Iterable[tuple[Database, list[str]]]) -> subprocess.CompletedProcess[str]:
    """Upgrade databases to revisions as plain Alembic does."""
    urls = [(each.url.replace("postgresql:", "postgresql+psycopg:"), revisions) for each, revisions in jobs]
    command = [sys.executable, "-c", PLAIN, tree.ini]
    return subprocess.run(command, input=json.dumps(urls), cwd=tree.folder, capture_output=True, text=True, check=False)


@contextmanager
def oracle(tree: Tree, server: Server) -> Iterator[Oracle]:
    """Make a database for every set of revisions."""
    with ExitStack() as stack:
        databases = {each: stack.enter_context(fresh_database(server)) for each in tree.sets}
        jobs = [(each, tree.newest(applied)) for applied, each in databases.items()]
        assert upgraded(tree, jobs).returncode == 0
        yield Oracle(tree, {applied: _seen(each, applied) for applied, each in databases.items()})


def _seen(database: Database, applied: frozenset[str]) -> Made:
    if not applied:
        return Made(database, applied, [], normalised(database), frozenset())
    tables = {name for (name,) in database.query(TABLES)} - {"public.alembic_version"}
    filled = frozenset(each for each in tables if database.query(f"SELECT EXISTS (TABLE {each})") == [(True,)])
    return Made(database, applied, recorded(database), normalised(database), filled)


def lose_and_migrate(oracle: Oracle, at: Made, loss: str) -> bool:
    """Lose what is recorded, migrate, and see that it is recorded again if and only if the schema tells it.

    Returns whether it was recorded.
    """
    tree, candidates = oracle.tree, oracle.candidates(at)
    assert isinstance(at.database.server, Server)
    with fresh_database(at.database.server, like=f'TEMPLATE "{at.database.name}"') as database:
        database.execute(LOSSES[loss])
        rest = [] if loss == "dropped" else recorded(database)
        env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_CONFIG": tree.ini}
        result = entrypoint("migrate", "--target", "heads", cwd=tree.folder, env=environment(env))
        where = (
            f"{loss} at {tree.newest(at.applied)}, the schema of {[tree.newest(each.applied) for each in candidates]}"
        )
        stamped = [each["after"] for each in result.named("schema.stamped")]
        if len(candidates) != 1:
            assert (result.code, stamped) == (65, []), f"{where}: {result.stderr}"
            assert normalised(database) == at.schema, where
            if loss == "dropped":
                assert database.query("SELECT to_regclass('alembic_version')") == [(None,)], where
            else:
                assert recorded(database) == rest, where
            return False
        (proved,) = candidates
        assert stamped == [proved.recorded], f"{where}: {result.stderr}"
        if result.code == 1:
            # Some migrations cannot go on from everywhere, on PostgreSQL: then nobody can.
            assert (recorded(database), normalised(database)) == (proved.recorded, at.schema), where
            assert upgraded(tree, [(at.database, ["heads"])]).returncode == 1, where
            return True
        assert result.code == 0, f"{where}: {result.stderr}"
        # Each migration once, none skipped and none again; and the end is that of a straight upgrade.
        ran = {each["revision"] for each in result.named("migration.finished")}
        assert ran == set(tree.beneath) - proved.applied, where
        assert normalised(database) == oracle.head.schema, where
        assert recorded(database) == oracle.head.recorded, where
        assert database.query(VERSION_TABLE) == oracle.head.database.query(VERSION_TABLE), where
        return True
