"""`downgrade` as a person runs it: what is shown, what is asked, what is undone, and what happens when it fails."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from alembic_entrypoint.worker.messages import LOCK_A, LOCK_CLASS
from commands import COMMAND, Result, entrypoint, environment, started
from projects import ENV, Project, project
from servers import Database, Server, wait_until


@pytest.fixture
def tree(tmp_path: Path, database: Database) -> Project:
    """Three migrations, all applied."""
    made = project(tmp_path)
    made.add_line(3)
    assert run(made, database, "migrate").code == 0
    return made


def run(tree: Project, database: Database, *arguments: str, **env: str) -> Result:
    return entrypoint(*arguments, cwd=tree.folder, env={"DATABASE_URL": database.url, **env}, stdin=subprocess.DEVNULL)


def recorded(database: Database) -> list[str]:
    return sorted(row[0] for row in database.query("SELECT version_num FROM alembic_version"))


def tables(database: Database) -> list[str]:
    rows = database.query("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    return sorted(row[0] for row in rows if row[0] != "alembic_version")


def remembered(tree: Project, database: Database) -> tuple[object, ...]:
    """Give how the ledger tells the last settling."""
    last = json.loads(run(tree, database, "history", "--json").stdout)[-1]
    return last["action"], last["outcome"], last["before"], last["after"]


def answered(tree: Project, database: Database, answer: str, *arguments: str) -> tuple[int, str]:
    """Run it on a terminal, and type an answer to its question; give the exit code and what was on the screen."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [COMMAND, *arguments],
        cwd=tree.folder,
        env=environment({"DATABASE_URL": database.url}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        screen = ""
        try:
            while data := os.read(ours, 4096):
                screen += data.decode(errors="replace")
                if "Type yes" in screen and answer:
                    os.write(ours, f"{answer}\n".encode())
                    answer = ""
        except OSError:  # the terminal's other end was closed
            pass
        os.close(ours)
        return process.wait(30), screen


@contextmanager
def hold_lock(database: Database) -> Iterator[Callable[[], None]]:
    """Hold the lock as another replica would; give what frees it."""
    with database.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, LOCK_A])
        yield other.close


# --- what is undone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rev", "after", "left"),
    [
        pytest.param("r2", ["r2"], ["t1", "t2"], marks=pytest.mark.extra),
        ("-2", ["r1"], ["t1"]),
        ("base", [], []),
        pytest.param("-3", [], [], marks=pytest.mark.extra),
    ],
)
def test_every_form_of_rev_is_understood(
    rev: str, after: list[str], left: list[str], tree: Project, database: Database
) -> None:
    result = run(tree, database, "downgrade", rev, "--yes")
    assert result.code == 0, result.stderr
    assert (recorded(database), tables(database)) == (after, left)
    [event] = result.named("schema.downgraded")
    assert (event["before"], event["after"]) == (["r3"], after)
    assert remembered(tree, database) == ("DOWNGRADE", "ok", ["r3"], after)


def test_it_says_what_is_undone_what_may_be_lost_and_how_to_go_back(tree: Project, database: Database) -> None:
    result = run(tree, database, "downgrade", "r1", "--yes")
    for part in (
        "records r3.",
        "A downgrade to r1 undoes 2, the last one first:\n  r3  Migration r3.  migrations/versions/r3.py\n  r2 ",
        "Lost may be what these take away:\n  DROP TABLE t3\n  DROP TABLE t2\n",
        "No backup is made: ALEMBIC_ENTRYPOINT_BACKUP is not set.",
        "Undone: r3, r2.",
        "To do so now: alembic-entrypoint migrate --target r3",
    ):
        assert part in result.stdout
    assert "alembic_version " not in result.stdout.split("Lost may be")[1]
    assert run(tree, database, "migrate", "--target", "r3").code == 0
    assert tables(database) == ["t1", "t2", "t3"]


@pytest.mark.extra
def test_what_is_undone_already_is_nothing_to_do(tree: Project, database: Database) -> None:
    result = run(tree, database, "downgrade", "r3", "--yes")
    assert (result.code, "there is nothing to undo" in result.stdout) == (0, True)
    assert not result.named("lock.acquired")


def test_only_the_branch_above_the_revision_is_undone(tmp_path: Path, database: Database) -> None:
    tree = project(tmp_path)
    for branch in "ab":
        tree.add(
            f"{branch}1", f"op.execute('CREATE TABLE {branch}1 ()')", downgrade=f"op.execute('DROP TABLE {branch}1')"
        )
        tree.add(
            f"{branch}2",
            f"op.execute('CREATE TABLE {branch}2 ()')",
            down=f"{branch}1",
            downgrade=f"op.execute('DROP TABLE {branch}2')",
        )
    assert run(tree, database, "migrate", "--target", "heads").code == 0
    result = run(tree, database, "downgrade", "-1", "--yes")
    assert (result.code, "more than one meaning where a2, b2" in result.message) == (2, True)
    assert run(tree, database, "downgrade", "a1", "--yes").code == 0
    assert (recorded(database), tables(database)) == (["a1", "b2"], ["a1", "b1", "b2"])


@pytest.mark.extra
def test_a_merge_is_undone_into_its_parents(tree: Project, database: Database) -> None:
    tree.add("r3b", "op.execute('CREATE TABLE t3b ()')", down="r2", downgrade="op.execute('DROP TABLE t3b')")
    tree.add("m", down=("r3", "r3b"))
    assert run(tree, database, "migrate").code == 0
    result = run(tree, database, "downgrade", "-1", "--yes")
    assert (result.code, "leads to several: r3, r3b" in result.message) == (2, True)
    assert run(tree, database, "downgrade", "r3", "--yes").code == 0
    assert recorded(database) == ["r3", "r3b"]
    assert run(tree, database, "downgrade", "r2", "--yes").code == 0
    assert (recorded(database), tables(database)) == (["r2"], ["t1", "t2"])


@pytest.mark.extra
def test_a_downgrade_that_changes_nothing_is_warned_of(tree: Project, database: Database) -> None:
    tree.add("r3", "op.execute('CREATE TABLE t3 ()')", down="r2")
    [event] = run(tree, database, "downgrade", "r2", "--yes").named("schema.downgraded")
    assert event["level"] == "warning"
    assert "what these migrations made is still there" in event["note"]


def test_there_is_a_backup_from_before_with_the_command_that_restores_it(
    tree: Project, database: Database, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    env = {"ALEMBIC_ENTRYPOINT_BACKUP": str(folder), "PATH": f"{server.programs}:{os.environ['PATH']}"}
    result = run(tree, database, "downgrade", "r2", "--yes", **env)
    assert result.code == 0, result.stderr
    [file] = folder.iterdir()
    assert f"The backup from before: {file}" in result.stdout
    assert "pg_restore" in result.stdout
    assert run(tree, database, "downgrade", "r1", "--yes", ALEMBIC_ENTRYPOINT_BACKUP="/nowhere").code == 73
    assert recorded(database) == ["r2"]


# --- the question --------------------------------------------------------------------------------------------------


def test_without_a_terminal_and_without_yes_nothing_is_undone(tree: Project, database: Database) -> None:
    result = run(tree, database, "downgrade", "-1")
    assert result.code == 2
    assert "A downgrade to r2 undoes 1" in result.stdout
    assert "alembic-entrypoint downgrade -1 --yes" in result.message
    assert recorded(database) == ["r3"]


@pytest.mark.parametrize(("answer", "code", "after"), [("yes", 0, ["r2"]), ("no", 2, ["r3"])])
def test_on_a_terminal_it_asks(answer: str, code: int, after: list[str], tree: Project, database: Database) -> None:
    ended, screen = answered(tree, database, answer, "downgrade", "-1")
    assert (ended, recorded(database)) == (code, after), screen
    assert screen.index("A downgrade to r2 undoes 1") < screen.index("Type yes")


@pytest.mark.parametrize(
    ("rev", "reason"),
    [
        ("r9", "No migration in this image has the revision 'r9'"),
        pytest.param("r", "No migration in this image has the revision 'r'", marks=pytest.mark.extra),
        pytest.param("--frob", "No migration in this image has the revision '--frob'", marks=pytest.mark.extra),
        ("-4", "There are fewer than 4 migrations"),
        ("r4", "r4 is not applied here: recorded is r3"),
    ],
)
def test_a_revision_that_means_nothing_here(rev: str, reason: str, tree: Project, database: Database) -> None:
    tree.add("r4", down="r3")
    result = run(tree, database, "downgrade", rev, "--yes")
    assert (result.code, reason in result.message) == (2, True), result.stderr
    assert "Nothing was changed." in result.message
    assert recorded(database) == ["r3"]


# --- what is in its way --------------------------------------------------------------------------------------------


def test_an_image_that_lacks_what_is_recorded_cannot_undo_it(tree: Project, database: Database) -> None:
    (tree.versions / "r3.py").unlink()
    result = run(tree, database, "downgrade", "r1", "--yes")
    assert result.code == 65
    assert "records r3, and no migration in this image has that id" in result.message


def test_a_failed_downgrade_leaves_the_database_as_before(tree: Project, database: Database) -> None:
    tree.add("r2", down="r1", downgrade="op.execute('DROP TABLE t2')\nop.execute('DROP TABLE nowhere')")
    result = run(tree, database, "downgrade", "r1", "--yes")
    assert result.code == 1, result.stderr
    for part in (
        "The downgrade of r2 (2 of 2, migrations/versions/r2.py) failed",
        'table "nowhere" does not exist',
        "Statement: DROP TABLE nowhere",
        "The database is as before",
        "Mend its downgrade()",
    ):
        assert part in result.message
    assert (recorded(database), tables(database)) == (["r3"], ["t1", "t2", "t3"])
    assert remembered(tree, database) == ("DOWNGRADE", "failed", ["r3"], ["r3"])


def test_a_failed_downgrade_names_what_was_undone_before_and_kept(tree: Project, database: Database) -> None:
    tree.write(
        "migrations/env.py",
        ENV.replace("connection=connection)", "connection=connection, transaction_per_migration=True)"),
    )
    tree.add("r2", down="r1", downgrade="op.execute('DROP TABLE nowhere')")
    result = run(tree, database, "downgrade", "r1", "--yes")
    assert result.code == 1, result.stderr
    assert "Undone before it and kept: r3." in result.message
    assert "as it was when r3 had been undone" in result.message
    assert (recorded(database), tables(database)) == (["r2"], ["t1", "t2"])
    assert remembered(tree, database) == ("DOWNGRADE", "failed", ["r3"], ["r2"])


@pytest.mark.extra
@pytest.mark.parametrize(
    ("commits", "words"), [("", "them, and the database is as before"), ("; COMMIT", "all of them")]
)
def test_a_downgrade_that_env_py_does_not_commit_is_noticed(
    commits: str, words: str, tree: Project, database: Database
) -> None:
    tree.write(
        "migrations/env.py",
        ENV.replace(
            "context.configure(connection", "connection.exec_driver_sql('SELECT 1'); context.configure(connection"
        ),
    )
    tree.add("r2", "op.execute('CREATE TABLE t2 ()')", down="r1", downgrade=f"op.execute('DROP TABLE t2{commits}')")
    result = run(tree, database, "downgrade", "r1", "--yes")
    assert (result.code, f"env.py did not commit {words}" in result.message) == (1, True), result.stderr
    assert ("as before" in result.message) == (commits == "")


def test_two_at_once_undo_it_once(tree: Project, database: Database) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run(tree, database, "downgrade", "-1", "--yes"), range(2)))
    assert sum(len(each.named("schema.downgraded")) for each in results) == 1
    assert sorted(each.code for each in results) == [0, 0], [each.stderr for each in results]
    assert recorded(database) == ["r2"]


def test_what_was_not_shown_is_not_undone(tree: Project, database: Database) -> None:
    """While it waits for the lock, another image adds a migration on top of what was to be undone."""
    with (
        hold_lock(database) as release,
        started(tree.folder, "downgrade", "r2", "--yes", env={"DATABASE_URL": database.url}) as running,
    ):
        wait_until(lambda: running.has("lock.waiting"), 30)
        tree.add("r4", "op.execute('CREATE TABLE t4 ()')", down="r3", downgrade="op.execute('DROP TABLE t4')")
        database.execute("CREATE TABLE t4 (); UPDATE alembic_version SET version_num = 'r4'")
        release()
        result = running.end()
    assert (result.code, "Somebody changed what is recorded meanwhile: it is now r4" in result.message) == (65, True)
    assert (recorded(database), tables(database)) == (["r4"], ["t1", "t2", "t3", "t4"])


@pytest.mark.extra
def test_a_downgrade_that_queues_for_a_table_is_tried_again(tree: Project, database: Database) -> None:
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": "0.2"}
    with database.connect(autocommit=False) as other:
        other.execute("LOCK TABLE t3 IN ACCESS SHARE MODE")
        with started(tree.folder, "downgrade", "r2", "--yes", env=env) as running:
            wait_until(lambda: running.has("migration.retried"), 30)
            other.rollback()
            result = running.end()
    assert result.code == 0, result.stderr
    assert tables(database) == ["t1", "t2"]
