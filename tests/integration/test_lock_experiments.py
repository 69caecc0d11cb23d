"""What PostgreSQL does with simpler locks than ours: each line of the protocol answers one of these."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import psycopg2
import pytest

from alembic_entrypoint.address import parse
from alembic_entrypoint.lock import locked
from servers import Database, wait_until

pytestmark = pytest.mark.extra

BUILD = "CREATE INDEX CONCURRENTLY t_id ON t (id)"
KEY = 7


@pytest.fixture
def database(database: Database) -> Database:
    database.execute("CREATE TABLE t (id int)")
    return database


def is_stalled(database: Database) -> bool:
    """Tell whether an index cannot be built concurrently: it waits, for seconds, and is cancelled."""
    with database.connect() as connection:
        connection.execute("SET statement_timeout = '3s'")
        try:
            connection.execute(BUILD)
        except psycopg.errors.QueryCanceled:
            return True
    return False


def waits_inside(database: Database) -> bool:
    return database.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == [(1,)]


def is_free(database: Database) -> bool:
    return database.query(f"SELECT pg_try_advisory_lock({KEY})") == [(True,)]


def test_a_waiter_inside_postgresql_stalls_a_concurrent_build(database: Database) -> None:
    """E1a: it is active and holds a snapshot; nothing tells of a deadlock."""
    with database.connect() as holder, database.connect() as waiter:
        holder.execute(f"SELECT pg_advisory_lock({KEY})")
        thread = threading.Thread(target=waiter.execute, args=(f"SELECT pg_advisory_lock({KEY})",))
        thread.start()
        wait_until(lambda: waits_inside(database))
        assert is_stalled(database)
        holder.execute(f"SELECT pg_advisory_unlock({KEY})")
        thread.join()


def test_a_build_on_the_locks_own_session_ends_a_waiter_by_deadlock(database: Database) -> None:
    """E1b: there the lock is waited for by one whom the build waits for."""
    ends: list[psycopg.Error] = []

    def note(work: Callable[[], object]) -> None:
        try:
            work()
        except psycopg.Error as error:
            ends.append(error)

    with database.connect() as holder, database.connect() as waiter:
        holder.execute("SET deadlock_timeout = '100ms'")
        holder.execute(f"SELECT pg_advisory_lock({KEY})")
        thread = threading.Thread(target=note, args=(lambda: waiter.execute(f"SELECT pg_advisory_lock({KEY})"),))
        thread.start()
        wait_until(lambda: waits_inside(database))
        note(lambda: holder.execute(BUILD))
        holder.execute(f"SELECT pg_advisory_unlock({KEY})")
        thread.join()
    assert [error.sqlstate for error in ends] == ["40P01"]


def test_those_who_only_try_stall_no_build(database: Database) -> None:
    """E2: as our waiters do."""
    over = threading.Event()

    def poll() -> None:
        with database.connect() as connection:
            while not over.wait(0.05):
                connection.execute(f"SELECT pg_try_advisory_lock({KEY})")

    with database.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({KEY})")
        threads = [threading.Thread(target=poll) for _ in range(10)]
        for thread in threads:
            thread.start()
        try:
            assert not is_stalled(database)
        finally:
            over.set()
            for thread in threads:
                thread.join()


def by_psycopg2(url: str) -> Any:
    return psycopg2.connect(url)


def by_psycopg(url: str) -> Any:
    return psycopg.connect(url)


def by_client_cursor(url: str) -> Any:
    return psycopg.connect(url, cursor_factory=psycopg.ClientCursor)


@pytest.mark.parametrize("kind", ["lock", "xact_lock"])
@pytest.mark.parametrize(
    ("connect", "stalls"),
    [(by_psycopg2, False), (by_psycopg, True), (by_client_cursor, False)],
    ids=["psycopg2", "psycopg", "client cursor"],
)
def test_a_holder_that_is_idle_in_a_transaction_may_stall_a_build(
    database: Database, connect: Callable[[str], Any], stalls: bool, kind: str
) -> None:
    """E3, E4, E12: by the driver's way of sending parameters, whether the lock is a session's or a transaction's."""
    holder = connect(database.url)
    try:
        cursor = holder.cursor()
        cursor.execute(f"SELECT pg_advisory_{kind}(%s)", (KEY,))
        assert is_stalled(database) is stalls
    finally:
        holder.close()


def test_our_holder_stalls_no_build(database: Database) -> None:
    """E3, E12: in autocommit mode it is idle, and in no transaction."""
    with locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False) as held:
        assert held is not None
        assert not is_stalled(database)


@pytest.mark.parametrize(("timeout", "sqlstate"), [("lock_timeout", "55P03"), ("statement_timeout", "57014")])
def test_an_administrators_timeout_ends_a_wait_inside_postgresql(
    database: Database, timeout: str, sqlstate: str
) -> None:
    """E8: and none of our tries, which take no time."""
    database.execute(f"ALTER DATABASE {database.name} SET {timeout} = '100ms'")
    with database.connect() as holder, database.connect() as waiter:
        holder.execute(f"SELECT pg_advisory_lock({KEY})")
        with pytest.raises(psycopg.Error) as caught:
            waiter.execute(f"SELECT pg_advisory_lock({KEY})")
    assert caught.value.sqlstate == sqlstate


def test_a_waiter_that_has_died_stays_in_line_and_takes_the_lock(database: Database) -> None:
    """E9: the server does not look whether its client is still there."""
    with database.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({KEY})")
        waiter = database.connect(application_name="the dead")
        waiter.pgconn.send_query(f"SELECT pg_advisory_lock({KEY}), pg_sleep(3)".encode())
        wait_until(lambda: waits_inside(database))
        waiter.pgconn.finish()
        assert waits_inside(database)
        holder.execute(f"SELECT pg_advisory_unlock({KEY})")
        held_by = (
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
            "WHERE l.locktype = 'advisory' AND l.granted"
        )
        wait_until(lambda: database.query(held_by) == [("the dead",)])


def test_a_transactions_lock_is_gone_after_its_commit(database: Database) -> None:
    """E10: as in the middle of an `autocommit_block()`."""
    with psycopg.connect(database.url) as holder:
        holder.execute(f"SELECT pg_advisory_xact_lock({KEY})")
        assert not is_free(database)
        holder.commit()
        assert is_free(database)


def test_a_lock_timeout_leaves_an_invalid_index_that_is_taken_for_one(database: Database) -> None:
    """E11: the next try "succeeds", and the index is still of no use."""
    with database.connect() as writer, database.connect() as builder:
        writer.execute("BEGIN; INSERT INTO t VALUES (1)")
        builder.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            builder.execute(BUILD)
        writer.execute("COMMIT")
        builder.execute(BUILD.replace("CONCURRENTLY", "CONCURRENTLY IF NOT EXISTS"))
    assert database.query("SELECT indisvalid FROM pg_index WHERE indexrelid = 't_id'::regclass") == [(False,)]


def test_a_lock_that_was_taken_twice_is_held_until_it_is_freed_twice(database: Database) -> None:
    """E16: so one object owns ours, and looks at what the unlock says."""
    with database.connect() as holder:
        for _ in range(2):
            holder.execute(f"SELECT pg_advisory_lock({KEY})")
        for is_still_held in (True, False):
            holder.execute(f"SELECT pg_advisory_unlock({KEY})")
            assert is_free(database) is not is_still_held
        assert holder.execute(f"SELECT pg_advisory_unlock({KEY})").fetchone() == (False,)


@pytest.mark.parametrize("interval", ["0", "100"])
def test_a_dead_clients_statement_ends_early_only_where_the_server_looks(database: Database, interval: str) -> None:
    """E5, E5b: from 14 on, where `client_connection_check_interval` tells it to."""
    client = database.connect(application_name="the dead")
    client.execute(f"SET client_connection_check_interval = {interval}")
    client.execute(f"SELECT pg_advisory_lock({KEY})")
    client.pgconn.send_query(b"SELECT pg_sleep(5)")
    running = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the dead' AND state = 'active'"
    wait_until(lambda: database.query(running) == [(1,)])
    client.pgconn.finish()
    died = time.monotonic()
    wait_until(lambda: is_free(database), 30)
    lasted = time.monotonic() - died
    with suppress(psycopg.Error):
        client.close()
    assert (lasted > 2.5) is (interval == "0"), lasted
