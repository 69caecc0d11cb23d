"""What the program remembers in the database: newer told from lost, rewritten history noticed, nobody accused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import psycopg
import pytest

from alembic_entrypoint.postgres import layout
from commands import Result, entrypoint, started
from projects import ASYNC_ENV, ENV, Project, project
from servers import Database, Server, fresh_database, wait_until

SCHEMA = Path(__file__).parents[2] / "docs/schema/history.json"


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path / "new")
    made.add_line(3)
    return made


@pytest.fixture
def old(tmp_path: Path) -> Project:
    made = project(tmp_path / "old")
    made.add_line(2)
    return made


def run(tree: Project, database: Database, *arguments: str, **env: str) -> Result:
    return entrypoint(*(arguments or ("migrate",)), cwd=tree.folder, env={"DATABASE_URL": database.url, **env})


def alembic(tree: Project, database: Database, *arguments: str) -> None:
    """Run plain Alembic, which knows of no ledger."""
    url = database.url.replace("postgresql:", "postgresql+psycopg:")
    ini = (tree.folder / "alembic.ini").read_text()
    (tree.folder / "plain.ini").write_text(ini.replace("driver://user:pass@localhost/dbname", url.replace("%", "%%")))
    command = [sys.executable, "-m", "alembic", "-c", "plain.ini", *arguments]
    subprocess.run(command, cwd=tree.folder, check=True, capture_output=True)


def history(tree: Project, database: Database) -> list[dict[str, object]]:
    result = run(tree, database, "history", "--json")
    assert result.code == 0
    entries: list[dict[str, object]] = json.loads(result.stdout)
    jsonschema.validate(entries, json.loads(SCHEMA.read_text()))
    return entries


def test_history_tells_who_migrated_what_from_which_image_and_how_it_ended(tree: Project, database: Database) -> None:
    assert run(tree, database, "migrate", "--target", "r1", "--image", "v1").code == 0
    tree.add("r4", "op.execute('SELECT 1 / 0')", down="r3")
    assert run(tree, database, "migrate", "--image", "v2").code == 1
    told = [
        (e["state"], e["action"], e["outcome"], e["before"], e["after"], e["image"]) for e in history(tree, database)
    ]
    assert told == [
        ("FRESH", "UPGRADE", "ok", [], ["r1"], "v1"),
        ("BEHIND", "UPGRADE", "failed", ["r1"], ["r1"], "v2"),
    ]
    text = run(tree, database, "history").stdout.splitlines()
    assert "FRESH UPGRADE: ok in" in text[0]
    assert "public.alembic_version nothing -> r1" in text[0]
    assert "image v1" in text[0]
    assert "Migration r4 (3 of 3, migrations/versions/r4.py) failed" in text[1]


def test_a_refusal_that_is_repeated_is_one_line(tree: Project, database: Database) -> None:
    database.execute("CREATE TABLE t1 (not_ours text)")
    for _ in range(3):
        assert run(tree, database).code == 65
    assert [(each["outcome"], each["times"]) for each in history(tree, database)] == [("refused", 3)]


def test_an_older_image_is_told_what_it_would_need_since_when_and_from_which_image(
    tree: Project, old: Project, database: Database
) -> None:
    run(tree, database, "migrate", "--image", "v7")
    result = run(old, database)
    assert (result.code, result.state) == (65, "AHEAD")
    assert "this image is older than the database: it knows r2, and public.alembic_version records r3" in result.message
    assert "UTC from image v7)" in result.message
    assert "Deploy an image that ships r3" in result.message


def test_an_older_image_starts_with_a_warning_where_that_is_allowed(
    tree: Project, old: Project, database: Database
) -> None:
    run(tree, database)
    result = run(old, database, "run", "--ahead", "run", "--", "echo", "up")
    assert (result.code, result.stdout, result.state) == (0, "up\n", "AHEAD")
    assert result.named("schema.decided")[0]["level"] == "warning"
    # What the newer image knows of its own revisions stays.
    assert database.query("SELECT revision FROM alembic_entrypoint.recorded") == [("r3",)]
    assert database.query("SELECT version_num FROM alembic_version") == [("r3",)]


@pytest.mark.wide
@pytest.mark.parametrize(("declared", "code"), [("r2", 0), ("r1", 0), ("r3", 65), ("nonsense", 65)])
def test_a_migration_names_the_oldest_image_that_can_bear_it(
    tree: Project, old: Project, database: Database, declared: str, code: int
) -> None:
    tree.add("r3", "op.execute('CREATE TABLE t3 ()')", down="r2", oldest_compatible=declared)
    assert run(tree, database).code == 0
    assert run(old, database).code == code


def test_without_a_ledger_an_older_image_finds_its_revision_lost(
    tree: Project, old: Project, database: Database
) -> None:
    assert run(tree, database, "migrate", "--ledger", "off").code == 0
    assert database.query("SELECT to_regnamespace('alembic_entrypoint')") == [(None,)]
    assert run(old, database).state == "LOST"


def test_an_old_replica_that_restarts_while_the_new_image_migrates_is_told_so(
    tree: Project, old: Project, database: Database, tmp_path: Path
) -> None:
    run(old, database)
    tree.add("r3", "op.execute('CREATE TABLE t3 ()')\nwith op.get_context().autocommit_block():\n    pass", down="r2")
    tree.add("r4", "op.execute('SELECT pg_sleep(60)')", down="r3")
    tree.write(
        "migrations/env.py",
        (tree.folder / "migrations/env.py")
        .read_text()
        .replace(
            "context.configure(connection=connection)",
            "context.configure(connection=connection, transaction_per_migration=True)",
        ),
    )
    with started(tree.folder, "migrate", env={"DATABASE_URL": database.url}) as running:
        wait_until(lambda: running.has("migration.started", revision="r4"), timeout=30, what="r4 runs")
        refused = run(old, database)
        let_in = run(old, database, "run", "--ahead", "run", "--", "true")
    assert (refused.code, refused.state) == (65, "AHEAD")
    assert (let_in.code, let_in.state) == (0, "AHEAD")
    assert not refused.named("migration.started")


def test_a_branch_that_was_rebased_beneath_what_is_recorded_is_noticed(tmp_path: Path, database: Database) -> None:
    before, after = project(tmp_path / "before"), project(tmp_path / "after")
    before.add("a")
    before.add("mine", "op.execute('CREATE TABLE mine ()')", down="a")
    assert run(before, database).code == 0
    after.add("a")
    after.add("yours", "op.execute('CREATE TABLE yours ()')", down="a")
    after.add("mine", "op.execute('CREATE TABLE mine ()')", down="yours")
    result = run(after, database)
    assert (result.code, result.state) == (65, "REWRITTEN")
    assert "yours now lies beneath mine, and was never applied to this database" in result.message
    assert "mine.py: down_revision = 'a'\n  - migrations/versions/yours.py: down_revision = 'mine'" in result.message
    assert database.query("SELECT to_regclass('yours')") == [(None,)]


def migrated_before_the_ledger(tree: Project, database: Database) -> None:
    alembic(tree, database, "upgrade", "head")


def migrated_by_alembic_in_between(tree: Project, database: Database) -> None:
    run(tree, database, "migrate", "--target", "r2")
    alembic(tree, database, "upgrade", "head")


def downgraded_and_upgraded_again(tree: Project, database: Database) -> None:
    run(tree, database)
    alembic(tree, database, "downgrade", "r2")
    alembic(tree, database, "upgrade", "head")


def stamped_by_hand(tree: Project, database: Database) -> None:
    run(tree, database)
    database.execute("UPDATE alembic_version SET version_num = 'r3'")


def migrated_with_the_ledger_off(tree: Project, database: Database) -> None:
    run(tree, database, "migrate", "--target", "r2")
    run(tree, database, "migrate", "--ledger", "off")


def restored_from_an_older_dump(tree: Project, database: Database) -> None:
    run(tree, database)
    # As a restore does: the rows are written anew.
    database.execute("CREATE TABLE kept AS SELECT * FROM alembic_version; DELETE FROM alembic_version")
    database.execute("INSERT INTO alembic_version SELECT * FROM kept; DROP TABLE kept")


@pytest.mark.wide
@pytest.mark.parametrize(
    "past",
    [
        migrated_before_the_ledger,
        migrated_by_alembic_in_between,
        downgraded_and_upgraded_again,
        stamped_by_hand,
        migrated_with_the_ledger_off,
        restored_from_an_older_dump,
    ],
)
def test_what_the_ledger_did_not_see_it_does_not_judge(
    tree: Project, database: Database, past: Callable[[Project, Database], None]
) -> None:
    past(tree, database)
    # r2 now stands on a revision that this database may or may not have had: nobody can tell.
    tree.add("r1b", down="r1")
    tree.add("r2", "op.execute('CREATE TABLE t2 (id int PRIMARY KEY)')", down="r1b")
    result = run(tree, database)
    assert (result.code, result.state) == (0, "CURRENT")


def test_a_file_that_was_edited_after_it_was_applied_is_a_warning_that_names_it(
    tree: Project, database: Database
) -> None:
    run(tree, database)
    file = tree.versions / "r2.py"
    file.write_text(file.read_text().replace("\n\n", "\n\n# a comment\n\n\n").replace("'CREATE", " 'CREATE"))
    assert not run(tree, database).named("migration.edited")
    file.write_text(file.read_text().replace("CREATE TABLE t2", "CREATE TABLE t22"))
    result = run(tree, database)
    assert result.code == 0
    assert [(each["level"], each["files"]) for each in result.named("migration.edited")] == [
        ("warning", ["migrations/versions/r2.py"])
    ]


def copied_by_template(server: Server, database: Database) -> Database:
    server.execute(f"CREATE DATABASE {database.name}_copy TEMPLATE {database.name}")
    return Database(server, f"{database.name}_copy")


def renamed(server: Server, database: Database) -> Database:
    server.execute(f"ALTER DATABASE {database.name} RENAME TO {database.name}_copy")
    return Database(server, f"{database.name}_copy")


def dumped_and_restored(server: Server, database: Database) -> Database:
    server.execute(f"CREATE DATABASE {database.name}_copy")
    copy = Database(server, f"{database.name}_copy")
    dump = subprocess.run(
        [str(server.programs / "pg_dump"), "-d", database.url], capture_output=True, text=True, check=True
    )
    restore = [str(server.programs / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", copy.url]
    subprocess.run(restore, input=dump.stdout, capture_output=True, text=True, check=True)
    return copy


@contextmanager
def another(server: Server, database: Database, way: Callable[[Server, Database], Database]) -> Iterator[Database]:
    copy = way(server, database)
    try:
        yield copy
    finally:
        server.execute(f"DROP DATABASE {copy.name} WITH (FORCE)")


@pytest.mark.wide
@pytest.mark.parametrize("way", [copied_by_template, renamed, dumped_and_restored])
def test_a_copy_is_not_taken_for_the_original_and_its_history_says_where_it_came_from(
    tree: Project, old: Project, server: Server, database: Database, way: Callable[[Server, Database], Database]
) -> None:
    run(tree, database)
    with another(server, database, way) as copy:
        assert run(old, copy).state == "LOST"
        result = run(tree, copy)
        assert result.code == 0
        # It was looked at: what the ledger knew was of another database.
        assert result.named("lock.acquired")
        told = [each for each in history(tree, copy) if each["outcome"] == "copied"]
        assert [each["message"] for each in told] == [f"this database is a copy of {database.name!r}, or was renamed"]
        assert not run(tree, copy).named("lock.acquired")


def test_two_apps_in_one_database_do_not_disturb_each_other(tmp_path: Path, database: Database) -> None:
    apps = []
    for name in ("one", "two"):
        app = project(tmp_path / name)
        app.add("r1", f"op.execute('CREATE TABLE {name} ()')")
        env = (app.folder / "migrations/env.py").read_text()
        named = f"configure(connection=connection, version_table='{name}_version')"
        app.write("migrations/env.py", env.replace("configure(connection=connection)", named))
        apps.append(app)
    assert run(apps[0], database).code == 0
    assert run(apps[1], database, "migrate", "--ignore", "public.one public.one_version").code == 0
    for app in apps:
        result = run(app, database, "migrate", "--ignore", "public.one*")
        assert (result.code, result.state) == (0, "CURRENT")
    tables = [each["version_table"] for each in history(apps[0], database)]
    assert tables == ["public.one_version", "public.two_version"]


def test_a_role_that_may_not_make_the_ledger_is_warned_once_and_everything_else_works(
    tree: Project, server: Server, database: Database
) -> None:
    role = f"weak_{database.name}"
    server.execute(f"CREATE ROLE {role} LOGIN")
    try:
        database.execute(f"GRANT ALL ON SCHEMA public TO {role}")
        url = database.url.replace("postgres@", f"{role}@")
        first, second = (entrypoint("run", "--", "true", cwd=tree.folder, env={"DATABASE_URL": url}) for _ in "12")
        assert [(each.code, each.state) for each in (first, second)] == [(0, "CURRENT"), (0, "CURRENT")]
        warned = first.named("ledger.passed")
        assert len(warned) == 1
        assert "ALEMBIC_ENTRYPOINT_LEDGER=off" in warned[0]["reason"]
        # Nothing that the second could find out under the lock would spare the next one the look.
        assert not second.named("lock.acquired")
        assert database.query("SELECT to_regnamespace('alembic_entrypoint')") == [(None,)]
        off = entrypoint("migrate", "--ledger", "off", cwd=tree.folder, env={"DATABASE_URL": url})
        assert not off.named("ledger.passed")
    finally:
        database.execute(f"DROP OWNED BY {role}")
        server.execute(f"DROP ROLE {role}")


def test_a_role_that_may_not_read_the_ledger_takes_no_lock_when_there_is_nothing_to_do(
    tree: Project, server: Server, database: Database
) -> None:
    run(tree, database)
    role = f"app_of_{database.name}"
    server.execute(f"CREATE ROLE {role} LOGIN")
    try:
        database.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        env = {"DATABASE_URL": database.url.replace("postgres@", f"{role}@")}
        result = entrypoint("run", "--", "true", cwd=tree.folder, env=env)
        assert (result.code, result.state) == (0, "CURRENT")
        assert not result.named("lock.acquired")
    finally:
        database.execute(f"DROP OWNED BY {role}")
        server.execute(f"DROP ROLE {role}")


DAMAGE = {
    "a table is gone": "DROP TABLE alembic_entrypoint.settling",
    "a column is gone": "ALTER TABLE alembic_entrypoint.revision DROP COLUMN beneath",
    "a column has another type": "ALTER TABLE alembic_entrypoint.start ALTER heads TYPE text USING 'x'",
    "values that make no sense": "ALTER TABLE alembic_entrypoint.start ALTER variables DROP NOT NULL;"
    "UPDATE alembic_entrypoint.start SET variables = NULL",
    "no layout": "DELETE FROM alembic_entrypoint.layout",
    "all gone but the schema": "DROP SCHEMA alembic_entrypoint CASCADE; CREATE SCHEMA alembic_entrypoint",
}


@pytest.mark.wide
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_broken_ledger_is_never_in_the_way(tree: Project, database: Database, damage: str) -> None:
    run(tree, database, "migrate", "--target", "r2")
    database.execute(damage)
    for expected in (["r3"], ["r3"]):
        result = run(tree, database, "run", "--", "true")
        assert result.code == 0, result.message
        assert [row[0] for row in database.query("SELECT version_num FROM alembic_version")] == expected


@pytest.mark.wide
def test_a_ledger_that_somebody_has_locked_is_passed_by(tree: Project, database: Database) -> None:
    run(tree, database, "migrate", "--target", "r2")
    with psycopg.connect(database.url) as connection:
        connection.execute(
            "LOCK TABLE alembic_entrypoint.settling, alembic_entrypoint.start, alembic_entrypoint.revision"
        )
        result = run(tree, database, "run", "--", "true")
    assert result.code == 0
    assert database.query("SELECT version_num FROM alembic_version") == [("r3",)]
    assert "LockNotAvailable" in result.named("ledger.passed")[0]["reason"]


def test_a_newer_layout_is_left_alone_and_is_no_error(tree: Project, database: Database) -> None:
    run(tree, database, "migrate", "--target", "r2")
    database.execute("UPDATE alembic_entrypoint.layout SET version = 99")
    result = run(tree, database)
    assert result.code == 0
    assert [each["level"] for each in result.named("ledger.passed")] == ["info"]
    assert database.query("SELECT version FROM alembic_entrypoint.layout") == [(99,)]
    assert database.query("SELECT count(*) FROM alembic_entrypoint.settling") == [(1,)]


def test_an_older_layout_is_brought_to_this_one_with_what_it_holds(tree: Project, database: Database) -> None:
    database.execute("CREATE SCHEMA alembic_entrypoint; CREATE TABLE alembic_entrypoint.layout (version int NOT NULL)")
    database.execute(layout.LAYOUT[0])
    database.execute(
        "INSERT INTO alembic_entrypoint.layout VALUES (1); INSERT INTO alembic_entrypoint.set_aside "
        "VALUES ('public.alembic_version', 'z', 1)"
    )
    result = run(tree, database)
    assert (result.code, result.named("ledger.passed")) == (0, [])
    assert database.query("SELECT version FROM alembic_entrypoint.layout") == [(len(layout.LAYOUT),)]
    assert len(history(tree, database)) == 1


def test_one_that_was_killed_is_told_as_cut_short(tree: Project, database: Database, tmp_path: Path) -> None:
    tree.add("r4", "op.execute('SELECT pg_sleep(60)')", down="r3")
    with started(tree.folder, "migrate", env={"DATABASE_URL": database.url}) as running:
        wait_until(lambda: running.has("migration.started", revision="r4"), timeout=30, what="r4 runs")
        running.signal(9)
        running.end()
    tree.add("r4", down="r3")
    assert run(tree, database).code == 0
    assert [each["outcome"] for each in history(tree, database)] == ["cut short", "ok"]


@pytest.mark.extra
@pytest.mark.parametrize("major", ["pg13", "pg15", "pg16"])
def test_the_ledger_works_on_every_major(
    tree: Project, old: Project, request: pytest.FixtureRequest, major: str
) -> None:
    with fresh_database(request.getfixturevalue(major)) as database:
        assert run(tree, database).code == 0
        result = run(tree, database)
        assert (result.code, result.named("lock.acquired")) == (0, [])
        assert run(old, database).state == "AHEAD"


@pytest.mark.parametrize("driver", ["psycopg2", pytest.param("asyncpg", marks=pytest.mark.wide)])
def test_a_database_without_encoding_is_migrated_remembered_and_proved(
    tmp_path: Path, server: Server, driver: str
) -> None:
    """psycopg itself gives its text as bytes, so that SQLAlchemy does not connect with it."""
    tree = project(tmp_path, env=ASYNC_ENV if driver == "asyncpg" else ENV)
    tree.add_line(2)
    with fresh_database(server, like="ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0") as database:
        env = {"DATABASE_URL": database.url_on(driver)}
        for _ in range(2):
            assert run(tree, database, **env).code == 0
        tree.add("r3", "op.execute('CREATE TABLE t3 (name text)')", down="r2")
        assert run(tree, database, **env).code == 0
        assert [each["after"] for each in history(tree, database)] == [["r2"], ["r3"]]
        database.execute("UPDATE alembic_version SET version_num = 'gone'")
        assert run(tree, database, **env).code == 0
        assert database.query("SELECT version_num::bytea FROM alembic_version") == [(b"r3",)]
