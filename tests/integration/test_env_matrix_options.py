"""Alembic's own options, set in `env.py`, in the configuration or in the migrations: each form works unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from env_forms import assert_migrated, env_on, env_py, ini_with, migrate, recorded, tables, tree_in

from projects import DRIVERS, project
from servers import Database

pytestmark = pytest.mark.wide


def test_a_version_table_of_another_name(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py(configure="version_table='my_versions'"))
    assert migrate(tree, database).code == 0
    assert recorded(database, "my_versions") == ["r2"]
    assert tables(database) == ["public.my_versions", "public.t1", "public.t2"]
    assert migrate(tree, database).state == "CURRENT"


def test_a_version_table_whose_name_must_be_quoted(tmp_path: Path, database: Database) -> None:
    database.execute('CREATE SCHEMA "My Schema"')
    tree = tree_in(tmp_path, env_py(configure="version_table='My.Versions', version_table_schema='My Schema'"))
    assert migrate(tree, database).code == 0
    assert recorded(database, '"My Schema"."My.Versions"') == ["r2"]
    assert migrate(tree, database).state == "CURRENT"


def test_a_version_table_in_a_schema_of_its_own(tmp_path: Path, database: Database) -> None:
    database.execute("CREATE SCHEMA meta")
    tree = tree_in(tmp_path, env_py(configure="version_table_schema='meta'"))
    assert migrate(tree, database).code == 0
    assert tables(database) == ["meta.alembic_version", "public.t1", "public.t2"]
    assert migrate(tree, database).state == "CURRENT"


def test_an_empty_version_table_schema_means_the_search_path(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py(configure="version_table_schema=''"))
    assert_migrated(migrate(tree, database), database)
    assert migrate(tree, database).state == "CURRENT"


def test_a_schema_for_the_version_table_that_a_migration_makes_fails_as_alembic_does(
    tmp_path: Path, database: Database
) -> None:
    tree = tree_in(tmp_path, env_py(configure="version_table_schema='later'"))
    result = migrate(tree, database)
    assert result.code in (1, 78)
    assert 'schema "later" does not exist' in result.message
    assert tables(database) == []


def test_the_version_table_of_another_app_in_the_same_schema_is_not_ours(tmp_path: Path, database: Database) -> None:
    database.execute("CREATE TABLE alembic_version (version_num varchar(32)); INSERT INTO alembic_version VALUES ('x')")
    tree = tree_in(tmp_path, env_py(configure="version_table='mine'"))
    result = migrate(tree, database)
    assert result.code == 0, result.message
    assert result.named("schema.decided")[0]["state"] == "UNTRACKED"
    assert recorded(database, "mine") == ["r2"]
    assert recorded(database) == ["x"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_one_transaction_for_each_migration_and_none_for_what_runs_in_autocommit(
    tmp_path: Path, database: Database, driver: str
) -> None:
    tree = tree_in(tmp_path, env_on(driver, configure="transaction_per_migration=True"))
    concurrently = "op.execute('CREATE INDEX CONCURRENTLY t3_id ON t3 (id)')"
    steps = ["op.execute('CREATE TABLE t3 (id int)')", f"with op.get_context().autocommit_block():\n    {concurrently}"]
    tree.add("r3", "\n".join([*steps, "op.execute('COMMENT ON INDEX t3_id IS $$built$$')"]), down="r2")
    result = migrate(tree, DATABASE_URL=database.url_on(driver))
    assert result.code == 0, result.message
    assert recorded(database) == ["r3"]
    # The migrations' own transactions: each row of pg_class was made by another one.
    assert len(set(database.query("SELECT xmin FROM pg_class WHERE relname IN ('t1', 't2', 't3')"))) == 3
    assert database.query(
        "SELECT obj_description(indexrelid) FROM pg_index WHERE indisvalid AND indexrelid::regclass::text = 't3_id'"
    ) == [("built",)]


def test_one_transaction_for_all_migrations(tmp_path: Path, database: Database) -> None:
    assert_migrated(migrate(tree_in(tmp_path, env_py()), database), database)
    rows = database.query("SELECT xmin FROM pg_class WHERE relname IN ('alembic_version', 't1', 't2')")
    assert len(set(rows)) == 1


@pytest.mark.parametrize("separator", ["space", "os"])
def test_several_version_locations(tmp_path: Path, database: Database, separator: str) -> None:
    between = " " if separator == "space" else ":"
    lines = [
        f"version_path_separator = {separator}",
        f"version_locations = %(here)s/migrations/versions{between}%(here)s/plugin",
    ]
    tree = project(tmp_path, env=env_py(), ini=ini_with("x://", *lines))
    tree.add("r1", "op.execute('CREATE TABLE t1 ()')")
    tree.add("r2", "op.execute('CREATE TABLE t2 ()')", down="r1", folder="plugin")
    assert_migrated(migrate(tree, database), database)


@pytest.mark.parametrize("has_versions", [True, False])
def test_version_locations_that_env_py_sets(tmp_path: Path, database: Database, has_versions: bool) -> None:
    # As Prefect's env.py does, which has one folder of versions for each kind of database.
    above = "context.script.version_locations = [os.path.join(os.path.dirname(__file__), 'postgresql')]"
    tree = project(tmp_path, env=env_py(above=above))
    tree.add("r1", "op.execute('CREATE TABLE t1 ()')", folder="migrations/postgresql")
    tree.add("r2", "op.execute('CREATE TABLE t2 ()')", down="r1", folder="migrations/postgresql")
    if has_versions:
        tree.add("lite", "op.execute('CREATE TABLE wrong ()')")
    assert_migrated(migrate(tree, database), database)
    assert migrate(tree, database).state == "CURRENT"


def test_version_locations_that_env_py_sets_in_the_configuration(tmp_path: Path, database: Database) -> None:
    # Too late for Alembic, which has read them: what counts is what Alembic does.
    above = "config.set_main_option('version_locations', '/nowhere')"
    assert_migrated(migrate(tree_in(tmp_path, env_py(above=above)), database), database)


def test_recursive_version_locations(tmp_path: Path, database: Database) -> None:
    tree = project(tmp_path, env=env_py(), ini=ini_with("x://", "recursive_version_locations = true"))
    tree.add("r1", "op.execute('CREATE TABLE t1 ()')", folder="migrations/versions/2024/01")
    tree.add("r2", "op.execute('CREATE TABLE t2 ()')", down="r1", folder="migrations/versions/2025")
    assert_migrated(migrate(tree, database), database)


def test_branch_labels_with_two_heads_in_one_version_table(tmp_path: Path, database: Database) -> None:
    tree = project(tmp_path, env=env_py())
    tree.add("a1", "op.execute('CREATE TABLE a1 ()')", branch_labels=("billing",))
    tree.add("a2", "op.execute('CREATE TABLE a2 ()')", down="a1")
    tree.add("b1", "op.execute('CREATE TABLE b1 ()')", branch_labels=("users",))
    assert migrate(tree, database, "--target", "billing@head").code == 0
    assert recorded(database) == ["a2"]
    assert migrate(tree, database, "--target", "heads").code == 0
    assert recorded(database) == ["a2", "b1"]
    assert migrate(tree, database, "--target", "users@head").state == "CURRENT"
    tree.add("b2", "op.execute('CREATE TABLE b2 ()')", down="b1")
    assert migrate(tree, database, "--target", "users@head").code == 0
    assert recorded(database) == ["a2", "b2"]


@pytest.mark.parametrize("names", ["revision", "label"])
def test_depends_on_is_applied_first_and_counts_as_beneath(tmp_path: Path, database: Database, names: str) -> None:
    tree = project(tmp_path, env=env_py())
    tree.add("a1", "op.execute('CREATE TABLE a1 ()')", branch_labels=("billing",))
    tree.add("a2", "op.execute('CREATE TABLE a2 ()')", down="a1")
    depends = "a2" if names == "revision" else "billing"
    tree.add("b1", "op.execute('CREATE TABLE b1 ()')", branch_labels=("users",))
    tree.add("b2", "op.execute('CREATE TABLE b2 (LIKE a1)')", down="b1", depends_on=depends)
    target = "heads"
    result = migrate(tree, database, "--target", target)
    assert result.code == 0, result.message
    finished = [each["revision"] for each in result.named("migration.finished")]
    assert finished.index("a1") < finished.index("b2")
    assert migrate(tree, database, "--target", target).state == "CURRENT"


def test_include_schemas_and_migrations_in_several_schemas(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py(configure="include_schemas=True"))
    tree.add("r3", "op.execute('CREATE SCHEMA app'); op.execute('CREATE TABLE app.t3 ()')", down="r2")
    result = migrate(tree, database)
    assert result.code == 0, result.message
    assert tables(database) == ["app.t3", "public.alembic_version", "public.t1", "public.t2"]
    assert migrate(tree, database).state == "CURRENT"


def test_on_version_apply_and_other_callbacks_of_env_py_are_called(tmp_path: Path, database: Database) -> None:
    above = """
def applied(ctx, step, heads, run_args):
    ctx.connection.execute(text("INSERT INTO applied VALUES (:r)"), {"r": step.up_revision_id})
"""
    tree = project(tmp_path, env=env_py(above=above, configure="on_version_apply=applied"))
    tree.add("r1", "op.execute('CREATE TABLE applied (r text)')")
    tree.add("r2", down="r1")
    result = migrate(tree, database)
    assert result.code == 0, result.message
    assert database.query("SELECT r FROM applied ORDER BY r") == [("r1",), ("r2",)]


def test_arguments_that_run_migrations_passes_on(tmp_path: Path, database: Database) -> None:
    env = env_py().replace("run_migrations()", "run_migrations(engine_name='main')")
    tree = project(tmp_path, env=env)
    tree.write(
        "migrations/versions/r1.py",
        "from alembic import op\nrevision, down_revision = 'r1', None\n"
        "def upgrade(engine_name):\n    op.execute('CREATE TABLE ' + engine_name + ' ()')\n",
    )
    assert migrate(tree, database).code == 0
    assert tables(database) == ["public.alembic_version", "public.main"]


def test_render_and_process_hooks_and_batch_mode_do_no_harm(tmp_path: Path, database: Database) -> None:
    configure = "render_as_batch=True, compare_type=True, process_revision_directives=lambda *a: None"
    assert_migrated(migrate(tree_in(tmp_path, env_py(configure=configure)), database), database)
