"""What a test holds in its hands: containers, compose projects and databases on a Docker engine."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

ROOT = Path(__file__).parents[2]
BASE_IMAGE = os.environ.get("TEST_BASE_IMAGE", "local/python:bookworm")
POSTGRES_IMAGE = os.environ.get("TEST_POSTGRES_IMAGE", "local/postgres:bookworm")
PASSWORD = "correct-horse"

#: The newest migration of the example.
HEAD = "c46b1d9e20f8"
#: A revision that no image ships.
LOST = "a2242b61af45"
NOWHERE = f"postgresql://notes:{PASSWORD}@nowhere.invalid/notes"
SLEEP = "SELECT pg_sleep(60)"


def call(*command: str, check: bool = True, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; fail with all that it said when it fails, unless `check` is off."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def unique_name() -> str:
    """Return a name that nothing else on the engine has."""
    return f"alembic-entrypoint-test-{uuid4().hex[:12]}"


@dataclass(frozen=True)
class Container:
    """A container, running or ended."""

    name: str

    def exit_code(self) -> int:
        """Wait for the end."""
        return int(call("docker", "wait", self.name).stdout)

    def stop(self) -> int:
        """Send SIGTERM, and SIGKILL after ten seconds; return the exit code."""
        call("docker", "stop", "--time", "10", self.name)
        return self.exit_code()

    def kill(self, signal: str) -> int:
        """Send one signal, and nothing after it; return the exit code."""
        call("docker", "kill", f"--signal={signal}", self.name)
        return self.exit_code()

    def stdout(self) -> str:
        return call("docker", "logs", self.name).stdout

    def stderr(self) -> str:
        return call("docker", "logs", self.name).stderr

    def events(self) -> list[dict[str, Any]]:
        """Return what alembic-entrypoint logged; the app's lines are no JSON."""
        return [json.loads(line) for line in self.stderr().splitlines() if line.startswith("{")]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events() if each["event"] == event]

    def event_names(self) -> list[str]:
        return [event["event"] for event in self.events()]

    def run(self, *command: str) -> str:
        """Run a command inside; return what it prints."""
        return call("docker", "exec", self.name, *command).stdout

    def read(self, path: str) -> str:
        """Return a file as the container sees it."""
        return self.run("cat", path)

    def health(self) -> dict[str, Any] | None:
        """Ask `/health` through the published port; None until it answers well."""
        address = call("docker", "port", self.name, "8000", check=False).stdout.partition("\n")[0]
        if not address:
            return None
        connection = HTTPConnection(address, timeout=5)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            return json.load(answer) if answer.status == 200 else None
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()


@dataclass(frozen=True)
class Project:
    """A compose project of `compose.yaml`."""

    name: str
    environment: Mapping[str, str] = field(repr=False)

    def __call__(self, *arguments: str) -> str:
        """Run compose; return its stdout."""
        command = (*compose_command(), "--project-name", self.name, "--file", str(ROOT / "compose.yaml"))
        return call(*command, *arguments, env={**os.environ, **self.environment}, timeout=900).stdout

    def up(self, *arguments: str) -> list[Container]:
        """Start everything; return the app's replicas, which need not serve yet."""
        self("up", "--detach", "--no-build", *arguments)
        return self.replicas()

    def replicas(self) -> list[Container]:
        return [Container(name) for name in self("ps", "--quiet", "app").split()]


@dataclass(frozen=True)
class Server:
    """A PostgreSQL in a container; its name leads to it on its network."""

    name: str
    network: str

    def is_ready(self) -> bool:
        asked = ("docker", "exec", self.name, "pg_isready", "--quiet", "--host=127.0.0.1", "--username=notes")
        return call(*asked, check=False).returncode == 0

    def run(self, program: str, database: str, *arguments: str) -> str:
        """Run a client program of PostgreSQL; return what it prints."""
        login = ("--host=127.0.0.1", "--username=notes", f"--dbname={database}")
        return call("docker", "exec", f"--env=PGPASSWORD={PASSWORD}", self.name, program, *login, *arguments).stdout

    def query(self, database: str, sql: str) -> str:
        """Run SQL; return the rows as `psql -tA` prints them."""
        return self.run("psql", database, "--no-psqlrc", "--set=ON_ERROR_STOP=1", "-tAqc", sql).strip()


@dataclass(frozen=True)
class Database:
    """A database on a server that containers can reach."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        return f"postgresql://notes:{PASSWORD}@{self.server.name}/{self.name}"

    @property
    def access(self) -> tuple[str, ...]:
        """Return the options of `docker run` for a container that has this database."""
        return (f"--network={self.server.network}", f"--env=DATABASE_URL={self.url}")

    def query(self, sql: str) -> str:
        return self.server.query(self.name, sql)

    def recorded(self) -> str:
        return self.query("SELECT version_num FROM alembic_version")

    def has_table(self, name: str) -> bool:
        return self.query(f"SELECT to_regclass('{name}') IS NOT NULL") == "t"

    def is_running(self, statement: str) -> bool:
        """Tell whether a session is at this statement."""
        active = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{self.name}' AND state = 'active'"
        return self.query(f"{active} AND query = '{statement}'") == "1"

    def has_sessions(self) -> bool:
        """Tell whether anybody but us is connected."""
        return self.query(f"SELECT count(*) > 1 FROM pg_stat_activity WHERE datname = '{self.name}'") == "t"

    def dump(self) -> str:
        """Return everything in the database but the ledger, as `pg_dump` writes it."""
        # Newer versions frame a dump with a random word.
        lines = self.server.run("pg_dump", self.name, "-N", "alembic_entrypoint").splitlines()
        return "\n".join(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict")))


class Start(Protocol):
    """Starts a container with options of `docker run` and a command, of the example's image where no other is named."""

    def __call__(self, *command: str, options: tuple[str, ...] = (), image: str = ...) -> Container: ...


def compose_command() -> tuple[str, ...]:
    """Return `docker compose` where the engine's client has it, else `docker-compose`."""
    has_plugin = call("docker", "compose", "version", check=False).returncode == 0
    return ("docker", "compose") if has_plugin else ("docker-compose",)


@contextmanager
def new_network() -> Iterator[str]:
    """Yield a network of its own."""
    name = unique_name()
    call("docker", "network", "create", name)
    try:
        yield name
    finally:
        call("docker", "network", "rm", name)


@contextmanager
def new_postgres(network: str, *options: str) -> Iterator[Server]:
    """Yield a PostgreSQL server that starts on a network."""
    server = Server(unique_name(), network)
    environment = {"POSTGRES_USER": "notes", "POSTGRES_PASSWORD": PASSWORD, "LANG": "C.UTF-8"}
    settings = [f"--env={key}={value}" for key, value in environment.items()]
    start = ("docker", "run", "--detach", f"--name={server.name}", f"--network={network}")
    try:
        call(*start, *settings, *options, POSTGRES_IMAGE)
        yield server
    finally:
        call("docker", "rm", "--force", "--volumes", server.name, check=False)


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Stop every process of a server in its tracks: connections stay, and nothing answers."""
    call("docker", "pause", server.name)
    try:
        yield
    finally:
        call("docker", "unpause", server.name)


@contextmanager
def new_project(image: str) -> Iterator[Project]:
    """Yield a project of its own; remove its containers, networks and volumes."""
    environment = {"APP_IMAGE": image, "POSTGRES_IMAGE": POSTGRES_IMAGE, "POSTGRES_PASSWORD": PASSWORD}
    project = Project(unique_name(), environment)
    try:
        yield project
    finally:
        project("down", "--volumes", "--remove-orphans", "--timeout", "2")


@contextmanager
def starting(image: str) -> Iterator[Start]:
    """Yield what starts containers; remove them."""
    started: list[str] = []

    def start(*command: str, options: tuple[str, ...] = (), image: str = image) -> Container:
        started.append(name := unique_name())
        call("docker", "run", "--detach", f"--name={name}", *options, image, *command)
        return Container(name)

    try:
        yield start
    finally:
        for name in started:
            call("docker", "rm", "--force", "--volumes", name, check=False)
