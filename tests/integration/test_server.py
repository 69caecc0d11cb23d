"""Each server that is no good for migrating is named, with the way out, before anything is locked."""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from socket import create_connection

import pytest

from alembic_entrypoint.address import parse
from alembic_entrypoint.errors import Misconfigured
from alembic_entrypoint.lock import locked
from alembic_entrypoint.postgres import server as tripwires
from alembic_entrypoint.postgres.session import ALIVE, SESSION, apply
from alembic_entrypoint.wait import await_database, connect
from commands import Result, entrypoint
from projects import Project, project
from servers import Database, Server, own_server, pgbouncer

WAIT = 30.0
READY = b"Z\0\0\0\x05I"


class Renaming(socketserver.ThreadingTCPServer):
    """A relay to a real server that says something more of itself at each login: a ParameterStatus, as the protocol
    calls it. Every statement is answered by PostgreSQL, so that only what the server is called can be in the way."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, name: str, value: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.port = port
        text = f"{name}\0{value}\0".encode()
        self.status = b"S" + struct.pack("!i", len(text) + 4) + text


class _Relay(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Renaming)
        startup = b""
        with create_connection(("127.0.0.1", self.server.port)) as behind:
            ways = {self.request: behind, behind: self.request}
            while True:
                for one in select(list(ways), [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    if one is behind and READY not in startup:
                        # What was sent so far is part of the login; the last of it is that the server is ready.
                        startup += data
                        data = data.replace(READY, self.server.status + READY)
                    ways[one].sendall(data)


@contextmanager
def calling_itself(database: Database, name: str, value: str) -> Iterator[str]:
    """Give a URL under which a database's server says this of itself."""
    port = database.server.port
    assert port is not None
    with Renaming(port, name, value) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        try:
            yield database.url.replace(f":{port}/", f":{relay.server_address[1]}/")
        finally:
            relay.shutdown()


def run_on(folder: Path, url: str) -> Result:
    """Run all of it on an image with one migration."""
    project(folder).add_line(1)
    return entrypoint("run", "echo", "the app", cwd=folder, env={"DATABASE_URL": url})


COCKROACH = (
    "The server is CockroachDB, whose advisory locks do nothing: replicas would migrate at the same time.\n"
    "alembic-entrypoint is for PostgreSQL only."
)
YUGABYTE = (
    "The server is YugabyteDB (15.12-YB-2025.1.0.0-b0), whose advisory locks are missing or switched off: replicas "
    "would migrate at the same time.\nalembic-entrypoint is for PostgreSQL only."
)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("crdb_version", "CockroachDB CCL v25.3.0", COCKROACH),
        ("server_version", "15.12-YB-2025.1.0.0-b0", YUGABYTE),
    ],
)
def test_what_only_looks_like_postgresql_is_refused_by_name(
    tmp_path: Path, database: Database, name: str, value: str, message: str
) -> None:
    with calling_itself(database, name, value) as url:
        result = run_on(tmp_path, url)
    assert (result.code, result.stdout, result.message) == (78, "", message), result.stderr
    assert not result.named("server.examined")
    assert database.query("SELECT to_regclass('alembic_version')") == [(None,)]


def test_a_server_with_any_other_name_is_used(tmp_path: Path, database: Database) -> None:
    """The same relay, so that it is not the relay that is refused."""
    with calling_itself(database, "server_version", "18.4 (Debian 18.4-1.pgdg13+1)") as url:
        result = run_on(tmp_path, url)
    assert (result.code, result.stdout) == (0, "the app\n"), result.stderr
    assert result.named("server.examined")[0]["version"] == "18.4"


@pytest.mark.extra
def test_a_server_before_13_is_refused(tmp_path: Path) -> None:
    with own_server(12) as server:
        result = run_on(tmp_path, server.url)
        assert server.query("SELECT to_regclass('alembic_version')") == [(None,)]
    assert (result.code, result.stdout) == (78, ""), result.stderr
    assert result.message == (
        "The server is PostgreSQL 12.22; alembic-entrypoint is made for and tested on 13 to 18.\nUpgrade the server."
    )


def test_a_server_that_is_too_old_is_refused_and_the_oldest_is_not(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = int(database.query("SHOW server_version_num")[0][0])
    monkeypatch.setattr(tripwires, "OLDEST", number)
    assert await_database(parse(database.url), WAIT).server.number == number
    monkeypatch.setattr(tripwires, "OLDEST", number + 1)
    with pytest.raises(Misconfigured, match="Upgrade the server"):
        await_database(parse(database.url), WAIT)


READ_ONLY = "default_transaction_read_only"
#: How a session comes to be one that only reads, and what the message says ends that.
READING = {
    "database": ("ALTER DATABASE {0} SET {1} = on", "ALTER DATABASE {0} RESET {1}; Some services set it while"),
    "user": (
        "ALTER ROLE reads_{0} SET {1} = on",
        "ALTER ROLE reads_{0} RESET {1}; or set ALEMBIC_ENTRYPOINT_DATABASE_",
    ),
    "database user": (
        "ALTER ROLE reads_{0} IN DATABASE {0} SET {1} = on",
        "ALTER ROLE reads_{0} IN DATABASE {0} RESET {1}; or set ALEMBIC_ENTRYPOINT_DATABASE_URL to a role that may",
    ),
    "client": ("SELECT 1", "take it out of the URL's options, or out of PGOPTIONS."),
}


@pytest.fixture
def reader(server: Server, database: Database) -> Iterator[Database]:
    """Give a database with an owner of its own, whose sessions can be made to only read."""
    server.execute(f"CREATE ROLE reads_{database.name} LOGIN")
    server.execute(f"ALTER DATABASE {database.name} OWNER TO reads_{database.name}")
    yield database
    server.execute(f"DROP DATABASE {database.name} WITH (FORCE)")
    server.execute(f"DROP ROLE reads_{database.name}")


def url_of_owner(database: Database) -> str:
    return database.url.replace("//postgres@", f"//reads_{database.name}@")


def reading(database: Database, source: str) -> str:
    """Let sessions only read, and give their URL."""
    database.execute(READING[source][0].format(database.name, READ_ONLY))
    return url_of_owner(database) + (f"?options=-c%20{READ_ONLY}%3Don" if source == "client" else "")


@pytest.mark.parametrize(
    "source", [each if each == "database" else pytest.param(each, marks=pytest.mark.wide) for each in READING]
)
def test_a_session_that_may_only_read_is_refused_before_anything_is_locked(
    tmp_path: Path, reader: Database, source: str
) -> None:
    """It is no standby, and is not waited for: only a person can change it."""
    result = run_on(tmp_path, reading(reader, source))
    assert (result.code, result.stdout) == (78, ""), result.stderr
    assert not result.named("lock.acquired")
    assert result.message.startswith(
        f"The server lets this session only read: {READ_ONLY} is on, set by {source}. A migration would fail, and "
        "nothing could be recorded. Nothing was changed.\nWhat ends it: "
        + READING[source][1].format(reader.name, READ_ONLY)
    )
    assert reader.query("SELECT count(*) FROM pg_tables WHERE schemaname !~ '^(pg_|information_)'") == [(0,)]


def test_a_session_that_may_only_read_starts_where_there_is_nothing_to_do(tmp_path: Path, reader: Database) -> None:
    """Without a lock, whether the ledger knows the image, or not."""
    assert run_on(tmp_path, url_of_owner(reader)).code == 0
    url = reading(reader, "database")
    for is_known in (True, False):
        if not is_known:
            (tmp_path / "migrations" / "env.py").open("a").write("# of another image\n")
        result = run_on(tmp_path, url)
        assert (result.code, result.stdout) == (0, "the app\n"), result.stderr
        assert not result.named("lock.acquired")


@pytest.mark.wide
def test_what_never_writes_works_where_a_session_may_only_read(tmp_path: Path, reader: Database) -> None:
    assert run_on(tmp_path, url_of_owner(reader)).code == 0
    env = {"DATABASE_URL": reading(reader, "user"), "ALEMBIC_ENTRYPOINT_AWAIT_TIMEOUT": "1"}

    def code_of(*command: str) -> int:
        return entrypoint(*command, cwd=tmp_path, env=env).code

    assert [code_of("await", "head"), code_of("plan"), code_of("diagnose")] == [0, 0, 0]
    Project(tmp_path).add_line(1, first=2)
    assert [code_of("await", "head"), code_of("plan")] == [75, 0]
    found = entrypoint("diagnose", cwd=tmp_path, env=env)
    assert (found.code, "a session that may only read" in found.stdout) == (78, True), found.stdout
    assert f"ALTER ROLE reads_{reader.name} RESET {READ_ONLY}; or set" in found.stdout


@pytest.mark.extra
@pytest.mark.parametrize(
    ("mode", "is_shared"), [("session", False), ("transaction", True), ("statement", True)], ids=lambda each: str(each)
)
def test_session_pooling_is_told_from_transaction_and_statement_pooling(
    server: Server, database: Database, mode: str, is_shared: bool
) -> None:
    with pgbouncer(server, mode, default_pool_size=2) as pooler:
        address = parse(pooler.url_for(database.name))
        assert await_database(address, WAIT).server.is_pooled
        connection = connect(address, WAIT)
        try:
            assert tripwires.is_pooled(connection)
            assert tripwires.is_shared(connection, lambda: connect(address, WAIT)) is is_shared
        finally:
            connection.pgconn.finish()


def test_a_direct_connection_is_not_pooled(database: Database) -> None:
    assert not await_database(parse(database.url), WAIT).server.is_pooled


@pytest.mark.extra
def test_our_sessions_need_no_startup_parameters(server: Server, database: Database) -> None:
    """PgBouncer refuses `options`; what a session needs is set once it is there [E14]."""
    with pgbouncer(server, "session") as pooler:
        url = pooler.url_for(database.name)
        with pytest.raises(Exception, match="unsupported startup parameter"):
            Database(pooler, database.name).connect(options="-c idle_session_timeout=0")
        with connect(parse(url), WAIT) as connection:
            assert apply(connection, SESSION) == frozenset()
            for name in ("idle_session_timeout", "lock_timeout", "client_connection_check_interval"):
                row = connection.execute("SELECT setting FROM pg_settings WHERE name = %s", [name]).fetchone()
                assert row == (SESSION[name],)


def test_every_setting_of_a_session_is_one_that_anybody_may_set(database: Database) -> None:
    rows = database.query("SELECT name, context FROM pg_settings WHERE name = ANY(%s)", list(SESSION))
    assert dict(rows) == dict.fromkeys(SESSION, "user")


def test_a_setting_that_the_server_forbids_is_named_and_the_others_are_set(database: Database) -> None:
    """A managed service may pin one; here it is one that takes no such value [guc]."""
    with database.connect() as connection:
        assert apply(connection, {**ALIVE, "lock_timeout": "7000", "DateStyle": "of a service"}) == {"DateStyle"}
        row = connection.execute(
            "SELECT current_setting('lock_timeout'), current_setting('tcp_keepalives_idle', true)"
        ).fetchone()
        assert row is not None
        assert row[0] == "7s"


FORBIDDING = """
ALTER FUNCTION pg_catalog.set_config(text, text, boolean) RENAME TO set_config_freely;
CREATE FUNCTION pg_catalog.set_config(name text, value text, is_local boolean) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  IF name = 'client_connection_check_interval' THEN
    RAISE EXCEPTION 'parameter "%" cannot be changed now', name USING ERRCODE = '55P02';
  END IF;
  RETURN pg_catalog.set_config_freely(name, value, is_local);
END $$;
"""


def test_a_setting_that_cannot_be_changed_now_is_no_lost_connection(database: Database) -> None:
    """Though the class of its error is the same: who took it for one would look for the lock's holder in vain."""
    database.execute(FORBIDDING)
    with locked(parse(database.url), 0.0, WAIT, "alembic-entrypoint locking", lambda _: False) as held:
        assert held is not None
        assert held.forbidden == {"client_connection_check_interval"}
        assert held.connection.execute("SHOW idle_session_timeout").fetchone() == ("0",)


def test_a_setting_that_is_not_there_is_left_out(database: Database) -> None:
    """As `transaction_timeout` before 17, and `idle_session_timeout` before 14."""
    with database.connect() as connection:
        assert apply(connection, {"of_another_version": "1", "statement_timeout": "8000"}) == frozenset()
        assert connection.execute("SHOW statement_timeout").fetchone() == ("8s",)
