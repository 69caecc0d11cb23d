"""The same on every PostgreSQL that is supported: a first start, a second, a failure, and replicas at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from commands import entrypoint
from projects import Project, project
from servers import Server, fresh_database

OLD = [pytest.param(name, marks=pytest.mark.extra) for name in ("pg13", "pg15")]


@pytest.fixture(params=["server", "pg16", *OLD])
def each_server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add_line(3)
    made.add(
        "r4",
        """
        with op.get_context().autocommit_block():
            op.execute("CREATE INDEX CONCURRENTLY t1_id ON t1 (id)")
        """,
        down="r3",
    )
    return made


def test_three_replicas_start_and_one_migrates(each_server: Server, tree: Project) -> None:
    with fresh_database(each_server) as database, ThreadPoolExecutor(3) as pool:
        env = {"DATABASE_URL": database.url}
        results = list(pool.map(lambda _: entrypoint("run", "true", cwd=tree.folder, env=env), range(3)))
        assert [result.code for result in results] == [0, 0, 0], [result.stderr for result in results]
        assert sum(len(result.named("schema.upgraded")) for result in results) == 1
        assert database.query("TABLE alembic_version") == [("r4",)]
        again = entrypoint("run", "true", cwd=tree.folder, env=env)
        assert (again.code, again.state) == (0, "CURRENT")


def test_a_failure_leaves_the_database_as_before(each_server: Server, tree: Project) -> None:
    tree.add("r5", "op.execute('CREATE TABLE half ()')\nop.execute('SELECT 1 / 0')", down="r4")
    with fresh_database(each_server) as database:
        env = {"DATABASE_URL": database.url}
        assert entrypoint("migrate", "--target", "r4", cwd=tree.folder, env=env).code == 0
        result = entrypoint("migrate", cwd=tree.folder, env=env)
        assert result.code == 1
        assert "division by zero" in result.message
        assert "The database is as before: nothing was committed." in result.message
        assert database.query("SELECT to_regclass('half')") == [(None,)]
