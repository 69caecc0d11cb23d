"""`init` writes what is missing, changes what exists only after a yes, and is done when it is run again."""

from __future__ import annotations

import os
import pty
import resource
import shutil
import subprocess
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from alembic_entrypoint.dropin.files import PLATFORMS
from alembic_entrypoint.postgres.embedded import free_port
from commands import COMMAND, Result, entrypoint, environment
from dropins import assert_good
from servers import Database, wait_until

EXAMPLE = Path(__file__).resolve().parents[2] / "entrypoint" / "example"
FASTAPI = 'from fastapi import FastAPI\n\napp = FastAPI(title="shop")\n'


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """A project as its owner has it: nothing in it knows us."""
    return Path(
        shutil.copytree(EXAMPLE, tmp_path / "service", ignore=shutil.ignore_patterns("__pycache__", "README.md"))
    )


def init(folder: Path, *arguments: str) -> Result:
    return entrypoint("init", *arguments, cwd=folder, stdin=subprocess.DEVNULL)


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def answering(folder: Path, answers: str, *arguments: str) -> tuple[int, str]:
    """Run it on a terminal, with somebody who types; give the exit code and what the terminal shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "init", *arguments], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment()
    )
    os.close(theirs)
    os.write(ours, answers.encode())
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    return process.wait(30), shown.decode().replace("\r", "")


@pytest.mark.extra
@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_it_writes_for_each_platform_is_good_and_complete(service: Path, platform: str) -> None:
    before = texts(service)
    result = init(service, "--yes", platform)
    assert result.code == 0, result.stdout + result.stderr
    after = texts(service)
    written = {path for path in after if after[path] != before.get(path)}
    assert written > {"requirements.txt"}
    for path in written - {"requirements.txt"}:
        assert_good(service / path)
    assert after["requirements.txt"] == before["requirements.txt"] + "alembic-entrypoint\n"
    assert f"  {PLATFORMS[platform].next}\n" in result.stdout.partition("\nNext:\n")[2]

    again = init(service, platform)
    assert again.code == 0
    assert "Nothing to write: everything is there." in again.stdout
    assert texts(service) == after


def test_it_says_what_it_found_and_what_comes_next(service: Path) -> None:
    (service / "requirements.txt").unlink()
    result = init(service, "docker", "heroku")
    assert result.code == 0
    assert "Alembic configuration: alembic.ini\n" in result.stdout
    assert "python -m notes   (notes/__main__.py)\n" in result.stdout
    assert "written: Dockerfile\n" in result.stdout
    assert "Add alembic-entrypoint to the packages" in result.stdout
    assert result.stdout.endswith("  docker build --tag app .\n  git push heroku main\n")
    assert 'CMD ["python", "-m", "notes"]\n' in (service / "Dockerfile").read_text()
    assert (service / "Procfile").read_text().endswith("web: alembic-entrypoint run -- python -m notes\n")


def test_without_a_terminal_and_without_yes_nothing_is_written(service: Path) -> None:
    (service / "Dockerfile").write_text('FROM python:3.13\nEXPOSE 5000\nCMD ["gunicorn", "shop:app"]\n')
    before = texts(service)
    result = init(service, "compose")
    assert result.code == 2
    assert '+ENTRYPOINT ["alembic-entrypoint", "run", "--"]\n' in result.stdout
    assert "Nothing was written. To agree: alembic-entrypoint init --yes compose" in result.stderr
    assert texts(service) == before

    assert init(service, "--yes", "compose").code == 0
    assert (service / "Dockerfile").read_text() == (
        'FROM python:3.13\nEXPOSE 5000\nENTRYPOINT ["alembic-entrypoint", "run", "--"]\nCMD ["gunicorn", "shop:app"]\n'
    )
    assert "${PORT:-5000}:5000" in (service / "compose.yaml").read_text()


def test_on_a_terminal_each_change_is_asked_for(service: Path) -> None:
    (service / "Dockerfile").write_text('FROM python:3.13\nCMD ["python", "-m", "notes"]\n')
    (service / "requirements.txt").chmod(0o640)
    code, shown = answering(service, "n\ny\n", "docker")
    assert code == 2
    assert "Change Dockerfile? [y/N]:" in shown
    assert "left as it was: Dockerfile" in shown
    assert "ENTRYPOINT" not in (service / "Dockerfile").read_text()
    assert "changed: requirements.txt" in shown
    assert (service / "requirements.txt").stat().st_mode & 0o777 == 0o640
    code, shown = answering(service, "y\n", "docker")
    assert code == 0
    assert "ENTRYPOINT" in (service / "Dockerfile").read_text()


def test_the_other_lines_of_a_file_stay_as_they_are_to_the_byte(service: Path) -> None:
    (service / "Dockerfile").write_bytes(b"FROM python:3.13\r\nRUN x \\\r\n  CMD y\r\nCMD x\r\n")
    assert init(service, "docker", "--yes").code == 0
    assert (service / "Dockerfile").read_bytes() == (
        b'FROM python:3.13\r\nRUN x \\\r\n  CMD y\r\nENTRYPOINT ["alembic-entrypoint", "run", "--"]\nCMD x\r\n'
    )


@pytest.mark.extra
def test_what_it_writes_for_heroku_runs(service: Path, database: Database) -> None:
    """Both lines, in a shell, with the URL as the add-on spells it."""
    assert init(service, "heroku", "--yes").code == 0
    lines = dict(line.split(": ", 1) for line in (service / "Procfile").read_text().splitlines())
    port = str(free_port())
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    env = environment(
        {"DATABASE_URL": database.url.replace("postgresql://", "postgres://"), "PORT": port, "PATH": path}
    )
    subprocess.run(["sh", "-c", lines["release"]], cwd=service, env=env, check=True, capture_output=True)
    assert database.query("TABLE alembic_version") == [("c46b1d9e20f8",)]
    with subprocess.Popen(["sh", "-c", f"exec {lines['web']}"], cwd=service, env=env, stderr=subprocess.DEVNULL) as web:
        try:
            wait_until(lambda: answers(port), timeout=60, what="the app serves")
        finally:
            web.terminate()


def answers(port: str) -> bool:
    """Tell whether the example serves."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_it_finds_what_a_project_is_deployed_with(service: Path) -> None:
    (service / "shop").mkdir()
    (service / "shop" / "main.py").write_text(FASTAPI)
    (service / "fly.toml").write_text('app = "shop"\n\n[deploy]\n  strategy = "rolling"\n')
    (service / "railway.json").write_text('{"deploy": {"startCommand": "bash scripts/start.sh"}}')
    result = init(service, "--yes")
    assert result.code == 0
    assert "uvicorn shop.main:app --host 0.0.0.0 --port ${PORT:-8000}   (FastAPI in the sources)" in result.stdout
    assert "Platforms:             railway, fly   (there are docker, compose," in result.stdout
    assert (
        '[deploy]\n  release_command = "alembic-entrypoint migrate"\n  strategy' in (service / "fly.toml").read_text()
    )
    assert '"preDeployCommand": [\n      "alembic-entrypoint migrate"\n    ]' in (service / "railway.json").read_text()
    assert "startCommand in railway.json takes the place of ENTRYPOINT" in result.stdout
    assert "exec uvicorn shop.main:app" in (service / "Dockerfile").read_text()


def test_it_names_what_runs_alembic_by_itself(service: Path) -> None:
    """The scripts that people write: each place is named, none is changed."""
    script = (
        "#!/bin/sh\n# alembic upgrade head\nalembic upgrade head || {\n  alembic stamp head\n}\nexec python -m notes\n"
    )
    (service / "scripts").mkdir()
    (service / "scripts" / "start.sh").write_text(script)
    (service / "Procfile").write_text(
        "release: alembic upgrade head\nweb: alembic upgrade head && gunicorn notes:app\n"
    )
    (service / ".github" / "workflows").mkdir(parents=True)
    deploy = (
        "jobs:\n  deploy:\n    run: |\n      docker compose down\n      docker volume prune -f\n      sleep 10\n"
        "      docker compose exec -T api alembic upgrade head || { docker compose down -v; }\n"
        "      psql -c 'DROP TABLE IF EXISTS alembic_version CASCADE;'\n"
    )
    (service / ".github" / "workflows" / "deploy.yml").write_text(deploy)
    result = init(service, "--yes", "heroku", "github-actions")
    assert result.code == 0
    for place in (
        "scripts/start.sh:3: alembic upgrade head",
        "scripts/start.sh:4: alembic stamp head",
        ".github/workflows/deploy.yml:5: docker volume prune -f",
        ".github/workflows/deploy.yml:7: alembic upgrade head",
        ".github/workflows/deploy.yml:7: compose down -v",
        ".github/workflows/deploy.yml:8: DROP TABLE IF EXISTS alembic_version",
    ):
        assert f"  {place}\n" in result.stdout
    assert "start.sh:2" not in result.stdout
    assert "deploy.yml:4" not in result.stdout
    assert (service / "scripts" / "start.sh").read_text() == script
    assert (service / ".github" / "workflows" / "deploy.yml").read_text() == deploy
    assert "deploy.yml is there already and stays as it is." in result.stdout
    assert (service / "Procfile").read_text() == (
        "release: alembic-entrypoint migrate\nweb: alembic-entrypoint run -- gunicorn notes:app\n"
    )


def test_a_compose_file_that_the_deploy_cannot_steer_is_told_of(service: Path) -> None:
    (service / "docker-compose.yml").write_text("services:\n  api:\n    build: .\n")
    result = init(service, "--yes", "github-actions")
    assert "In docker-compose.yml, give the service that migrates `image: ${IMAGE:-app}`" in result.stdout
    assert "docker-compose.yml deploy.sh" in (service / ".github/workflows/deploy.yml").read_text()
    assert not (service / "compose.yaml").exists()


def test_outside_of_a_project_it_says_where_to_go(tmp_path: Path, service: Path) -> None:
    result = init(tmp_path)
    assert result.code == 78
    assert "There is one in service: cd service && alembic-entrypoint init" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["service"]


def test_an_unknown_platform_is_refused_with_those_that_are_known(service: Path) -> None:
    result = init(service, "nomad")
    assert result.code == 2
    assert "There is no platform nomad. There are docker, compose," in result.stderr


def test_the_help_names_the_platforms(service: Path) -> None:
    text = " ".join(entrypoint("init", "--help").stdout.split())
    assert ", ".join([*PLATFORMS][:-1]) + f" or {[*PLATFORMS][-1]}" in text


def test_a_disk_without_room_leaves_every_file_as_it_was(service: Path) -> None:
    before = texts(service)
    command = [COMMAND, "init", "--yes", "docker"]
    no_room = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (0, 0))
    done = subprocess.run(
        command, cwd=service, env=environment(), capture_output=True, text=True, check=False, preexec_fn=no_room
    )
    assert done.returncode == 78
    assert "Dockerfile cannot be written: File too large. It is as before" in done.stderr
    assert texts(service) == before


def test_a_file_that_cannot_be_written_is_as_before(service: Path) -> None:
    """A file stands where a folder should: what was written until there is said."""
    (service / "kubernetes").write_text("a file\n")
    result = init(service, "--yes", "kubernetes")
    assert result.code == 78
    assert "kubernetes/migrate-job.yaml cannot be written" in result.stderr
    assert "written: Dockerfile" in result.stdout
