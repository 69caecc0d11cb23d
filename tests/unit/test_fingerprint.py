"""The fingerprint of an image: the same for the same work, another one for anything that may change it, or none."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from alembic_entrypoint import fingerprint as module
from alembic_entrypoint.fingerprint import ALL, Fingerprint, environment, fingerprint
from alembic_entrypoint.settings import Settings


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "migrations/versions").mkdir(parents=True)
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    (tmp_path / "migrations/env.py").write_text("env")
    (tmp_path / "migrations/versions/r1.py").write_text("r1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def word() -> str:
    found = fingerprint(Settings())
    assert found is not None
    return found.word


def test_it_is_the_same_for_the_same_image_and_a_number_for_a_lock(image: Path) -> None:
    assert word() == word()
    found = fingerprint(Settings())
    assert found is not None
    assert found.folders == (str(image / "migrations"),)
    assert 0 <= found.key < 2**31
    assert found.covers(str(image / "migrations" / "versions"))
    assert not found.covers(str(image / "migrations_of_others"))


def test_bytecode_does_not_count(image: Path) -> None:
    before = word()
    (image / "migrations/versions/__pycache__").mkdir()
    (image / "migrations/versions/__pycache__/r1.cpython-311.pyc").write_bytes(b"code")
    assert word() == before


def test_another_version_of_this_program_or_of_alembic_is_another_image(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {word()}
    with monkeypatch.context() as patched:
        patched.setattr(module, "__version__", "99")
        words.add(word())
    (image / "other.py").write_text("__version__ = '0'")
    monkeypatch.setattr(module, "find_spec", lambda _: ModuleSpec("alembic", None, origin=str(image / "other.py")))
    words.add(word())
    assert len(words) == 3


def test_where_one_file_ends_and_the_next_begins_counts(image: Path) -> None:
    words = set()
    for left, right in (("ab", "c"), ("a", "bc")):
        (image / "migrations/versions/r1.py").write_text(left)
        (image / "migrations/versions/r2.py").write_text(right)
        words.add(word())
    assert len(words) == 2


HIDDEN: dict[str, Callable[[Path], object]] = {
    "no configuration": lambda image: (image / "alembic.ini").unlink(),
    "a folder in a package": lambda image: (image / "alembic.ini").write_text("[alembic]\nscript_location = app:m\n"),
    "an interpolation": lambda image: (image / "alembic.ini").write_text("[alembic]\nscript_location = %(x)s\n"),
    "a folder that is not there": lambda image: (image / "alembic.ini").write_text("[alembic]\nscript_location = x\n"),
    "only bytecode": lambda image: (image / "alembic.ini").write_text(
        "[alembic]\nscript_location = migrations\nsourceless = true\n"
    ),
    "a link to a folder": lambda image: (image / "migrations/loop").symlink_to(image / "migrations"),
}


@pytest.mark.parametrize("change", HIDDEN.values(), ids=HIDDEN.keys())
def test_what_cannot_be_seen_plainly_has_none(image: Path, change: Callable[[Path], object]) -> None:
    change(image)
    assert fingerprint(Settings()) is None


def test_another_interpreter_has_none(image: Path) -> None:
    assert fingerprint(dataclasses.replace(Settings(), python="/usr/bin/python-of-the-app")) is None


def test_pyproject_says_where_the_migrations_are_too(image: Path) -> None:
    (image / "alembic.ini").unlink()
    (image / "pyproject.toml").write_text('[tool.alembic]\nscript_location = "%(here)s/migrations"\n')
    found = fingerprint(Settings())
    if sys.version_info < (3, 11):  # without tomllib such a project takes the long way
        assert found is None
        return
    assert isinstance(found, Fingerprint)
    assert found.folders == (str(image / "migrations"),)


def test_the_variables_that_were_read_count_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENANT", raising=False)
    unset = environment(["TENANT"])
    monkeypatch.setenv("TENANT", "")
    empty = environment(["TENANT"])
    monkeypatch.setenv("OTHER", "1")
    assert len({unset, empty}) == 2
    assert environment(["TENANT"]) == empty


def test_the_whole_environment_counts_but_for_what_differs_between_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "pod-1")
    monkeypatch.setenv("TENANT", "a")
    before = environment([ALL])
    monkeypatch.setenv("HOSTNAME", "pod-2")
    assert environment([ALL]) == before
    assert environment([ALL, "HOSTNAME"]) != before
    monkeypatch.setenv("TENANT", "b")
    assert environment([ALL]) != before
