"""Waiting for the database: what may pass is waited for, what a person must mend ends soon, and both say why."""

from __future__ import annotations

import signal
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from alembic_entrypoint.postgres import embedded
from commands import Result, Running, entrypoint, started
from projects import Project, project
from servers import Server, own_server, standby_of, wait_until

GRACE = 5.0


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add_line(1)
    return made


def waited_in_vain(folder: Path, url: str, timeout: float = 1.5) -> Result:
    """Wait for a database that does not get ready; see that all of the timeout was waited, and not much more."""
    began = time.monotonic()
    env = {"DATABASE_URL": url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": str(timeout)}
    result = entrypoint("run", "echo", "the app", cwd=folder, env=env)
    elapsed = time.monotonic() - began
    assert (result.code, result.stdout) == (69, ""), result.stderr
    assert result.message.startswith("The database was not ready within ")
    assert timeout < elapsed < timeout + 15
    return result


def reasons(result: Result | Running) -> list[str]:
    return [each["reason"] for each in result.events if each["event"] == "database.waiting"]


@contextmanager
def waiting(tree: Project, url: str, reason: str) -> Iterator[Running]:
    """Start a run, and go on as soon as it waits for this reason."""
    env = {"DATABASE_URL": url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "60"}
    with started(tree.folder, "run", "echo", "the app", env=env) as running:
        wait_until(lambda: any(reason in each for each in reasons(running)), 20, what=reason)
        yield running


def goes_on_at_once(running: Running) -> None:
    """See that a run whose database has just got ready notices, and gets to its end."""
    wait_until(lambda: running.has("database.ready"), 15, what="database.ready")
    result = running.end()
    assert (result.code, result.stdout) == (0, "the app\n"), result.stderr


# --- a server that says what a test wants --------------------------------------------------------------------------

AUTHENTICATED = b"R\0\0\0\x08\0\0\0\0" + b"S\0\0\0\x18server_version\x0018.0\0" + b"Z\0\0\0\x05I"


def refusal(sqlstate: str, text: str) -> bytes:
    """Make an ErrorResponse: see PostgreSQL's documentation, "Message Formats"."""
    fields = b"".join(
        kind + value.encode() + b"\0" for kind, value in ((b"S", "FATAL"), (b"C", sqlstate), (b"M", text))
    )
    return b"E" + struct.pack("!i", len(fields) + 5) + fields + b"\0"


STARTING = refusal("57P03", "the database system is starting up")
FULL = refusal("53300", "sorry, too many clients already")
MISSING = refusal("3D000", 'database "app" does not exist')


class Answering(socketserver.ThreadingTCPServer):
    """A server that gives the same answer to everybody who logs in, until another is set; b"" hangs up."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Login)
        self.answer = answer
        self.logins = 0

    @property
    def url(self) -> str:
        return f"postgresql://app@127.0.0.1:{self.server_address[1]}/app"


class _Login(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Answering)
        with suppress(OSError):
            while struct.unpack("!ii", self.request.recv(8, socket.MSG_WAITALL))[1] >> 16 == 1234:
                self.request.sendall(b"N")  # to the questions for TLS and GSSAPI
            self.server.logins += 1
            self.request.sendall(self.server.answer)
            if self.server.answer == AUTHENTICATED:
                while self.request.recv(1024):
                    continue


@contextmanager
def answering(answer: bytes) -> Iterator[Answering]:
    with Answering(answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        try:
            yield server
        finally:
            server.shutdown()


# --- what may pass -------------------------------------------------------------------------------------------------


def test_a_database_on_which_nothing_listens_is_waited_for(tmp_path: Path) -> None:
    result = waited_in_vain(tmp_path, f"postgresql://app@127.0.0.1:{embedded.free_port()}/app")
    assert len(reasons(result)) == 1
    assert "Connection refused" in reasons(result)[0]
    assert reasons(result)[0] in result.message


def test_a_name_that_does_not_resolve_is_waited_for(tmp_path: Path) -> None:
    result = waited_in_vain(tmp_path, "postgresql://app@db.invalid/app")
    assert len(reasons(result)) == 1
    assert "the name 'db.invalid' does not resolve: " in result.message


def test_a_socket_that_accepts_and_says_nothing_is_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = waited_in_vain(tmp_path, f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app")
    assert "timeout expired" in result.message


def test_a_pooler_that_accepts_the_login_and_has_no_server_is_waited_for(tmp_path: Path) -> None:
    with answering(AUTHENTICATED) as pooler:
        result = waited_in_vain(tmp_path, pooler.url)
    assert "it accepts the login and then does not answer" in result.message


def test_a_balancer_that_hangs_up_is_waited_for(tmp_path: Path) -> None:
    with answering(b"") as balancer:
        result = waited_in_vain(tmp_path, balancer.url)
    assert "server closed the connection unexpectedly" in result.message


def test_an_answer_in_another_language_is_waited_for(tmp_path: Path) -> None:
    text = "Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen"
    with answering(refusal("28P01", text)) as server:
        assert text in waited_in_vain(tmp_path, server.url).message


def test_a_reason_is_logged_when_it_changes_and_not_for_each_try(tmp_path: Path) -> None:
    with answering(STARTING) as server:
        env = {"DATABASE_URL": server.url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "30"}
        with started(tmp_path, "migrate", env=env) as running:
            wait_until(lambda: server.logins > 4, what="several tries")
            server.answer, before = FULL, server.logins
            wait_until(lambda: server.logins > before + 3, what="several more tries")
            running.process.kill()
            result = running.end()
    assert [each.rpartition("FATAL: ")[2].strip() for each in reasons(result)] == [
        "the database system is starting up",
        "sorry, too many clients already",
    ]


@pytest.mark.wide
def test_the_last_reason_is_in_the_final_message(tmp_path: Path) -> None:
    with answering(STARTING) as server:
        env = {"DATABASE_URL": server.url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "4"}
        with started(tmp_path, "migrate", env=env) as running:
            wait_until(lambda: server.logins > 1)
            server.answer = FULL
            result = running.end()
    assert result.code == 69
    assert "too many clients" in result.message
    assert "starting up" not in result.message


def test_a_server_that_starts_late_is_used_at_once(tree: Project) -> None:
    with own_server() as server:
        url = server.url
        server.stop()
        with waiting(tree, url, "Connection refused") as running:
            server.start()
            goes_on_at_once(running)


@pytest.mark.wide
def test_a_frozen_server_is_used_as_soon_as_it_thaws(tree: Project) -> None:
    with own_server() as server:
        server.freeze()
        with waiting(tree, server.url + "?connect_timeout=2", "timeout expired") as running:
            server.thaw()
            goes_on_at_once(running)


def test_a_server_that_recovers_is_waited_for_and_used_when_it_has(tree: Project) -> None:
    """57P03 from the real thing: without hot_standby a server takes no connections until it is promoted."""
    with own_server() as server:
        server.stop()
        (server.data / "standby.signal").touch()
        embedded.own(server.data / "standby.signal")
        options = ["-p", str(server.port), "-h", "127.0.0.1", "-k", "", "-c", "hot_standby=off", "-c", "fsync=off"]
        command = [str(server.binaries / "postgres"), "-D", str(server.data), *options]
        server.process = embedded.start_process(command, server.data.parent, server.data.parent / "log")
        reason = "not accepting connections" if server.major > 13 else "starting up"
        with waiting(tree, server.url, reason) as running:
            (server.data / "promote").touch()
            embedded.own(server.data / "promote")
            server.process.send_signal(signal.SIGUSR1)  # as `pg_ctl promote` does
            goes_on_at_once(running)


def test_a_server_without_a_free_connection_is_waited_for_and_used_when_it_has_one(tree: Project) -> None:
    with own_server(settings={"max_connections": "6", "max_wal_senders": "0"}) as server, ExitStack() as others:
        for _ in range(6):
            others.enter_context(server.connect())
        assert "too many clients already" in waited_in_vain(tree.folder, server.url).message
        with waiting(tree, server.url, "too many clients already") as running:
            others.close()
            goes_on_at_once(running)


def test_a_standby_is_passed_over_waited_for_and_used_when_it_is_promoted(tree: Project) -> None:
    with own_server() as primary, standby_of(primary) as standby:
        hosts = f"127.0.0.1:{embedded.free_port()},127.0.0.1:{standby.port},127.0.0.1:{primary.port}"
        result = entrypoint("run", "echo", "in", cwd=tree.folder, env={"DATABASE_URL": f"postgres://postgres@{hosts}/"})
        assert (result.code, result.stdout, reasons(result)) == (0, "in\n", []), result.stderr
        assert result.named("database.ready")[0]["database"].endswith(f"127.0.0.1:{primary.port} as postgres")
        assert primary.query("SELECT version_num FROM alembic_version") == [("r1",)]

        assert "it is a standby, which cannot be migrated" in waited_in_vain(tree.folder, standby.url).message

        with waiting(tree, standby.url, "it is a standby, which cannot be migrated") as running:
            standby.promote()
            goes_on_at_once(running)


def test_a_name_with_several_addresses_is_tried_at_each(tree: Project, server: Server) -> None:
    """`localhost` is ::1, too, on which the server does not listen."""
    url = f"postgresql://postgres@localhost:{server.port}/postgres"
    result = entrypoint("plan", cwd=tree.folder, env={"DATABASE_URL": url})
    assert result.code == 0, result.stderr


# --- what a person must mend ---------------------------------------------------------------------------------------

HBA = """
host all postgres,ghost 127.0.0.1/32 trust
host all app,nobody 127.0.0.1/32 scram-sha-256
host all shut 127.0.0.1/32 reject
"""
PASSWORD = "p@ss:w/ö%r'd\" #+?"


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    """Give a server that lets in whom it knows, with the right password."""
    with own_server(hba=HBA) as server:
        server.execute("CREATE ROLE app LOGIN PASSWORD 'right'")
        server.execute("CREATE DATABASE app")
        yield server


def together(folder: Path, urls: Mapping[str, str]) -> tuple[dict[str, Result], dict[str, float]]:
    """Run with each URL at the same time, since each is in vain for a while; give results, and how long each took."""
    took: dict[str, float] = {}
    results: dict[str, Result] = {}

    def run(name: str, url: str) -> None:
        began = time.monotonic()
        results[name] = entrypoint("run", "echo", "the app", cwd=folder, env={"DATABASE_URL": url})
        took[name] = time.monotonic() - began

    threads = [threading.Thread(target=run, args=each) for each in urls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, took


def test_who_is_not_let_in_is_told_so_after_a_short_grace(tmp_path: Path, strict: Server) -> None:
    at = f"127.0.0.1:{strict.port}/app"
    said = {
        f"app:{quote(PASSWORD, safe='')}@{at}": 'password authentication failed for user "app"',
        f"app@{at}": "no password supplied",
        f"nobody:x@{at}": 'password authentication failed for user "nobody"',
        f"ghost@{at}": 'role "ghost" does not exist',
        f"stranger@{at}": 'no pg_hba.conf entry for host "127.0.0.1", user "stranger"',
        f"shut@{at}": "pg_hba.conf rejects connection",
        f"postgres@{at}?sslmode=require": "server does not support SSL, but SSL was required",
    }
    results, took = together(tmp_path, {login: f"postgresql://{login}" for login in said})
    for login, text in said.items():
        result = results[login]
        assert (result.code, result.stdout) == (77, ""), result.stderr
        assert result.message.startswith("The database will not let us in. app at 127.0.0.1:")
        assert text in result.message
        assert GRACE < took[login] < GRACE + 20
        assert len(reasons(result)) == 1
        for spelled in (PASSWORD, quote(PASSWORD, safe=""), "p@ss", "p%40ss"):
            assert spelled not in result.stderr


@pytest.mark.extra
def test_tls_that_is_wanted_or_refused_is_told_after_a_short_grace(tmp_path: Path) -> None:
    hba = "hostnossl all postgres 127.0.0.1/32 trust\nhostssl all app 127.0.0.1/32 trust\n"
    with own_server(15, hba=hba, tls=True) as server:
        server.execute("CREATE ROLE app LOGIN")
        at = f"127.0.0.1:{server.port}/postgres"
        other = tmp_path / "other.crt"
        other.write_bytes((server.sockets / "server.crt").read_bytes()[:-40])
        said = {
            f"postgres@{at}?sslmode=require": "no pg_hba.conf entry",
            f"app@{at}?sslmode=disable": "no encryption",
            f"app@{at}?sslmode=verify-full&sslrootcert={tmp_path}/none": "does not exist",
            f"app@{at}?sslmode=verify-full&sslrootcert={other}": "certificate",
        }
        results, _ = together(tmp_path, {login: f"postgresql://{login}" for login in said})
    for login, text in said.items():
        assert results[login].code == 77, results[login].stderr
        assert text in results[login].message


@pytest.mark.wide
def test_a_database_that_does_not_exist_is_told_after_a_short_grace(tmp_path: Path, server: Server) -> None:
    began = time.monotonic()
    result = entrypoint("run", "echo", "the app", cwd=tmp_path, env={"DATABASE_URL": server.url_for("nowhere")})
    assert (result.code, result.stdout) == (78, "")
    assert "There is no such database. nowhere at 127.0.0.1:" in result.message
    assert GRACE < time.monotonic() - began < GRACE + 20


def test_a_database_that_is_made_within_the_grace_is_used(tree: Project, server: Server) -> None:
    with waiting(tree, server.url_for("late"), 'database "late" does not exist') as running:
        server.execute("CREATE DATABASE late")
        try:
            goes_on_at_once(running)
        finally:
            server.execute("DROP DATABASE late WITH (FORCE)")


@pytest.mark.wide
def test_the_grace_begins_when_the_server_answers(tmp_path: Path) -> None:
    """What makes roles and databases starts with the server, and not with us."""
    late = 2.5
    with answering(STARTING) as server:
        env = {"DATABASE_URL": server.url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "30"}
        with started(tmp_path, "migrate", env=env) as running:
            wait_until(lambda: server.logins)
            began = time.monotonic()
            wait_until(lambda: time.monotonic() - began > late)
            server.answer, refused = MISSING, time.monotonic()
            result = running.end()
    assert result.code == 78
    assert time.monotonic() - refused > GRACE - 0.1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "it is not a URL"),
        ("mysql://app:secret@127.0.0.1/app", "it is a URL of mysql, not of PostgreSQL"),
        ("sqlite:///app.db", "it is a URL of sqlite, not of PostgreSQL"),
        ("postgresql://app:secret@127.0.0.1/app?sslmode=perhaps", "perhaps"),
        ("postgresql://app:secret@127.0.0.1:99999/app", "99999"),
    ],
)
def test_what_is_no_usable_url_is_told_at_once(tmp_path: Path, url: str, reason: str) -> None:
    began = time.monotonic()
    result = entrypoint("run", "echo", "the app", cwd=tmp_path, env={"DATABASE_URL": url})
    assert (result.code, result.stdout) == (78, ""), result.stderr
    assert reason in result.message
    assert "secret" not in result.stderr
    assert time.monotonic() - began < GRACE


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.extra
def test_a_resolver_that_never_answers_delays_no_signal(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind(("127.77.0.53", 53))
        (tmp_path / "resolv.conf").write_text("nameserver 127.77.0.53\noptions timeout:30 attempts:5\n")
        line = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
        surroundings = ["unshare", "--mount", "sh", "-c", line, "sh"]
        env = {"DATABASE_URL": "postgresql://app@db.example.com/app"}
        with started(tmp_path, "migrate", env=env, within=surroundings) as running:
            resolver.settimeout(20)
            assert b"example" in resolver.recv(512)
            began = time.monotonic()
            running.process.terminate()
            result = running.end(10)
    assert result.code == 143
    assert time.monotonic() - began < 4.0  # two seconds are promised; the machine that tests may be busy


@pytest.mark.extra
def test_a_resolver_that_never_answers_is_waited_for_no_longer_than_was_set(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind(("127.77.0.53", 53))
        (tmp_path / "resolv.conf").write_text("nameserver 127.77.0.53\noptions timeout:30 attempts:5\n")
        line = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
        surroundings = ["unshare", "--mount", "sh", "-c", line, "sh"]
        env = {"DATABASE_URL": "postgresql://app@db.example.com/app", "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "2"}
        began = time.monotonic()
        with started(tmp_path, "migrate", env=env, within=surroundings) as running:
            result = running.end()
    assert result.code == 69
    assert "the name 'db.example.com' does not resolve: no answer within 2 s" in result.message
    assert time.monotonic() - began < 20
