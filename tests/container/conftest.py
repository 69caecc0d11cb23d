"""A Docker engine, the example's image, and what a test makes of it: all of it is gone afterwards."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Protocol
from uuid import uuid4

import pytest
from containers import (
    BASE_IMAGE,
    HEAD,
    SLEEP,
    Container,
    Database,
    Project,
    Server,
    Start,
    call,
    new_network,
    new_postgres,
    new_project,
    starting,
    unique_name,
)

from servers import wait_until

NO_FILES: Mapping[str, str] = MappingProxyType({})
SLOW_MIGRATION = f"""
from alembic import op

revision, down_revision = "d15ea5e0ff1c", "{HEAD}"


def upgrade():
    op.execute("CREATE TABLE slow ()")
    op.execute("{SLEEP}")
"""


class Build(Protocol):
    """Builds an image from the text of a Dockerfile and the files beside it."""

    def __call__(self, dockerfile: str, files: Mapping[str, str] = NO_FILES) -> str: ...


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
def build(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Build images, and remove them at the end."""
    built: list[str] = []

    def build(dockerfile: str, files: Mapping[str, str] = NO_FILES) -> str:
        context = tmp_path_factory.mktemp("context")
        for path, text in {**files, "Dockerfile": dockerfile}.items():
            file = context / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        built.append(name := unique_name())
        call("docker", "build", "--network=host", f"--tag={name}", str(context), timeout=300)
        return name

    yield build
    # Those that were built on others first.
    call("docker", "image", "rm", "--force", *reversed(built), check=False)


@pytest.fixture(scope="session")
def slow_image(build: Build, image: str) -> str:
    """Build the example's image with one more migration, which sleeps after its first statement."""
    return build(f"FROM {image}\nCOPY slow.py /app/migrations/versions/\n", {"slow.py": SLOW_MIGRATION})


@pytest.fixture(scope="session")
def postgres(engine: None) -> Iterator[Server]:
    """Start PostgreSQL on a network of its own."""
    with new_network() as network, new_postgres(network) as server:
        wait_until(server.is_ready, timeout=60)
        yield server


@pytest.fixture
def notes_database(postgres: Server) -> Database:
    """Create an empty database; it goes with its server."""
    name = f"test_{uuid4().hex[:12]}"
    postgres.query("notes", f"CREATE DATABASE {name}")
    return Database(postgres, name)


@pytest.fixture
def start(image: str) -> Iterator[Start]:
    """Start containers, and remove them after the test."""
    with starting(image) as start:
        yield start


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
