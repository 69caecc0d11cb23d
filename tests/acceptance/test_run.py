"""`run` and `migrate` on real databases: each state that acts, and what a person reads when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Result, entrypoint
from projects import PER_MIGRATION, Project, project
from servers import Database


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add_line(3)
    return made


def run(tree: Project, database: Database, *arguments: str, **env: str) -> Result:
    return entrypoint(*arguments, cwd=tree.folder, env={"DATABASE_URL": database.url, **env})


def recorded(database: Database) -> list[str]:
    return sorted(row[0] for row in database.query("SELECT version_num FROM alembic_version"))


def tables(database: Database) -> list[str]:
    rows = database.query("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    return sorted(row[0] for row in rows)


def test_a_fresh_database_is_upgraded_and_the_app_started(tree: Project, database: Database) -> None:
    result = run(tree, database, "run", "--", "echo", "the app")
    assert (result.code, result.stdout) == (0, "the app\n")
    assert recorded(database) == ["r3"]
    assert tables(database) == ["alembic_version", "t1", "t2", "t3"]
    assert [each["revision"] for each in result.named("migration.finished")] == ["r1", "r2", "r3"]
    assert result.named("schema.upgraded")[0]["after"] == ["r3"]


def test_a_database_behind_is_upgraded_from_where_it_is(tree: Project, database: Database) -> None:
    run(tree, database, "migrate", "--target", "r1")
    result = run(tree, database, "migrate")
    assert result.code == 0
    assert [each["revision"] for each in result.named("migration.finished")] == ["r2", "r3"]
    assert result.named("schema.upgraded")[0]["before"] == ["r1"]


def test_a_current_database_takes_no_lock_and_starts_the_app(tree: Project, database: Database) -> None:
    run(tree, database, "migrate")
    result = run(tree, database, "run", "true")
    assert result.code == 0
    assert result.state == "CURRENT"
    assert not result.named("lock.acquired")


def test_a_target_that_lies_beneath_what_is_recorded_starts_the_app(tree: Project, database: Database) -> None:
    run(tree, database, "migrate")
    assert run(tree, database, "migrate", "--target", "r1").code == 0
    assert recorded(database) == ["r3"]


@pytest.mark.parametrize(
    ("target", "after"),
    [("head", ["b2", "a2"]), ("heads", ["a2", "b2"]), ("red@head", ["a2"]), ("b1", ["b1"])],
)
def test_every_form_of_target_is_understood(tmp_path: Path, database: Database, target: str, after: list[str]) -> None:
    tree = project(tmp_path)
    tree.add("a1", "op.execute('CREATE TABLE a1 ()')", branch_labels=("red",))
    tree.add("a2", down="a1")
    tree.add("b1", "op.execute('CREATE TABLE b1 ()')", branch_labels=("blue",))
    tree.add("b2", down="b1")
    result = run(tree, database, "migrate", "--target", target)
    if target == "head":
        assert (result.code, result.state) == (78, "FORKED")
        assert "alembic merge -m 'merge heads' a2 b2" in result.message
        assert tables(database) == []
    else:
        assert result.code == 0, result.stderr
        assert recorded(database) == sorted(after)


def test_a_target_that_no_file_has_is_refused(tree: Project, database: Database) -> None:
    result = run(tree, database, "migrate", "--target", "r")
    assert result.code == 78
    assert "ALEMBIC_ENTRYPOINT_TARGET is 'r', which no migration in this image has" in result.message


def test_every_fault_of_broken_migrations_is_named_at_once(tree: Project, database: Database) -> None:
    tree.add("r2b", "pass", down="gone")
    tree.write("migrations/versions/twice.py", "revision = 'r1'\ndown_revision = None\ndef upgrade(): pass\n")
    tree.write("migrations/versions/bad.py", "revision = 'bad'\nimport no_such_package\n")
    tree.add("x" * 40, down="r3")
    result = run(tree, database, "migrate")
    assert (result.code, result.state) == (78, "BROKEN")
    for part in ("follows gone", "r1 is in 2 files", "no_such_package", "has 40 letters"):
        assert part in result.message
    assert tables(database) == []


def test_an_image_without_migrations_is_refused(tmp_path: Path, database: Database) -> None:
    result = run(project(tmp_path), database, "migrate")
    assert (result.code, result.state) == (78, "BROKEN")
    assert "there are no migrations" in result.message
    assert tables(database) == []


def test_overlapping_rows_are_refused_with_both(tree: Project, database: Database) -> None:
    run(tree, database, "migrate")
    database.execute("INSERT INTO alembic_version VALUES ('r1')")
    result = run(tree, database, "run", "echo", "the app")
    assert (result.code, result.state, result.stdout) == (65, "OVERLAPPED", "")
    assert "r1 is an ancestor of r3" in result.message
    assert recorded(database) == ["r1", "r3"]


def test_a_lost_revision_is_refused_and_nothing_changes(tree: Project, database: Database) -> None:
    run(tree, database, "migrate")
    database.execute("UPDATE alembic_version SET version_num = 'a2242b61af45'; ALTER TABLE t1 ADD more int")
    result = run(tree, database, "run", "echo", "the app")
    assert (result.code, result.state, result.stdout) == (65, "LOST", "")
    assert "a2242b61af45" in result.message
    assert recorded(database) == ["a2242b61af45"]


def test_a_revision_is_not_known_by_its_prefix(tree: Project, database: Database) -> None:
    run(tree, database, "migrate")
    database.execute("UPDATE alembic_version SET version_num = 'r'")
    assert run(tree, database, "migrate").named("schema.decided")[0]["state"] == "LOST"


def test_tables_without_a_version_are_refused_and_named(tree: Project, database: Database) -> None:
    database.execute("CREATE TABLE t1 (id int)")
    result = run(tree, database, "migrate")
    assert (result.code, result.state) == (65, "UNTRACKED")
    assert "public.t1" in result.message
    assert tables(database) == ["t1"]


def test_tables_that_belong_to_others_can_be_ignored(tree: Project, database: Database) -> None:
    database.execute("CREATE SCHEMA other; CREATE TABLE other.a (); CREATE TABLE public.legacy ()")
    result = run(tree, database, "migrate", ALEMBIC_ENTRYPOINT_IGNORE="other.* public.legacy")
    assert result.code == 0, result.stderr
    assert recorded(database) == ["r3"]


def test_a_failed_upgrade_says_what_failed_and_leaves_the_database_as_before(tree: Project, database: Database) -> None:
    tree.add("r4", "op.execute('INSERT INTO nowhere VALUES (1)')", down="r3")
    result = run(tree, database, "run", "echo", "the app")
    assert (result.code, result.stdout) == (1, "")
    for part in (
        "Migration r4 (4 of 4, migrations/versions/r4.py) failed",
        'relation "nowhere" does not exist',
        "INSERT INTO nowhere",
        "The database is as before",
        "The app was not started",
    ):
        assert part in result.message
    assert tables(database) == []


def test_a_failed_upgrade_names_what_was_committed_before(tree: Project, database: Database) -> None:
    tree.write("migrations/env.py", PER_MIGRATION)
    tree.add("r4", "op.execute('INSERT INTO nowhere VALUES (1)')", down="r3")
    result = run(tree, database, "migrate")
    assert result.code == 1
    assert "Applied before it and kept: r1, r2, r3." in result.message
    assert "the database is as r3 made it" in result.message
    assert recorded(database) == ["r3"]


def test_a_failed_upgrade_names_what_it_left_behind(tree: Project, database: Database) -> None:
    tree.add(
        "r4",
        """
        op.execute("CREATE TABLE half (id int)")
        op.execute("INSERT INTO half VALUES (1), (1)")
        with op.get_context().autocommit_block():
            op.execute("CREATE UNIQUE INDEX CONCURRENTLY half_id ON half (id)")
        """,
        down="r3",
    )
    result = run(tree, database, "migrate")
    assert result.code == 1
    assert "partly committed" in result.message
    assert "DROP INDEX CONCURRENTLY public.half_id;" in result.message
    assert "as before" not in result.message


def commit_nothing(tree: Project) -> None:
    """Have `env.py` begin a transaction that it never ends."""
    env = tree.folder / "migrations" / "env.py"
    env.write_text(
        env.read_text().replace(
            "        context.configure(connection=connection)",
            "        connection.exec_driver_sql('SELECT 1')\n        context.configure(connection=connection)",
        )
    )


def test_migrations_that_env_py_does_not_commit_are_noticed(tree: Project, database: Database) -> None:
    commit_nothing(tree)
    result = run(tree, database, "run", "echo", "the app")
    assert (result.code, result.stdout) == (1, "")
    assert "env.py did not commit them" in result.message
    assert tables(database) == []


def test_what_a_migration_commits_although_env_py_does_not_is_not_called_as_before(
    tree: Project, database: Database
) -> None:
    commit_nothing(tree)
    tree.add("r9", "op.execute('CREATE TABLE t9 ()')\nop.execute('COMMIT')", down="r3")
    result = run(tree, database, "run", "echo", "the app")
    assert (result.code, result.stdout) == (1, "")
    assert "t9" in tables(database)
    assert "did not commit all of them, and what a migration committed by itself is there" in result.message
    assert "as before" not in result.message


def test_plan_says_what_would_run_and_writes_nothing(tree: Project, database: Database) -> None:
    result = run(tree, database, "plan")
    assert result.code == 0
    assert result.stdout.splitlines()[0].startswith(
        "UPGRADE  FRESH: the database is empty, and 3 migrations are pending"
    )
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["r1", "r2", "r3"]
    assert tables(database) == []


def test_plan_sql_prints_the_sql_and_writes_nothing(tree: Project, database: Database) -> None:
    result = run(tree, database, "plan", "--sql")
    assert result.code == 0, result.stderr
    assert "CREATE TABLE t3 (id int PRIMARY KEY);" in result.stdout
    assert "INSERT INTO alembic_version" in result.stdout
    assert tables(database) == []


def test_plan_sql_begins_at_what_is_recorded(tree: Project, database: Database) -> None:
    run(tree, database, "migrate", "--target", "r2")
    result = run(tree, database, "plan", "--sql")
    assert "CREATE TABLE t3" in result.stdout
    assert "CREATE TABLE t1" not in result.stdout
    assert recorded(database) == ["r2"]


def test_plan_ends_with_the_code_that_run_would_end_with(tree: Project, database: Database) -> None:
    database.execute("CREATE TABLE t1 (id int)")
    assert run(tree, database, "plan", "--json").code == 65
    tree.add("fork", down="r1")
    assert run(tree, database, "plan").code == 78


def test_mode_off_only_starts_the_app_whatever_else_is_set(tmp_path: Path) -> None:
    env = {
        "ALEMBIC_ENTRYPOINT_MODE": "off",
        "ALEMBIC_ENTRYPOINT_NONSENSE": "1",
        "DATABASE_URL": "mysql://nowhere",
    }
    result = entrypoint("run", "--", "echo", "in", cwd=tmp_path, env=env)
    assert (result.code, result.stdout, result.stderr) == (0, "in\n", "")


def test_help_url_is_shown_with_a_refusal(tree: Project, database: Database) -> None:
    database.execute("CREATE TABLE t1 (id int)")
    result = run(tree, database, "migrate", ALEMBIC_ENTRYPOINT_HELP_URL="https://example.com/help")
    assert result.message.endswith("More: https://example.com/help")


def test_what_a_connection_of_a_migrations_own_committed_is_found_in_the_schema(
    tree: Project, database: Database
) -> None:
    tree.add(
        "r4",
        """
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
            connection.execute("CREATE TABLE beside (id int)")
        op.execute("INSERT INTO nowhere VALUES (1)")
        """,
        down="r3",
        head="import os, psycopg",
    )
    result = run(tree, database, "migrate")
    assert result.code == 1
    assert "beside" in result.message
    assert "as before" not in result.message
    assert tables(database) == ["beside"]
