"""A Docker engine, the example's image, and what a test makes of it: all of it is gone afterwards."""

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

from servers import wait_until

ROOT = Path(__file__).parents[2]
BASE_IMAGE = os.environ.get("TEST_BASE_IMAGE", "local/python:bookworm")
POSTGRES_IMAGE = os.environ.get("TEST_POSTGRES_IMAGE", "local/postgres:bookworm")
PASSWORD = "correct-horse"


class Start(Protocol):
    """Starts a container of the example's image, with options of `docker run` and a command."""

    def __call__(self, *command: str, options: tuple[str, ...] = ()) -> "Container": ...


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

    def stdout(self) -> str:
        return call("docker", "logs", self.name).stdout

    def stderr(self) -> str:
        return call("docker", "logs", self.name).stderr

    def events(self) -> list[dict[str, Any]]:
        """Return what alembic-entrypoint logged; the app's lines are no JSON."""
        return [json.loads(line) for line in self.stderr().splitlines() if line.startswith("{")]

    def event_names(self) -> list[str]:
        return [event["event"] for event in self.events()]

    def read(self, path: str) -> str:
        """Return a file as the container sees it."""
        return call("docker", "exec", self.name, "cat", path).stdout

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
class Database:
    """An empty database, and the network on which its server can be reached."""

    server: str
    network: str
    name: str

    @property
    def url(self) -> str:
        return f"postgresql://notes:{PASSWORD}@{self.server}/{self.name}"

    def query(self, sql: str) -> str:
        """Run SQL; return the rows as `psql -tA` prints them."""
        return query(self.server, self.name, sql)


def compose_command() -> tuple[str, ...]:
    """Return `docker compose` where the engine's client has it, else `docker-compose`."""
    has_plugin = call("docker", "compose", "version", check=False).returncode == 0
    return ("docker", "compose") if has_plugin else ("docker-compose",)


def query(server: str, database: str, sql: str) -> str:
    login = ("--host=127.0.0.1", "--username=notes", f"--dbname={database}")
    settings = ("--no-psqlrc", "--set=ON_ERROR_STOP=1", "-tAqc", sql)
    return call("docker", "exec", f"--env=PGPASSWORD={PASSWORD}", server, "psql", *login, *settings).stdout.strip()


@contextmanager
def new_project(image: str) -> Iterator[Project]:
    """Yield a project of its own; remove its containers, networks and volumes."""
    environment = {"APP_IMAGE": image, "POSTGRES_IMAGE": POSTGRES_IMAGE, "POSTGRES_PASSWORD": PASSWORD}
    project = Project(unique_name(), environment)
    try:
        yield project
    finally:
        project("down", "--volumes", "--remove-orphans", "--timeout", "2")


@pytest.fixture(scope="session")
def engine() -> None:
    """Fail, not skip, where no engine answers: a test that did not run has shown nothing."""
    try:
        answer = call("docker", "info", check=False)
    except FileNotFoundError:
        pytest.fail("The container tests need a Docker engine, and there is no `docker` command here.", pytrace=False)
    if answer.returncode:
        pytest.fail(f"The container tests need a Docker engine, and none answers:\n{answer.stderr}", pytrace=False)


@pytest.fixture(scope="session")
def image(engine: None) -> Iterator[str]:
    """Build the example's image with compose, from this working tree."""
    name = unique_name()
    build = Project(name, {"APP_IMAGE": name, "BASE_IMAGE": BASE_IMAGE, "BUILD_NETWORK": "host"})
    build("build", "app")
    yield name
    call("docker", "image", "rm", "--force", name)


@pytest.fixture(scope="session")
def postgres(engine: None) -> Iterator[str]:
    """Start PostgreSQL on a network of its own; container and network have the same name."""
    name = unique_name()
    environment = {"POSTGRES_USER": "notes", "POSTGRES_PASSWORD": PASSWORD, "LANG": "C.UTF-8"}
    settings = [f"--env={key}={value}" for key, value in environment.items()]
    is_ready = ("docker", "exec", name, "pg_isready", "--quiet", "--host=127.0.0.1", "--username=notes")
    call("docker", "network", "create", name)
    try:
        call("docker", "run", "--detach", f"--name={name}", f"--network={name}", *settings, POSTGRES_IMAGE)
        wait_until(lambda: call(*is_ready, check=False).returncode == 0, timeout=60)
        yield name
    finally:
        call("docker", "rm", "--force", "--volumes", name, check=False)
        call("docker", "network", "rm", name)


@pytest.fixture
def notes_database(postgres: str) -> Database:
    """Create an empty database; it goes with its server."""
    name = f"test_{uuid4().hex[:12]}"
    query(postgres, "notes", f"CREATE DATABASE {name}")
    return Database(server=postgres, network=postgres, name=name)


@pytest.fixture
def start(image: str) -> Iterator[Start]:
    """Start containers of the example's image, and remove them after the test."""
    started = []

    def start(*command: str, options: tuple[str, ...] = ()) -> Container:
        started.append(name := unique_name())
        call("docker", "run", "--detach", f"--name={name}", *options, image, *command)
        return Container(name)

    yield start
    for name in started:
        call("docker", "rm", "--force", "--volumes", name, check=False)


@pytest.fixture
def project(image: str) -> Iterator[Project]:
    """A compose project for one test."""
    with new_project(image) as project:
        yield project


@pytest.fixture(scope="module")
def replicas(image: str) -> Iterator[list[Container]]:
    """Three replicas that started at once on an empty database, and serve."""
    with new_project(image) as project:
        replicas = project.up()
        for replica in replicas:
            wait_until(replica.health, timeout=60)
        yield replicas
