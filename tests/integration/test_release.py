"""A release is built from one version, and its workflows run what a developer can run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alembic_entrypoint import __version__
from dropins import call, tomllib

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What decides the version, with a changelog that has a section for it."""
    for path in ("pyproject.toml", "README.md", "LICENSE", ".ci", "src/alembic_entrypoint/__init__.py"):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / path).is_dir() else shutil.copy)(ROOT / path, target)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {__version__} - 2026-01-31\n")
    return tmp_path


def checked(sources: Path, tag: str) -> tuple[int, str]:
    """Run the check that the workflow runs; give its exit code and what it says."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        [sources / ".ci/version", tag], capture_output=True, text=True, check=False, env={"PATH": path}
    )
    return done.returncode, done.stderr


def test_a_tag_of_another_version_is_refused(sources: Path) -> None:
    assert checked(sources, f"v{__version__}") == (0, "")
    code, said = checked(sources, "v99.0.0")
    assert code == 1
    assert f"The tag is v99.0.0, and the version in pyproject.toml is {__version__}" in said


def test_a_version_without_a_section_in_the_changelog_is_refused(sources: Path) -> None:
    (sources / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    code, said = checked(sources, f"v{__version__}")
    assert code == 1
    assert "CHANGELOG.md has no section" in said


def test_a_package_that_says_another_version_is_refused(sources: Path) -> None:
    (sources / "src/alembic_entrypoint/__init__.py").write_text('__version__ = "99.0.0"\n')
    code, said = checked(sources, f"v{__version__}")
    assert code == 1
    assert "__version__ is 99.0.0" in said


def test_the_workflows_use_what_there_is() -> None:
    """Each target of make and each script that they name exists, and only the publishing jobs may write."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = file.read_text()
        for name in re.findall(r"\bmake ([\w -]+)$", text, re.MULTILINE):
            assert {*name.split()} <= targets
        for path in re.findall(r"(?:^|\s)(\.ci/[\w-]+)", text):
            assert (ROOT / path).stat().st_mode & 0o100, path
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert {*ci["jobs"]["extra"]["strategy"]["matrix"]["part"]} <= targets
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    rights = {name: job.get("permissions", {}) for name, job in release["jobs"].items()}
    assert release["permissions"] == {}
    assert rights["pypi"] == {"id-token": "write"}
    assert {*release["jobs"]["pypi"]["needs"]} == {*release["jobs"]["image"]["needs"]} == {"ci", "build"}


def test_the_lowest_versions_that_are_tested_are_those_that_pyproject_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    drivers = [each for each in project["optional-dependencies"]["dev"] if each.startswith(("asyncpg", "psycopg2"))]
    floors = dict(each.split(">=") for each in (*project["dependencies"], *drivers))
    floors["psycopg"] = floors["psycopg-binary"] = floors.pop("psycopg[binary]")
    pins = dict(line.split("==") for line in (ROOT / "tests" / "lowest.txt").read_text().split())
    wrong = [
        name for name, floor in floors.items() if not re.fullmatch(rf"{re.escape(floor)}(\.0)*", pins.get(name, ""))
    ]
    assert wrong == []


@pytest.mark.wide
def test_the_container_tests_fail_where_there_is_no_engine(tmp_path: Path) -> None:
    """They are not skipped: a job without an engine would be green, and have shown nothing."""
    test = "tests/container/test_image.py::test_true_ends_with_zero_twice"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    env = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "The container tests need a Docker engine, and there is no `docker` command here." in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 error in ")


@pytest.mark.extra
@pytest.mark.parametrize("script", sorted((ROOT / ".ci").iterdir()), ids=lambda path: path.name)
def test_the_scripts_are_shell(script: Path) -> None:
    call("shellcheck", "--severity=warning", script)


@pytest.mark.extra
def test_the_linter_of_workflows_sees_a_fault(tmp_path: Path) -> None:
    """What the linter lets through was looked at."""
    from dropins import ACTIONLINT

    broken = tmp_path / "broken.yml"
    broken.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ secret.x }}\n"
    )
    done = subprocess.run(["node", ACTIONLINT, broken], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "secret" in done.stdout + done.stderr
