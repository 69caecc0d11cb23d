"""Stale bytecode in the migrations' folders is removed at the start."""

from __future__ import annotations

import py_compile
from pathlib import Path

from commands import entrypoint
from projects import project
from servers import Database


def test_a_start_removes_bytecode_that_nothing_compares_with_its_source(tmp_path: Path, database: Database) -> None:
    tree = project(tmp_path)
    tree.add_line(1)
    helper = tree.write("migrations/helper.py", "NAME = 'wrong'\n")
    compiled = py_compile.compile(str(helper), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    helper.write_text("NAME = 'fixed'\n")
    tree.add("r2", "op.execute(f'CREATE TABLE {helper.NAME} ()')", down="r1", head="import helper")
    env = {"DATABASE_URL": database.url, "PYTHONPATH": str(tree.versions.parent)}
    off = entrypoint("plan", cwd=tmp_path, env=env)
    assert off.code == 0, off.stderr
    assert Path(compiled).exists()
    result = entrypoint("migrate", cwd=tmp_path, env=env)
    assert result.code == 0, result.stderr
    [event] = result.named("bytecode.removed")
    assert event["removed"][0]["reason"] == "unchecked"
    assert database.query("SELECT relname FROM pg_class WHERE relname IN ('fixed', 'wrong')") == [("fixed",)]


def test_clean_off_removes_nothing(tmp_path: Path, database: Database) -> None:
    tree = project(tmp_path)
    tree.add_line(1)
    orphan = tree.versions / "__pycache__" / "gone.cpython-311.pyc"
    orphan.parent.mkdir()
    orphan.write_bytes(b"\xa7\r\r\n" + bytes(12))
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_CLEAN": "off"}
    assert entrypoint("migrate", cwd=tmp_path, env=env).code == 0
    assert orphan.exists()


def test_clean_names_other_folders(tmp_path: Path, database: Database) -> None:
    tree = project(tmp_path)
    tree.add_line(1)
    orphan = tmp_path / "app" / "__pycache__" / "gone.cpython-311.pyc"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"\xa7\r\r\n" + bytes(12))
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_CLEAN": "app"}
    result = entrypoint("migrate", cwd=tmp_path, env=env)
    assert result.code == 0
    assert not orphan.exists()
    assert result.named("bytecode.removed")[0]["removed"] == [
        {"path": f"app/__pycache__/{orphan.name}", "reason": "orphan"}
    ]
