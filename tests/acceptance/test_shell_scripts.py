"""What the scripts do that people write today, and what this program does in their place: the README's table."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from commands import entrypoint, environment
from projects import Project, project
from servers import Database, own_server, wait_until

UPGRADE = "alembic upgrade head && echo started"
STAMP = "alembic upgrade head || alembic stamp head; echo started"
PURGE = "alembic upgrade head || alembic stamp --purge head; echo started"


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    env = tmp_path / "migrations" / "env.py"
    env.write_text(
        env.read_text().replace(
            'config.get_main_option("sqlalchemy.url")',
            'os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")',
        )
    )
    made.add_line(3)
    return made


def shell(tree: Project, url: str, script: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["sh", "-c", script],
        cwd=tree.folder,
        env=environment({"DATABASE_URL": url, "PATH": path}),
        capture_output=True,
        text=True,
        check=False,
    )


def ours(tree: Project, url: str) -> tuple[int, str]:
    result = entrypoint("run", "echo", "started", cwd=tree.folder, env={"DATABASE_URL": url})
    return result.code, result.stdout


def test_three_at_once_on_an_empty_database(tree: Project, database: Database) -> None:
    """Plain Alembic's first statement decides: some of the three crash; all of ours start, and one migrates."""
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: ours(tree, database.url), range(3))) == [(0, "started\n")] * 3
    assert database.query("TABLE alembic_version") == [("r3",)]


def test_three_at_once_crash_under_plain_alembic(tree: Project, database: Database) -> None:
    tree.add("r0", "op.execute('SELECT pg_sleep(1)')", folder="migrations/versions")
    (tree.versions / "r1.py").write_text((tree.versions / "r1.py").read_text().replace("None", "'r0'"))
    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(lambda _: shell(tree, database.url, UPGRADE).returncode, range(3)))
    assert sorted(ends)[0] == 0
    assert sorted(ends)[1:] == [1, 1]


def test_three_at_once_crash_and_stamp_and_start(tree: Project, database: Database) -> None:
    tree.add("r0", "op.execute('SELECT pg_sleep(1)')", folder="migrations/versions")
    (tree.versions / "r1.py").write_text((tree.versions / "r1.py").read_text().replace("None", "'r0'"))
    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(lambda _: shell(tree, database.url, STAMP), range(3)))
    assert ["started" in end.stdout for end in ends] == [True] * 3
    assert sum("already exists" in end.stderr for end in ends) == 2


@pytest.mark.wide
def test_the_database_is_late(tree: Project) -> None:
    with own_server(18) as server:
        server.stop()
        assert "started" not in shell(tree, server.url, UPGRADE).stdout
        assert "started" in shell(tree, server.url, STAMP).stdout
        with ThreadPoolExecutor(1) as pool:
            end = pool.submit(ours, tree, server.url)
            wait_until(lambda: not end.done(), what="it waits")
            server.start()
            assert end.result() == (0, "started\n")


def test_a_squash(tree: Project, database: Database) -> None:
    """One starts the app on whatever is there, one records head for it; ours finds out what is there, or refuses."""
    shell(tree, database.url, "alembic upgrade r1")
    database.execute("UPDATE alembic_version SET version_num = 'a2242b61af45'; ALTER TABLE t1 ADD more int")
    assert "started" not in shell(tree, database.url, UPGRADE).stdout
    assert "started" in shell(tree, database.url, STAMP).stdout
    assert database.query("TABLE alembic_version") == [("a2242b61af45",)]
    assert ours(tree, database.url) == (65, "")
    assert database.query("TABLE alembic_version") == [("a2242b61af45",)]
    assert "started" in shell(tree, database.url, PURGE).stdout
    assert database.query("TABLE alembic_version") == [("r3",)]
    assert database.query("SELECT to_regclass('t3')") == [(None,)]

    database.execute("UPDATE alembic_version SET version_num = 'a2242b61af45'; ALTER TABLE t1 DROP more")
    assert ours(tree, database.url) == (0, "started\n")
    assert database.query("SELECT to_regclass('t3')::text") == [("t3",)]


def test_the_statement_of_a_killed_plain_alembic_runs_on(tree: Project, database: Database) -> None:
    tree.add("r4", "op.execute('SELECT pg_sleep(600)')", down="r3")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("alembic")), "upgrade", "head"],
        cwd=tree.folder,
        env=environment({"DATABASE_URL": database.url}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    sleeping = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()"
    wait_until(lambda: database.query(sleeping), what="the statement runs")
    process.kill()
    process.wait()
    assert database.query(sleeping), "the server has noticed by itself"
    database.query("SELECT pg_terminate_backend(pid) FROM (" + sleeping + ") s")
