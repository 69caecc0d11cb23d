"""What `init` writes, with the real engine: the image builds, compose runs it, and a deploy never breaks what runs."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from containers import (
    BASE_IMAGE,
    HEAD,
    POSTGRES_IMAGE,
    ROOT,
    Container,
    Database,
    Start,
    call,
    compose_command,
    unique_name,
)

from commands import entrypoint
from servers import wait_until

pytestmark = pytest.mark.container

NEXT = "5afe0000beef"
MIGRATION = """
from alembic import op

revision, down_revision = "{revision}", "{parent}"


def upgrade():
    op.execute("{sql}")
"""
# `docker compose` where the engine's client has only the older docker-compose, which cannot wait.
SHIM = """\
#!/bin/sh
case "$1" in
compose) shift; for word; do shift; [ "$word" = --wait ] || set -- "$@" "$word"; done; exec docker-compose "$@" ;;
esac
exec {docker} "$@"
"""


@pytest.fixture(scope="module")
def base_image(engine, build):
    """A base image that has our wheel where pip looks, as PyPI will have it, and a place for the example to listen."""
    wheels = Path(os.environ.get("TMPDIR", "/tmp")) / unique_name()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run(pip, check=True, timeout=300)
    [wheel] = wheels.iterdir()
    name = unique_name()
    (wheels / "Dockerfile").write_text(
        f"FROM {BASE_IMAGE}\nCOPY {wheel.name} /wheels/\nENV PIP_FIND_LINKS=/wheels HOST=0.0.0.0\n"
    )
    call("docker", "build", "--network=host", f"--tag={name}", str(wheels), timeout=300)
    shutil.rmtree(wheels)
    yield name
    call("docker", "image", "rm", "--force", name, check=False)


class Service:
    """The example as its owner would have it after `init`, and its compose project."""

    def __init__(self, folder: Path, base_image: str) -> None:
        self.folder = folder
        self.base_image = base_image
        self.name = unique_name()
        self.images: list[str] = []
        shim = folder.parent / "bin" / "docker"
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.name,
            "PORT": "0",
            "POSTGRES_IMAGE": POSTGRES_IMAGE,
        }
        if compose_command() == ("docker-compose",):
            shim.parent.mkdir()
            shim.write_text(SHIM.format(docker=shutil.which("docker")))
            shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
            self.environment["PATH"] = f"{shim.parent}:{os.environ['PATH']}"

    def build(self) -> str:
        """Build the image, as the workflow does; give its name."""
        name = unique_name()
        self.images.append(name)
        call(
            "docker",
            "build",
            "--network=host",
            f"--build-arg=BASE_IMAGE={self.base_image}",
            f"--tag={name}",
            ".",
            cwd=self.folder,
            timeout=600,
        )
        return name

    def compose(self, *arguments: str, check: bool = True) -> str:
        return call(
            "docker", "compose", *arguments, cwd=self.folder, env=self.environment, check=check, timeout=300
        ).stdout

    def deploy(self, image: str, code: int = 0) -> None:
        """Run the deploy script, which must end with this code."""
        environment = {**self.environment, "IMAGE": image}
        done = call("sh", "deploy.sh", cwd=self.folder, env=environment, check=False, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr

    def app(self) -> Container:
        return Container(self.compose("ps", "--quiet", "app").strip())

    def image(self) -> str:
        return call("docker", "inspect", "--format={{.Config.Image}}", self.app().name).stdout.strip()

    def started_at(self) -> str:
        return call("docker", "inspect", "--format={{.State.StartedAt}}", self.app().name).stdout

    def add_migration(self, revision: str, parent: str, sql: str) -> Path:
        path = self.folder / "migrations" / "versions" / f"{revision}.py"
        path.write_text(MIGRATION.format(revision=revision, parent=parent, sql=sql))
        return path


@contextmanager
def new_service(folder: Path, base_image: str) -> Iterator[Service]:
    """Yield the example after `init`; its containers, volumes and images go with the block."""
    shutil.copytree(ROOT / "entrypoint" / "example", folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert entrypoint("init", "--yes", "github-actions", cwd=folder).code == 0
    made = Service(folder, base_image)
    try:
        yield made
    finally:
        made.compose("down", "--volumes", "--remove-orphans", "--timeout", "2", check=False)
        for image in made.images:
            call("docker", "image", "rm", "--force", image, check=False)


@pytest.fixture
def service(tmp_path: Path, base_image: str) -> Iterator[Service]:
    with new_service(tmp_path / "service", base_image) as made:
        yield made


@pytest.fixture(scope="module")
def service_image(tmp_path_factory: pytest.TempPathFactory, base_image: str) -> Iterator[str]:
    """Build the image once for the tests that change nothing in it."""
    with new_service(tmp_path_factory.mktemp("image") / "service", base_image) as made:
        yield made.build()


def test_a_good_deploy_replaces_and_a_failing_one_touches_nothing(service: Service) -> None:
    """The first starts everything, a failing migration leaves the old container alone, and the mended one goes in."""
    first = service.build()
    service.deploy(first)
    assert wait_until(lambda: service.app().health(), timeout=60) == {"revision": HEAD, "notes": 0}
    assert service.image() == first
    assert (service.folder / ".env").read_text() == f"IMAGE={first}\n"
    since = service.started_at()

    broken = service.add_migration(NEXT, HEAD, "ALTER TABLE nowhere ADD COLUMN x int")
    failing = service.build()
    service.deploy(failing, code=1)
    assert service.image() == first
    assert service.started_at() == since
    assert service.app().health() == {"revision": HEAD, "notes": 0}
    assert (service.folder / ".env").read_text() == f"IMAGE={first}\n"

    broken.unlink()
    service.add_migration(NEXT, HEAD, "ALTER TABLE notes ADD COLUMN colour text")
    (service.folder / ".env").write_text(f"POSTGRES_PASSWORD=app\nIMAGE={first}\n")
    mended = service.build()
    service.deploy(mended)
    assert service.image() == mended
    assert wait_until(lambda: service.app().health(), timeout=60) == {"revision": NEXT, "notes": 0}
    assert (service.folder / ".env").read_text() == f"POSTGRES_PASSWORD=app\nIMAGE={mended}\n"

    # A compose file that does not use IMAGE would migrate with another image.
    compose = service.folder / "compose.yaml"
    compose.write_text(compose.read_text().replace("image: ${IMAGE:-app}", f"image: {mended}"))
    service.deploy(first, code=78)
    assert service.image() == mended
    # The app found nothing left to do: the migration was through before anything was replaced.
    assert "schema.upgraded" not in service.app().event_names()
    assert service.app().read("/proc/1/cmdline").split("\0") == ["python", "-m", "notes", ""]


def test_of_two_services_of_one_image_one_migrates_and_the_other_waits(service: Service, service_image: str) -> None:
    """The compose file as it is copied, with the example as the worker, too."""
    text = (ROOT / "entrypoint" / "compose" / "compose.yaml").read_text()
    worker = text.replace("command: [python, -m, app.worker]", "command: [python, -m, notes]")
    assert worker != text
    (service.folder / "compose.yaml").write_text(worker)
    service.environment["IMAGE"] = service_image
    service.compose("up", "--detach", "--no-build")
    app, other = (Container(service.compose("ps", "--quiet", name).strip()) for name in ("app", "worker"))
    wait_until(lambda: app.named("app.launching") and other.named("app.launching"), timeout=60)
    assert app.event_names().count("schema.upgraded") == 1
    assert not {"lock.acquired", "lock.waiting", "migration.started", "schema.upgraded"} & {*other.event_names()}


def test_the_job_and_the_init_container_need_no_more_than_they_are_given(
    service_image: str, start: Start, notes_database: Database
) -> None:
    """Their commands, with the rights that the manifests leave: nobody, no capability, no file that can be written."""
    rights = ("--user=10001", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only")
    options = (*notes_database.access, *rights, "--entrypoint=alembic-entrypoint")

    early = start("await", "--await-timeout=1", "head", options=options, image=service_image)
    assert early.exit_code() == 75
    assert not notes_database.has_table("notes")
    assert start("migrate", options=options, image=service_image).exit_code() == 0
    assert notes_database.recorded() == HEAD
    assert start("await", "head", options=options, image=service_image).exit_code() == 0


def test_a_platform_that_keeps_the_entrypoint_may_run_the_release_command_behind_it(
    service_image: str, start: Start, notes_database: Database
) -> None:
    released = start("alembic-entrypoint", "migrate", options=notes_database.access, image=service_image)
    assert released.exit_code() == 0
    assert notes_database.recorded() == HEAD
