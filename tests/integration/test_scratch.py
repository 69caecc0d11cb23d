"""Scratch databases are like the target, are always dropped, and nobody else's ever is."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from alembic_entrypoint.address import Address, parse
from alembic_entrypoint.errors import Denied, Misconfigured, Refused
from alembic_entrypoint.postgres.scratch import scratch_server
from alembic_entrypoint.settings import Settings
from servers import Database, Server, fresh_database

LIKE = (
    "SELECT to_jsonb(d) - '{oid,datname,datdba,datfrozenxid,datminmxid,datcollversion,dattablespace,datacl}'::text[] "
    "FROM pg_database d WHERE datname = current_database()"
)
HOLDER = """
import sys, time
from alembic_entrypoint.address import parse
from alembic_entrypoint.postgres.scratch import scratch_server
from alembic_entrypoint.settings import Settings
import psycopg
target = parse(sys.argv[1])
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    with scratch_server(Settings(), target, connection) as server, server.database() as address:
        print(address.place.dbname, flush=True)
        time.sleep(600)
"""


@contextmanager
def scratch_of(database: Database, scratch: str | Address = "auto", url: str | None = None) -> Iterator[Address]:
    target = parse(url or database.url)
    with ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(url or database.url, autocommit=True))
        server = stack.enter_context(scratch_server(Settings(scratch=scratch, wait_timeout=10), target, connection))
        yield stack.enter_context(server.database())


def left(server: Server) -> set[str]:
    """Name the scratch databases that are there."""
    return {name for (name,) in server.query("SELECT datname FROM pg_database WHERE datname ~ 'scratch'")}


def asked(address: Address, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(address.url(), autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def made(address: Address) -> None:
    """Make a table, as a migration does."""
    with psycopg.connect(address.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE made (id int)")


LOCALES = {
    "a libc locale": "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    "another encoding": "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
    "the builtin provider": "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' TEMPLATE template0",
}


@pytest.mark.parametrize("like", LOCALES.values(), ids=LOCALES)
def test_a_scratch_database_has_encoding_and_locale_of_the_target(server: Server, like: str) -> None:
    with fresh_database(server, like=like) as database, scratch_of(database) as scratch:
        assert asked(scratch, LIKE) == database.query(LIKE)


@pytest.mark.extra
@pytest.mark.parametrize("major", [13, 15, 16])
def test_so_it_has_on_older_servers(major: int, request: pytest.FixtureRequest) -> None:
    like = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with fresh_database(request.getfixturevalue(f"pg{major}"), like=like) as database, scratch_of(database) as scratch:
        assert asked(scratch, LIKE) == database.query(LIKE)


def test_a_scratch_database_has_the_settings_of_the_target(database: Database) -> None:
    path = '"$user", "Odd ""Name"", quoted", app'
    database.execute(f"ALTER DATABASE {database.name} SET search_path = {path}")
    database.execute(f"ALTER DATABASE {database.name} SET app.tenant = 'it''s = one'")
    database.execute(f"ALTER ROLE postgres IN DATABASE {database.name} SET DateStyle = 'German'")
    database.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    settings = (
        "SELECT current_setting('search_path'), current_setting('app.tenant'), current_setting('DateStyle'), "
        "current_setting('default_transaction_read_only')"
    )
    expected = [(path, "it's = one", "German, DMY", "on")]
    with scratch_of(database) as scratch:
        assert asked(scratch, settings) == database.query(settings) == expected


def test_it_is_dropped_whatever_happens_and_whoever_is_connected(database: Database, server: Server) -> None:
    def ends() -> None:
        with scratch_of(database) as scratch:
            names.append(scratch.place.dbname)
            others.append(psycopg.connect(scratch.url()))
            others[0].execute("CREATE TABLE t (id int)")
            raise ZeroDivisionError

    names: list[str] = []
    others: list[psycopg.Connection[Any]] = []
    with pytest.raises(ZeroDivisionError):
        ends()
    assert names[0] not in left(server)
    with pytest.raises(psycopg.OperationalError):
        others[0].execute("SELECT 1")


def test_what_a_killed_run_left_is_swept_and_nothing_else(database: Database, server: Server) -> None:
    with ExitStack() as stack:
        # Like ours, and another database's; as ours, but with a letter too many.
        other = stack.enter_context(fresh_database(server, "alembic_entrypoint_scratch_1_0000002a"))
        oid = database.query("SELECT oid FROM pg_database WHERE datname = current_database()")[0][0]
        mine = stack.enter_context(fresh_database(server, f"alembic_entrypoint_scratch_{oid}_0000002a_"))
        holders = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", HOLDER, database.url], stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        stack.callback(lambda: [each.kill() for each in holders])
        dead, alive = [each.stdout.readline().strip() for each in holders if each.stdout]
        assert {dead, alive} <= left(server)
        holders[0].kill()
        holders[0].wait()
        gone = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {int(dead[-8:], 16)}"
        while database.query(gone) != [(0,)]:
            pass
        with scratch_of(database) as scratch:
            assert {alive, other.name, mine.name, scratch.place.dbname} <= left(server)
            assert dead not in left(server)
        assert {alive, other.name, mine.name} <= left(server)


def test_what_belonged_to_a_database_that_is_gone_is_swept(database: Database, server: Server) -> None:
    with fresh_database(server, "alembic_entrypoint_scratch_4294967295_0000002a"), scratch_of(database) as scratch:
        assert "alembic_entrypoint_scratch_4294967295_0000002a" not in left(server)
        assert scratch.place.dbname in left(server)


def test_a_role_that_may_not_create_databases_is_told_the_other_ways(database: Database) -> None:
    database.execute("DO $$ BEGIN CREATE ROLE no_creator LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    url = database.url.replace("postgres@", "no_creator@")
    with pytest.raises(Denied, match="permission denied to create database") as caught, scratch_of(database, url=url):
        pass
    for word in ("CREATEDB", "`embedded`", "URL", "`off`", "Nothing was changed"):
        assert word in caught.value.message


def test_off_refuses(database: Database) -> None:
    with pytest.raises(Refused, match="SCRATCH is off"), scratch_of(database, "off"):
        pass


def test_an_embedded_server_of_the_same_major_takes_the_place(database: Database, server: Server) -> None:
    with scratch_of(database, "embedded") as scratch:
        assert scratch.place.ports != parse(database.url).place.ports
        assert asked(scratch, "SELECT current_setting('server_version_num')::int / 10000") == [(server.major,)]
        assert scratch.place.dbname not in left(server)


@pytest.mark.extra
def test_so_it_has_with_icu(pg15: Server) -> None:
    like = "LOCALE_PROVIDER icu ICU_LOCALE 'de-u-co-phonebk' TEMPLATE template0"
    with fresh_database(pg15, like=like) as database, scratch_of(database) as scratch:
        assert asked(scratch, LIKE) == database.query(LIKE)


@pytest.mark.extra
def test_an_embedded_server_of_another_major_is_refused_by_name(pg15: Server) -> None:
    with (
        fresh_database(pg15) as database,
        pytest.raises(Misconfigured, match=r"is PostgreSQL 15, and the embedded PostgreSQL is 16 or 18"),
        scratch_of(database, "embedded"),
    ):
        pass


def test_a_url_names_a_server_and_its_database_is_left_alone(database: Database, server: Server) -> None:
    with fresh_database(server) as other:
        other.execute("CREATE TABLE kept (id int)")
        with scratch_of(database, parse(other.url)) as scratch:
            assert scratch.place.dbname not in (other.name, database.name)
            made(scratch)
        assert other.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(1,)]
        assert scratch.place.dbname not in left(server)


def test_a_url_without_a_database_is_enough(database: Database) -> None:
    address = parse(database.url)
    parameters = {name: value for name, value in address.parameters.items() if name != "dbname"}
    with scratch_of(database, dataclasses.replace(address, parameters=parameters)) as scratch:
        assert asked(scratch, "SELECT 1") == [(1,)]


def test_a_server_of_another_major_is_refused(database: Database, pg16: Server) -> None:
    other = parse(pg16.url)
    with pytest.raises(Misconfigured, match=r"18, and the server of .* is 16"), scratch_of(database, other):
        pass
    assert not left(pg16)
