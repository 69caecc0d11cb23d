"""What PostgreSQL does with simpler locks than ours: each line of the protocol answers one of these."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy as sa
from psycopg.pq import ConnStatus
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_entrypoint.address import parse
from alembic_entrypoint.lock import locked
from servers import Database, Server, own_server, pgbouncer, standby_of, wait_until

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


def by_psycopg2_repeatable_read(url: str) -> Any:
    connection = psycopg2.connect(url)
    connection.set_session(isolation_level="REPEATABLE READ")
    return connection


def by_psycopg(url: str) -> Any:
    return psycopg.connect(url)


def by_client_cursor(url: str) -> Any:
    return psycopg.connect(url, cursor_factory=psycopg.ClientCursor)


@pytest.mark.parametrize("kind", ["lock", "xact_lock"])
@pytest.mark.parametrize(
    ("connect", "stalls"),
    [
        (by_psycopg2, False),
        (by_psycopg2_repeatable_read, True),
        (by_psycopg, True),
        (by_client_cursor, False),
    ],
    ids=["psycopg2", "psycopg2, repeatable read", "psycopg", "client cursor"],
)
def test_a_holder_that_is_idle_in_a_transaction_may_stall_a_build(
    database: Database, connect: Callable[[str], Any], stalls: bool, kind: str
) -> None:
    """E3, E4: by isolation and the driver's way of sending parameters; a session's lock or a transaction's."""
    holder = connect(database.url)
    try:
        cursor = holder.cursor()
        cursor.execute(f"SELECT pg_advisory_{kind}(%s)", (KEY,))
        assert is_stalled(database) is stalls
    finally:
        holder.close()


TRY = f"SELECT pg_try_advisory_lock({KEY})"


async def is_stalled_beside(url: str, database: Database, driver: str, mode: str) -> bool:
    """Hold a lock on a connection of SQLAlchemy's; tell whether an index cannot be built concurrently beside it."""
    options = {"isolation_level": "AUTOCOMMIT"} if mode == "AUTOCOMMIT" else {}
    url = url.replace("postgresql://", f"postgresql+{driver}://")
    text = sa.text(TRY.replace(str(KEY), ":key"))
    if driver != "asyncpg":
        with sa.create_engine(url, poolclass=sa.pool.NullPool, **options).connect() as holder:
            holder.execute(text, {"key": KEY})
            if mode == "commit()":
                holder.commit()
            return is_stalled(database)
    async with create_async_engine(url, poolclass=sa.pool.NullPool, **options).connect() as holder:
        await holder.execute(text, {"key": KEY})
        if mode == "commit()":
            await holder.commit()
        return is_stalled(database)


@pytest.mark.parametrize("mode", ["default", "AUTOCOMMIT", "commit()"])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_a_lock_on_a_connection_of_sqlalchemys_may_stall_a_build(database: Database, driver: str, mode: str) -> None:
    """E12: it begins a transaction by itself; what that does is the driver's affair."""
    stalls = mode == "default" and driver != "psycopg2"
    assert asyncio.run(is_stalled_beside(database.url, database, driver, mode)) is stalls


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


@pytest.mark.parametrize(
    ("timeout", "begin", "sqlstate"),
    [("idle_session_timeout", "SELECT 1", "57P05"), ("idle_in_transaction_session_timeout", "BEGIN", "25P03")],
)
def test_an_idle_timeout_takes_a_lock_and_says_so_only_when_it_is_used_next(
    database: Database, timeout: str, begin: str, sqlstate: str
) -> None:
    """E7: by then somebody else has it."""
    with database.connect() as holder:
        holder.execute(f"SET {timeout} = '100ms'")
        holder.execute(begin)
        assert holder.execute(TRY).fetchone() == (True,)
        wait_until(lambda: is_free(database))
        assert holder.pgconn.status == ConnStatus.OK
        with pytest.raises(psycopg.Error) as caught:
            holder.execute("SELECT 1")
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


def test_a_lock_on_a_session_of_its_own_is_had_by_the_next_while_the_dead_ones_statement_runs(
    database: Database,
) -> None:
    """E5: the statement's session is looked at only when it ends."""
    lock, work = database.connect(), database.connect(application_name="the dead")
    assert lock.execute(TRY).fetchone() == (True,)
    work.pgconn.send_query(b"INSERT INTO t SELECT 1 FROM pg_sleep(3)")
    running = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the dead' AND state = 'active'"
    wait_until(lambda: database.query(running) == [(1,)])
    for connection in (lock, work):  # as the end of their process does
        connection.pgconn.finish()
    with database.connect() as successor:
        wait_until(lambda: successor.execute(TRY).fetchone() == (True,))
        assert database.query(running) == [(1,)]
        wait_until(
            lambda: database.query("SELECT id FROM t") == [(1,)], what="what the dead one did, after it was dead"
        )


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


HBA = "host all postgres 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\n"


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    """Give a server that asks one role for a password."""
    with own_server(hba=HBA) as server:
        server.execute("CREATE ROLE app LOGIN PASSWORD 'right'")
        yield server


@pytest.mark.parametrize(
    ("login", "sqlstate"),
    [("postgres@{}/nowhere", "3D000"), ("app:wrong@{}/postgres", "28P01")],
    ids=["3D000", "28P01"],
)
def test_who_is_not_let_in_learns_why_by_a_code_only_from_asyncpg(strict: Server, login: str, sqlstate: str) -> None:
    """E13: so what libpq's drivers raise is read."""
    url = f"postgresql://{login.format(f'127.0.0.1:{strict.port}')}"
    with pytest.raises(psycopg2.OperationalError) as of_psycopg2:
        psycopg2.connect(url)
    with pytest.raises(psycopg.OperationalError) as of_psycopg:
        psycopg.connect(url)
    with pytest.raises(asyncpg.PostgresError) as of_asyncpg:
        asyncio.run(asyncpg.connect(url, ssl=False))
    codes = of_psycopg2.value.pgcode, of_psycopg.value.sqlstate, of_asyncpg.value.sqlstate
    assert codes == (None, None, sqlstate)


def test_pg_isready_asks_for_neither_role_nor_database(strict: Server) -> None:
    """E13: ready is not usable [H26]."""
    place = ["-h", "127.0.0.1", "-p", str(strict.port), "-U", "nobody", "-d", "nowhere"]
    assert subprocess.run([strict.binaries / "pg_isready", "-q", *place], check=False).returncode == 0


def test_through_a_transaction_pooler_two_hold_one_lock_and_leave_it_there(database: Database) -> None:
    """E14: it is a session of the pooler's that holds it, until that ends."""
    assert isinstance(database.server, Server)
    with pgbouncer(database.server, "transaction", default_pool_size=1) as pooler:
        through = Database(pooler, database.name)
        with through.connect(prepare_threshold=None) as one, through.connect(prepare_threshold=None) as other:
            assert one.execute(TRY).fetchone() == other.execute(TRY).fetchone() == (True,)
        assert not is_free(database), "both are gone"


def test_a_standby_grants_what_its_primary_holds_and_writes_nothing() -> None:
    """E16: and libpq, told to look for a primary, says so without a code."""
    with own_server() as primary, standby_of(primary) as standby, primary.connect() as holder:
        assert holder.execute(TRY).fetchone() == (True,)
        with standby.connect() as other:
            assert other.execute(TRY).fetchone() == (True,)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
                other.execute("CREATE TABLE t ()")
        assert caught.value.sqlstate == "25006"
        with pytest.raises(psycopg.OperationalError, match=r"read-only|standby") as refused:
            standby.connect(target_session_attrs="read-write")
        assert refused.value.sqlstate is None


def test_a_lock_of_one_database_is_free_in_another(database: Database) -> None:
    """E16: a key belongs to a database, and not to the server."""
    with database.connect() as holder:
        assert holder.execute(TRY).fetchone() == (True,)
        assert not is_free(database)
        assert is_free(Database(database.server, "postgres"))
