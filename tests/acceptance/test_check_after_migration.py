"""What is asked after each migration: nothing by itself, as long as each leaves everything as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Result, entrypoint
from projects import ENV, Project, project
from servers import Database

#: Keeps what is sent, by whomever.
SENT = """
import psycopg
execute = psycopg.Cursor.execute
def noting(self, query, *values, **keys):
    with open("sent", "a") as sent:
        sent.write(" ".join(str(query).split()) + "\\n")
    return execute(self, query, *values, **keys)
psycopg.Cursor.execute = noting
"""
QUESTION = "SELECT pg_catalog.set_config('alembic_entrypoint.answer'"
CONDITION = "pg_catalog.current_setting('alembic_entrypoint.answer', true) ="
#: As tracing does.
COMMENTING = """
from sqlalchemy import event
from sqlalchemy.engine import Engine
@event.listens_for(Engine, "before_cursor_execute", retval=True)
def comment(connection, cursor, statement, parameters, *_):
    return f"{statement} -- traced", parameters
"""


def migrated(tree: Project, database: Database) -> tuple[Result, int, int]:
    """Migrate; give how it ended, and how many questions and how many conditions were sent."""
    result = entrypoint("migrate", cwd=tree.folder, env={"DATABASE_URL": database.url})
    sent = (tree.folder / "sent").read_text().splitlines()
    return result, sum(QUESTION in each for each in sent), sum(CONDITION in each for each in sent)


@pytest.mark.parametrize("more", ["", COMMENTING], ids=["plain", "commented"])
@pytest.mark.parametrize(
    ("body", "questions"),
    [("pass", 2), ("op.execute('SET lock_timeout = 0')", 4), ("op.execute('COMMIT')", 3)],
    ids=["nothing", "a setting", "another transaction"],
)
def test_who_records_a_revision_asks_in_the_same_statement(
    tmp_path: Path, database: Database, body: str, questions: int, more: str
) -> None:
    """Before the first migration and after it, which inserts, it is asked; and where something is not as it was."""
    tree = project(tmp_path, env=SENT + more + ENV)
    tree.add_line(2)
    tree.add("hostile", body, down="r2")
    tree.add("after", down="hostile")
    tree.add("last", down="after")
    result, *asked = migrated(tree, database)
    assert (result.code, asked) == (0, [questions, 4])
    assert database.query("SELECT version_num FROM alembic_version") == [("last",)]


def test_where_each_statement_is_a_transaction_the_fence_is_taken_before_the_one_that_records(
    tmp_path: Path, database: Database
) -> None:
    env = ENV.replace("poolclass=pool.NullPool", "poolclass=pool.NullPool, isolation_level='AUTOCOMMIT'")
    tree = project(tmp_path, env=SENT + env)
    tree.add_line(4)
    result, _, conditions = migrated(tree, database)
    assert (result.code, conditions) == (0, 0)
    sent = (tree.folder / "sent").read_text().splitlines()
    recording = [n for n, each in enumerate(sent) if each.startswith("UPDATE alembic_version")]
    assert len(recording) == 3
    for n in recording:
        assert "pg_try_advisory_lock_shared" in sent[n - 2]
        assert "pg_catalog.pg_locks" in sent[n - 1]


def test_a_revision_that_is_not_there_is_told_in_the_words_of_alembic(tmp_path: Path, database: Database) -> None:
    tree = project(tmp_path, env=SENT + ENV)
    tree.add("first", "pass")
    tree.add("hostile", "op.execute('DELETE FROM alembic_version')", down="first")
    result, questions, conditions = migrated(tree, database)
    assert result.code == 1
    assert "expected to match one row" in result.stderr
    assert (questions, conditions) == (3, 1)
