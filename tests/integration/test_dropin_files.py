"""The files in `entrypoint/` are right: by their schemas and linters, by our command line, and by the contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from alembic_entrypoint.dropin.files import PLATFORMS
from alembic_entrypoint.errors import ENDINGS
from dropins import assert_good, commands_in, shell

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "entrypoint"
FILES = sorted(
    path for name in PLATFORMS for path in (FOLDER / name).rglob("*") if path.is_file() and path.suffix != ".pyc"
)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_each_platform_has_its_folder_with_a_page() -> None:
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert folders == {*PLATFORMS, "example"}
    for name in PLATFORMS:
        assert (FOLDER / name / "README.md").is_file()
        assert any("alembic-entrypoint" in path.read_text() for path in FILES if path.parent.name == name)


@pytest.mark.extra
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_each_file_is_good(file: Path) -> None:
    assert_good(file)


@pytest.mark.extra
@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_our_own_workflows_are_good(file: Path) -> None:
    assert_good(file)


@pytest.mark.extra
@pytest.mark.parametrize("page", sorted(FOLDER.glob("*/README.md")), ids=lambda page: page.parent.name)
def test_the_shell_on_each_page_is_shell(page: Path) -> None:
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.splitlines():
            assert line.startswith("$ ")
            shell(f"{line[2:]}\n")


def test_the_job_ends_at_once_on_each_code_that_starting_again_cannot_mend() -> None:
    job = yaml.safe_load((FOLDER / "kubernetes/migrate-job.yaml").read_text())
    [rule] = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    again = {"unavailable", "try again"}
    assert rule["onExitCodes"]["values"] == sorted(each.exit_code for each in ENDINGS if each.name not in again)
    assert rule["onExitCodes"]["containerName"] == job["spec"]["template"]["spec"]["containers"][0]["name"]


def test_no_probe_and_no_deadline_can_end_a_migration() -> None:
    job = (FOLDER / "kubernetes/migrate-job.yaml").read_text()
    assert not re.search(r"^\s*(activeDeadlineSeconds|\w+Probe):", job, re.MULTILINE)
    deployment = yaml.safe_load((FOLDER / "kubernetes/deployment.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["command"] == ["alembic-entrypoint", "await", "head"]
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    [app] = pod["containers"]
    assert {"name": "ALEMBIC_ENTRYPOINT_MODE", "value": "off"} in app["env"]


def test_nothing_that_loses_data_or_guesses_is_shown() -> None:
    for file in FILES:
        if file.suffix != ".md":
            lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
            for word in ("prune", "sleep", "stamp", "down -v", "--no-cache ", "|| alembic"):
                assert not any(word in line for line in lines), f"{word} in {file}"


def test_the_finder_of_commands_finds_all_forms() -> None:
    text = """
    ENTRYPOINT ["alembic-entrypoint", "run", "--"]
    command: [alembic-entrypoint, await, head]
    release: alembic-entrypoint migrate
    `alembic-entrypoint plan --json`; the alembic-entrypoint.
    pip install --requirement requirements.txt alembic-entrypoint
    """
    assert commands_in(text) == [["run", "--"], ["await", "head"], ["migrate"], ["plan", "--json"]]
