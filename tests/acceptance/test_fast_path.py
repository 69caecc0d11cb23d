"""The fast path: taken when nothing changed, and not when one thing did. Correct before fast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import COMMAND, Result, entrypoint, environment
from projects import ENV, INI, Project, project
from servers import Database, Server, standby_of, wait_until


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add_line(3)
    return made


def run(tree: Project, database: Database, *arguments: str, **env: str) -> Result:
    return entrypoint("migrate", *arguments, cwd=tree.folder, env={"DATABASE_URL": database.url, **env})


def is_fast(result: Result) -> bool:
    """Tell by what it said: whoever looks at the migrations says what the version table records."""
    assert result.code == 0, result.message
    return [each["because"] for each in result.named("schema.decided")] == [
        "image and database are as the last settling left them, and nothing is pending."
    ]


@pytest.fixture
def settled(tree: Project, database: Database) -> Project:
    assert run(tree, database).code == 0
    assert is_fast(run(tree, database))
    return tree


def test_a_start_with_nothing_to_do_says_so_and_starts_the_app(settled: Project, database: Database) -> None:
    result = entrypoint("run", "--", "echo", "up", cwd=settled.folder, env={"DATABASE_URL": database.url})
    assert (result.code, result.stdout) == (0, "up\n")
    assert is_fast(result)
    decided = result.named("schema.decided")[0]
    assert (decided["state"], decided["action"], decided["recorded"], decided["heads"]) == (
        "CURRENT",
        "START",
        ["r3"],
        ["r3"],
    )
    assert list(result.named("app.launching")[0]["elapsed"]) == ["wait"]


def replace(path: str, old: str, new: str) -> Callable[[Project], None]:
    def change(tree: Project) -> None:
        file = tree.folder / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return change


IMAGE: dict[str, Callable[[Project], object]] = {
    "a migration's content": replace("migrations/versions/r2.py", "def upgrade", "# a comment\ndef upgrade"),
    "a migration's name": lambda tree: (tree.versions / "r2.py").rename(tree.versions / "r2_with_a_name.py"),
    "a migration more": lambda tree: tree.add("r4", down="r3"),
    "a file beside them": lambda tree: tree.write("migrations/versions/rows.csv", "1;one"),
    "env.py": replace("migrations/env.py", "import os", "import os, sys"),
    "the template": lambda tree: tree.write("migrations/script.py.mako", "${message}"),
    "the configuration": replace("alembic.ini", "[alembic]", "[alembic]\ntimezone = UTC"),
    "a .env file": lambda tree: tree.write(".env", "TENANT=other"),
}


@pytest.mark.wide
@pytest.mark.parametrize("change", IMAGE.values(), ids=IMAGE.keys())
def test_another_image_is_looked_at(settled: Project, database: Database, change: Callable[[Project], object]) -> None:
    change(settled)
    assert not is_fast(run(settled, database))
    assert is_fast(run(settled, database))


def test_a_migration_less_is_looked_at(settled: Project, database: Database) -> None:
    (settled.versions / "r3.py").unlink()
    assert run(settled, database).state == "AHEAD"


SETTINGS: dict[str, list[str]] = {
    "-x": ["--x", "tenant=other"],
    "the target": ["--target", "heads"],
    "what is ignored": ["--ignore", "other.*"],
    "what an older image does": ["--ahead", "run"],
    "the ledger": ["--ledger", "off"],
    "the configuration's name": ["--config", "./alembic.ini"],
}


@pytest.mark.wide
@pytest.mark.parametrize("arguments", SETTINGS.values(), ids=SETTINGS.keys())
def test_other_settings_are_looked_at(settled: Project, database: Database, arguments: list[str]) -> None:
    assert not is_fast(run(settled, database, *arguments))


def test_another_folder_to_start_in_is_looked_at(settled: Project, database: Database, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    env = {"DATABASE_URL": database.url, "ALEMBIC_CONFIG": str(settled.folder / "alembic.ini")}
    assert not is_fast(entrypoint("migrate", cwd=other, env=env))
    assert is_fast(entrypoint("migrate", cwd=other, env=env))


def test_another_interpreter_is_looked_at(settled: Project, database: Database, tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    link.chmod(0o755)
    assert not is_fast(run(settled, database, "--python", str(link)))


def test_without_a_url_env_py_is_asked(tree: Project, database: Database) -> None:
    url = database.url.replace("postgresql:", "postgresql+psycopg:")
    tree.write("alembic.ini", INI.replace("driver://user:pass@localhost/dbname", url))
    for _ in range(2):
        assert not is_fast(entrypoint("migrate", cwd=tree.folder))


DATABASE: dict[str, str] = {
    "a row more": "INSERT INTO alembic_version VALUES ('r2')",
    "a row less": "DELETE FROM alembic_version",
    "another row": "UPDATE alembic_version SET version_num = 'r2'",
    "the same row, written again": "UPDATE alembic_version SET version_num = version_num",
    "no version table": "DROP TABLE alembic_version",
    "a version table in another schema": "CREATE SCHEMA app; ALTER TABLE alembic_version SET SCHEMA app",
    "the search path": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = app, public', "
    "current_database()); END $$; CREATE SCHEMA app",
    "a schema that comes onto the search path": "CREATE SCHEMA postgres",
    "no ledger": "DROP SCHEMA alembic_entrypoint CASCADE",
    "another layout of the ledger": "UPDATE alembic_entrypoint.layout SET version = 99",
}


@pytest.mark.wide
@pytest.mark.parametrize("change", DATABASE.values(), ids=DATABASE.keys())
def test_another_database_is_looked_at(settled: Project, database: Database, change: str) -> None:
    database.execute(change)
    result = run(settled, database)
    assert "image and database are as the last" not in str(result.named("schema.decided"))


def test_another_role_is_looked_at(settled: Project, server: Server, database: Database) -> None:
    role = f"other_{database.name}"
    server.execute(f"CREATE ROLE {role} SUPERUSER LOGIN")
    try:
        url = database.url.replace("postgres@", f"{role}@")
        env = {"DATABASE_URL": url}
        assert not is_fast(entrypoint("migrate", cwd=settled.folder, env=env))
        assert is_fast(entrypoint("migrate", cwd=settled.folder, env=env))
    finally:
        database.execute(f"REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}")
        server.execute(f"DROP ROLE {role}")


def with_env(old: str, new: str) -> Callable[[Project], None]:
    return replace("migrations/env.py", old, new)


TENANT = 'context.configure(connection=connection, version_table=os.environ.get("TABLE", "alembic_version"))'
SCHEMA = 'context.configure(connection=connection, version_table_schema=os.environ.get("SCHEMA", "public"))'
PATH = """if os.environ.get("SCHEMA"):
            connection.exec_driver_sql(f"SET search_path = {os.environ['SCHEMA']}")
            connection.commit()
        context.configure(connection=connection)"""
PREFECT = """context.script.__dict__.pop("_version_locations", None)
        context.script.version_locations = [os.path.join(context.script.dir, os.environ.get("WHERE", "versions"))]
        context.configure(connection=connection)"""


@pytest.mark.wide
@pytest.mark.parametrize(
    ("configure", "variable", "value"),
    [(TENANT, "TABLE", "tenant_version"), (SCHEMA, "SCHEMA", "tenant"), (PATH, "SCHEMA", "tenant")],
    ids=["the version table's name", "its schema", "the search path"],
)
def test_what_env_py_chooses_by_the_environment_is_never_skipped(
    tree: Project, database: Database, configure: str, variable: str, value: str
) -> None:
    with_env("context.configure(connection=connection)", configure)(tree)
    for n in (1, 2, 3):
        for each in tree.versions.glob("*.py"):
            each.write_text(each.read_text().replace(f"TABLE t{n} ", f"TABLE IF NOT EXISTS t{n} "))
    database.execute("CREATE SCHEMA tenant")
    assert run(tree, database).code == 0
    run(tree, database)
    result = run(tree, database, "--ignore", "public.*", **{variable: value})
    assert "image and database are as the last" not in str(result.named("schema.decided"))
    assert run(tree, database, **{variable: value}).state != "CURRENT" or result.named("schema.upgraded")


def test_version_locations_chosen_at_run_time_are_never_fast(tree: Project, database: Database) -> None:
    with_env("context.configure(connection=connection)", PREFECT)(tree)
    tree.add("other", folder="migrations/elsewhere")
    assert run(tree, database).code == 0
    result = run(tree, database, WHERE="elsewhere")
    assert "image and database are as the last" not in str(result.named("schema.decided"))


@pytest.mark.wide
def test_a_standby_is_not_started_on_by_what_its_primary_saw(tree: Project, server: Server) -> None:
    with standby_of(server) as standby:
        primary = Database(server, "postgres")
        try:
            assert run(tree, primary).code == 0
            wait_until(lambda: standby.query("SELECT to_regclass('t3')") != [(None,)], what="replicated")
            replica = Database(standby, "postgres")
            assert run(tree, replica, "--wait-timeout", "1").code == 69
            standby.promote()
            assert run(tree, replica).code == 0
        finally:
            server.execute(
                "DROP TABLE IF EXISTS t1, t2, t3, alembic_version; DROP SCHEMA IF EXISTS alembic_entrypoint CASCADE"
            )


OURS = """
__main__ address boundary errors fast fingerprint launch logs postgres postgres.answers postgres.login postgres.server
postgres.versions settings start target wait
""".split()  # noqa: SIM905


def test_what_is_imported_with_nothing_to_do_is_little(settled: Project, database: Database) -> None:
    """Not Alembic, not SQLAlchemy, and nothing of ours that looks, decides or migrates."""
    code = (
        "import os, sys\n"
        "os.execvpe = lambda *_: (print(*sys.modules, sep='\\n', flush=True), os._exit(0))\n"
        "sys.argv = ['alembic-entrypoint', 'run', '--', 'true']\n"
        "from alembic_entrypoint.__main__ import main\n"
        "main()\n"
    )
    env = environment({"DATABASE_URL": database.url})
    # By the name by which the command is run: another name may be another interpreter.
    python = Path(COMMAND).read_text().splitlines()[0].removeprefix("#!")
    done = subprocess.run([python, "-c", code], cwd=settled.folder, env=env, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert {"psycopg", "structlog", "alembic_entrypoint.fast"} <= modules
    assert modules & {"alembic", "sqlalchemy", "tenacity", "rich", "click", "graphlib", "difflib"} == set()
    assert {each for each in modules if each.startswith("alembic_entrypoint")} == {
        "alembic_entrypoint",
        *(f"alembic_entrypoint.{name}" for name in OURS),
    }


def test_an_env_py_of_several_settings_is_fast_once_all_are_the_same(tree: Project, database: Database) -> None:
    """What it reads of the environment counts; what it does not read, does not."""
    tree.write(
        "migrations/env.py", ENV.replace("config = context.config", 'os.environ.get("READ")\nconfig = context.config')
    )
    assert run(tree, database, READ="1", UNREAD="1").code == 0
    assert is_fast(run(tree, database, READ="1", UNREAD="2"))
    assert not is_fast(run(tree, database, READ="2", UNREAD="1"))
