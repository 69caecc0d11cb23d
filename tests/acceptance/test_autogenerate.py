"""Alembic's own comparison does not see the ledger: by a plugin from 1.18 on, by the line in the docs before."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from commands import entrypoint
from projects import project
from servers import Database

PAGE = Path(__file__).parents[2] / "docs" / "ledger.md"
HAS_PLUGINS = tuple(map(int, version("alembic").split(".")[:2])) >= (1, 18)
ENV = """
import os
import sqlalchemy as sa
from alembic import context

{include_name}

engine = sa.create_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"))
with engine.connect() as connection:
    context.configure(connection=connection, include_schemas=True, target_metadata=sa.MetaData(){argument})
    with context.begin_transaction():
        context.run_migrations()
"""


@pytest.mark.parametrize("has_line", [False, True], ids=["as it is", "with the line of the docs"])
def test_check_does_not_see_the_ledger(tmp_path: Path, database: Database, has_line: bool) -> None:
    text = PAGE.read_text()
    line = re.search(r"```python\n(def include_name.*?)```", text, re.DOTALL)
    assert line is not None
    filled = {"include_name": line[1], "argument": ", include_name=include_name"} if has_line else {}
    tree = project(tmp_path, env=ENV.format(**{"include_name": "", "argument": "", **filled}))
    tree.add("r1")
    assert entrypoint("migrate", cwd=tmp_path, env={"DATABASE_URL": database.url}).code == 0
    assert database.query("SELECT count(*) FROM alembic_entrypoint.settling") == [(1,)]
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "check"],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": database.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("remove_table" not in done.stdout + done.stderr) == (has_line or HAS_PLUGINS)
    assert (done.returncode == 0) == (has_line or HAS_PLUGINS)
