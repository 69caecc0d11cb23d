"""The servers that the tests are built on keep their own promises."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import servers
from servers import (
    Database,
    Server,
    fresh_database,
    is_running,
    own_server,
    pgbouncer,
    processes_of,
    standby_of,
    wait_until,
)

MAJOR = "SELECT current_setting('server_version_num')::int / 10000"


@pytest.mark.parametrize(
    "major",
    [
        pytest.param(13, marks=pytest.mark.extra),
        pytest.param(15, marks=pytest.mark.extra),
        16,
        18,
    ],
)
def test_each_shared_server_is_of_its_major(major: int, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(f"pg{major}")
    assert server.query(MAJOR) == [(major,)]
    with fresh_database(server) as database:
        assert database.query("SELECT current_database()") == [(database.name,)]


def test_the_default_server_is_of_the_chosen_major(server: Server) -> None:
    assert server.query(MAJOR) == [(servers.MAJOR,)]


def test_a_missing_server_fails_the_test_with_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers.EXTRA_MAJORS, 13, Path("/nowhere/bin"))
    with pytest.raises(pytest.fail.Exception, match=r"in /nowhere/bin: run tests/install-extra\.sh"):
        servers.binaries_of(13)
    with pytest.raises(pytest.fail.Exception, match="no PostgreSQL 9"):
        servers.binaries_of(9)


def test_a_database_is_empty_and_answers_with_tuples(database: Database) -> None:
    assert database.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    database.execute("CREATE TABLE users (name text); INSERT INTO users VALUES ('a'), ('100%')")
    assert database.query("SELECT name FROM users WHERE name = %s", "a") == [("a",)]
    assert database.query("SELECT name FROM users WHERE name LIKE '%0%'") == [("100%",)]


def test_a_connection_commits_by_itself_unless_told_otherwise(database: Database) -> None:
    with database.connect() as one, database.connect(autocommit=False) as other:
        assert (one.autocommit, other.autocommit) == (True, False)


def test_a_fresh_database_is_dropped_whoever_is_connected(server: Server) -> None:
    with fresh_database(server) as database:
        connection = database.connect()
    assert server.query("SELECT 1 FROM pg_database WHERE datname = %s", database.name) == []
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")


def test_a_database_may_have_any_name_and_be_made_like_another(server: Server, database: Database) -> None:
    database.execute("CREATE TABLE users ()")
    with fresh_database(server, 'we"ird %41', f"TEMPLATE {database.name}") as copy:
        assert copy.query("SELECT current_database(), count(*) FROM users") == [('we"ird %41', 0)]


SCRUBBED = ("ALEMBIC_ENTRYPOINT_TARGET", "DATABASE_URL", "DATABASE_URL_FILE", "ALEMBIC_CONFIG", "PGPORT")


@pytest.fixture(scope="module")
def loud_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in SCRUBBED:
            patch.setenv(name, "1")
        yield


@pytest.mark.usefixtures("loud_environment")
def test_the_environment_answers_for_no_test() -> None:
    assert [name for name in SCRUBBED if name in os.environ] == []


def test_wait_until_returns_what_it_waited_for() -> None:
    answers = iter([0, "", None, "here"])
    assert wait_until(lambda: next(answers), interval=0) == "here"


def test_wait_until_fails_with_what_it_waited_for() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"not within 0.05 s: the moon .*\[\]"):
        wait_until(list, timeout=0.05, what="the moon")


def test_a_private_server_has_its_settings_and_its_pg_hba_conf() -> None:
    rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    with own_server(settings={"idle_session_timeout": "7s"}, hba=rules) as server:
        assert server.query("SHOW idle_session_timeout") == [("7s",)]
        server.execute("CREATE ROLE app LOGIN PASSWORD 'secret'")
        assert server.connect(user="app", password="secret").info.user == "app"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            server.connect(user="app", password="wrong")
        assert 'password authentication failed for user "app"' in server.log


@pytest.mark.extra
def test_a_server_with_tls_encrypts_and_its_certificate_names_it() -> None:
    only_tls = "hostssl all all 127.0.0.1/32 trust\n"
    with own_server(15, hba=only_tls, tls=True) as server:
        assert server.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            server.connect(sslmode="disable")
        checked = {"sslmode": "verify-full", "sslrootcert": server.sockets / "server.crt"}
        with server.connect(**checked) as connection:
            assert connection.pgconn.ssl_in_use


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_private_server_stops_and_starts_on_its_port_with_its_data(mode: str) -> None:
    with own_server() as server:
        server.execute("CREATE TABLE users ()")
        port, pid, connection = server.port, server.pid, server.connect()
        server.stop(mode)
        assert not is_running(pid)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="refused"):
            server.connect()
        assert ("immediate shutdown" in server.log) == (mode == "immediate")
        server.start()
        assert (server.port, server.query("SELECT count(*) FROM users")) == (port, [(0,)])


def test_a_frozen_server_takes_connections_and_answers_nobody_until_it_thaws() -> None:
    with own_server() as server, server.connect() as connection:
        server.freeze()
        states = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] for pid in processes_of(server.pid)]
        assert set(states) == {"T"}
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            server.connect(connect_timeout=2)
        server.thaw()
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
        assert server.query("SELECT 1") == [(1,)]


def test_a_frozen_server_is_still_ended() -> None:
    with own_server() as server:
        family = processes_of(server.pid)
        server.freeze()
        began = time.monotonic()
    assert not any(is_running(pid) for pid in family)
    assert time.monotonic() - began < 5


def test_a_standby_is_in_recovery_follows_its_primary_and_takes_over() -> None:
    with own_server() as primary, standby_of(primary) as standby:
        assert standby.query("SELECT pg_is_in_recovery()") == [(True,)]
        primary.execute("CREATE TABLE users ()")
        wait_until(lambda: standby.query("SELECT to_regclass('users')") != [(None,)], what="replicated")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            standby.execute("CREATE TABLE more ()")
        standby.promote()
        standby.execute("CREATE TABLE more ()")
        assert primary.query("SELECT to_regclass('more')") == [(None,)]


@pytest.mark.extra
@pytest.mark.parametrize(("pool_mode", "shared"), [("transaction", True), ("session", False)])
def test_pgbouncer_shares_backends_in_transaction_mode_only(
    server: Server, database: Database, pool_mode: str, shared: bool
) -> None:
    with pgbouncer(server, pool_mode, default_pool_size=2) as pooler:
        view = Database(pooler, database.name)
        with view.connect() as one, view.connect() as other:
            backends = {each.execute("SELECT pg_backend_pid()").fetchone() for each in (one, other)}
            assert (len(backends) == 1) == shared
            assert one.info.backend_pid != other.info.backend_pid
        assert is_running(pooler.process.pid)
        assert Path(f"/proc/{pooler.process.pid}").stat().st_uid != 0
    assert not is_running(pooler.process.pid)


@pytest.mark.extra
def test_pgbouncer_lets_every_role_of_the_server_in() -> None:
    with own_server() as server:
        server.execute("CREATE ROLE app LOGIN")
        with pgbouncer(server, "session") as pooler, pooler.connect(user="app") as connection:
            assert connection.execute("SELECT current_user").fetchall() == [("app",)]
