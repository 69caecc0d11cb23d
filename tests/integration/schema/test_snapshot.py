"""Proof: a snapshot is of the schema alone: not of the session, the role, the place or the moment."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from cases import HERE

from alembic_entrypoint.schema.difference import difference
from alembic_entrypoint.schema.facts import Kind, Snapshot, Thing
from alembic_entrypoint.schema.snapshot import take, take_within
from conftest import IGNORED, Rich, snapshot_of
from dumps import dumped, normalised, restore
from servers import Database, Server, fresh_database, wait_until

SETTINGS = {
    "search_path": 'app, "Odd ""Schema""", public',
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "extra_float_digits": "-3",
    "xmlbinary": "hex",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "statement_timeout": "1s",
    "client_min_messages": "error",
    "role": "pg_monitor",
}


def equal(here: Snapshot, there: Snapshot) -> bool:
    """Compare in both ways that there are, and show what differs."""
    assert [each.line() for each in difference(here, there)] == []
    return here.digest == there.digest


@contextmanager
def restored(database: Database, *options: str) -> Iterator[Database]:
    assert isinstance(database.server, Server)
    with fresh_database(database.server, like="TEMPLATE template0") as copy:
        restore(dumped(database, *options), copy)
        yield copy


def test_a_dump_restored_gives_an_equal_snapshot(rich: Rich) -> None:
    with restored(rich.database) as copy:
        assert equal(rich.snapshot, snapshot_of(copy))
        # The dumps differ here, for they have no normal form: without one this test would fail.
        assert normalised(copy) != rich.dump


def test_a_dump_of_a_restored_dump_gives_an_equal_snapshot(rich: Rich) -> None:
    with restored(rich.database) as copy, restored(copy) as again:
        assert equal(rich.snapshot, snapshot_of(again))


def test_expressions_of_every_form_survive_a_dump_and_restore(server: Server) -> None:
    with fresh_database(server) as database:
        database.execute((HERE / "expressions.sql").read_text())
        if server.major >= 14:
            database.execute((HERE / "bodies.sql").read_text())
        with restored(database) as copy:
            assert equal(snapshot_of(database), snapshot_of(copy))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_session_does_not_matter(rich: Rich, name: str) -> None:
    with rich.database.connect() as connection:
        connection.execute("SELECT set_config(%s, %s, false)", (name, SETTINGS[name]))
        assert equal(rich.snapshot, take(connection, ignore=IGNORED))


def test_the_settings_of_a_database_do_not_matter(rich: Rich) -> None:
    with rich.copy() as database:
        with database.connect() as connection:
            for name, value in SETTINGS.items():
                if name != "role":
                    quoted = value if name == "search_path" else f"'{value}'"
                    connection.execute(f'ALTER DATABASE "{database.name}" SET {name} = {quoted}'.encode())
        with database.connect() as connection:
            assert connection.execute("SHOW bytea_output").fetchall() == [("escape",)]
            assert equal(rich.snapshot, take(connection, ignore=IGNORED))


def test_a_role_without_any_right_sees_the_same(rich: Rich) -> None:
    name = f"nobody_{secrets.token_hex(4)}"
    with rich.copy() as database:
        database.execute(f"REVOKE ALL ON SCHEMA public, app FROM PUBLIC; CREATE ROLE {name} LOGIN")
        try:
            with database.connect(user=name) as connection:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute("SELECT * FROM app.orders")
                assert equal(rich.snapshot, take(connection, ignore=IGNORED))
        finally:
            database.execute(f"DROP ROLE {name}")


#: What is sorted by name where order does not count: `t1` comes before `t_1` by its bytes, and after it in English.
SORTED = """
CREATE TABLE t1 (); CREATE TABLE t_1 (); CREATE TABLE heir () INHERITS (t1, t_1);
CREATE FUNCTION f() RETURNS integer LANGUAGE sql SET app.t1 = 'x' SET app.t_1 = 'x' AS 'SELECT 1';
CREATE FOREIGN TABLE far (a integer) SERVER elsewhere OPTIONS (t1 'x', t_1 'x');
ALTER FOREIGN TABLE far ALTER a OPTIONS (t1 'x', t_1 'x');
CREATE POLICY p ON t1 TO {role}1, {role}_1;
"""


@pytest.mark.extra
def test_the_locale_of_the_database_does_not_matter(pg15: Server) -> None:
    role = f"t{secrets.token_hex(4)}"
    pg15.execute(f"CREATE ROLE {role}1; CREATE ROLE {role}_1")
    text = (HERE / "rich.sql").read_text() + SORTED.format(role=role)
    icu = "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' TEMPLATE template0"
    with fresh_database(pg15) as database, fresh_database(pg15, like=icu) as other:
        for each in (database, other):
            each.execute(text)
        assert other.query("SELECT 't_1' < 't1'") != database.query("SELECT 't_1' < 't1'")
        assert equal(snapshot_of(database), snapshot_of(other))
    pg15.execute(f"DROP ROLE {role}1; DROP ROLE {role}_1")


def test_a_database_without_an_encoding_can_be_read(server: Server) -> None:
    with fresh_database(server, like="TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'") as database:
        with database.connect() as connection:
            connection.execute((HERE / "rich.sql").read_bytes())
        odd = Thing(Kind.COLUMN, 'Odd "Schema"', 'Odd "Table"', "Ünï")
        assert snapshot_of(database).facts[odd]["type"] == "character varying(5)"


def test_the_session_is_as_before(rich: Rich) -> None:
    everything = "SELECT name, setting FROM pg_settings ORDER BY name"
    with rich.database.connect() as connection:
        for name, value in SETTINGS.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        before = connection.execute(everything).fetchall()
        take(connection)
        assert connection.execute(everything).fetchall() == before
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_snapshot_is_one_message_to_the_server_however_much_there_is(rich: Rich, tmp_path: Path) -> None:
    with rich.database.connect() as connection, (tmp_path / "trace").open("w+") as trace:
        connection.pgconn.trace(trace.fileno())
        take(connection)
        connection.pgconn.untrace()
        trace.seek(0)
        sent = [line.split("\t")[3] for line in trace if line.split("\t")[1:2] == ["F"]]
    assert sent == ["Query"]


def test_a_connection_with_a_transaction_is_refused(rich: Rich) -> None:
    with rich.database.connect() as connection, connection.transaction():
        connection.execute("CREATE TABLE extra ()")
        with pytest.raises(ValueError, match="autocommit"):
            take(connection)
        connection.execute("DROP TABLE extra")
    with rich.database.connect(autocommit=False) as connection, pytest.raises(ValueError, match="autocommit"):
        take(connection)


def test_within_a_transaction_it_is_the_same_and_holds_what_was_made_there(rich: Rich) -> None:
    everything = "SELECT name, setting FROM pg_settings ORDER BY name"
    with rich.database.connect() as connection, connection.transaction(force_rollback=True):
        before = connection.execute(everything).fetchall()
        assert equal(rich.snapshot, take_within(connection, ignore=IGNORED))
        connection.execute("CREATE TABLE extra ()")
        assert Thing(Kind.RELATION, "public", "extra", "") in take_within(connection, ignore=IGNORED).facts
        assert connection.execute(everything).fetchall() == before


def test_a_table_that_is_ignored_goes_with_all_that_belongs_to_it(rich: Rich) -> None:
    with rich.database.connect() as connection:
        kept = take(connection, ignore=[("app", "*"), ("public", "user*"), ("nowhere", "*")]).facts
    assert not [thing for thing in kept if thing.schema == "app" or thing.name.startswith("users")]
    assert Thing(Kind.RELATION, "public", "kinds", "") in kept


def test_a_sequence_goes_with_the_ignored_table_that_owns_it(rich: Rich) -> None:
    with rich.copy() as database, database.connect() as connection:
        connection.execute("ALTER SEQUENCE users_id_seq RENAME TO another")
        kept = take(connection, ignore=[("public", "users")]).facts
        assert Thing(Kind.SEQUENCE, "public", "another", "") not in kept
        assert Thing(Kind.SEQUENCE, "app", "ticket", "") in kept


def test_it_waits_no_longer_than_its_lock_timeout_and_is_then_as_before(rich: Rich) -> None:
    with rich.database.connect() as blocker, rich.database.connect() as connection:
        with blocker.transaction():
            blocker.execute("LOCK TABLE users, app.orders, app.events IN ACCESS EXCLUSIVE MODE")
            start = time.monotonic()
            with pytest.raises(psycopg.errors.LockNotAvailable):
                take(connection, ignore=IGNORED, lock_timeout=0.6)
            assert 0.5 < time.monotonic() - start < 1.6
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert equal(rich.snapshot, take(connection, ignore=IGNORED, lock_timeout=0.6))


def test_what_is_dropped_while_it_reads_is_read_again(rich: Rich) -> None:
    taken: list[Snapshot] = []
    with rich.copy() as database, database.connect() as dropper, database.connect() as connection:
        reader = threading.Thread(target=lambda: taken.append(take(connection, lock_timeout=30)))
        with dropper.transaction():
            dropper.execute("DROP VIEW admins, kinds")
            reader.start()
            wait_until(lambda: database.query("SELECT FROM pg_locks WHERE NOT granted"), what="it waits")
        reader.join()
        assert equal(taken[0], take(connection))
        assert Thing(Kind.RELATION, "public", "admins", "") not in taken[0].facts


def test_it_is_taken_while_other_sessions_change_the_schema(rich: Rich) -> None:
    done = threading.Event()
    with rich.copy() as database, database.connect() as changer, database.connect() as connection:

        def change() -> None:
            while not done.is_set():
                changer.execute("CREATE TABLE extra (a serial PRIMARY KEY, b text DEFAULT 'x' CHECK (b > ''))")
                changer.execute("CREATE VIEW extras AS SELECT * FROM extra; CREATE INDEX ON extra (lower(b))")
                changer.execute("DROP TABLE extra CASCADE")

        other = threading.Thread(target=change)
        other.start()
        try:
            names = {thing.name for _ in range(30) for thing in take(connection, ignore=IGNORED).facts}
        finally:
            done.set()
            other.join()
        assert "users" in names
        assert equal(rich.snapshot, take(connection, ignore=IGNORED))
