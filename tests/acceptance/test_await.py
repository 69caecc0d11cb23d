"""`await` and `MODE=await`: for replicas whose migrations run elsewhere. They never migrate."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Result, entrypoint, started
from projects import Project, project
from servers import Database, Server, own_server, standby_of, wait_until


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add_line(2)
    return made


def run(tree: Project, database: Database, *arguments: str, **env: str) -> Result:
    return entrypoint(*arguments, cwd=tree.folder, env={"DATABASE_URL": database.url, **env})


@pytest.mark.parametrize("ledger", ["on", "off"])
def test_a_worker_waits_until_the_api_of_the_same_image_has_migrated(
    tree: Project, database: Database, ledger: str
) -> None:
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_MODE": "await", "ALEMBIC_ENTRYPOINT_LEDGER": ledger}
    with started(tree.folder, "run", "--", "echo", "working", env=env) as waiting:
        wait_until(lambda: waiting.has("head.awaited"), timeout=30, what="it says what is missing")
        assert database.query("SELECT to_regclass('alembic_version')") == [(None,)]
        assert run(tree, database, "migrate", "--ledger", ledger).code == 0
        result = waiting.end()
    assert (result.code, result.stdout) == (0, "working\n")
    assert result.named("head.awaited")[0]["missing"] == "2 pending up to r2"
    assert not result.named("lock.acquired")
    assert not result.named("migration.started")


def test_a_wait_that_is_over_ends_with_75_and_says_what_is_missing(tree: Project, database: Database) -> None:
    result = run(tree, database, "await", "head", ALEMBIC_ENTRYPOINT_AWAIT_TIMEOUT="0.5")
    assert result.code == 75
    assert "2 pending up to r2" in result.message
    assert "ALEMBIC_ENTRYPOINT_AWAIT_TIMEOUT" in result.message
    assert database.query("SELECT to_regnamespace('alembic_entrypoint')") == [(None,)]


def test_a_role_that_may_only_read_is_enough(tree: Project, server: Server, database: Database) -> None:
    run(tree, database, "migrate")
    role = f"reader_{database.name}"
    server.execute(f"CREATE ROLE {role} LOGIN")
    try:
        database.execute(f"GRANT SELECT ON alembic_version TO {role}")
        env = {"DATABASE_URL": database.url.replace("postgres@", f"{role}@")}
        result = entrypoint("await", "head", "--", "echo", "up", cwd=tree.folder, env=env)
        assert (result.code, result.stdout) == (0, "up\n")
    finally:
        database.execute(f"DROP OWNED BY {role}")
        server.execute(f"DROP ROLE {role}")


def test_no_connection_is_kept_between_two_looks(tree: Project, database: Database) -> None:
    with started(tree.folder, "await", "head", env={"DATABASE_URL": database.url}) as waiting:
        wait_until(lambda: waiting.has("head.awaited"), timeout=30, what="it waits")
        mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        counts = set()
        wait_until(lambda: counts.add(database.query(mine)[0][0]) or 0 in counts, what="a moment without a connection")


@pytest.mark.parametrize(
    ("mend", "state"),
    [
        ("UPDATE alembic_version SET version_num = 'r2'", "LOST"),
        (
            "CREATE TABLE alembic_version (version_num varchar(32));INSERT INTO alembic_version VALUES ('r2')",
            "UNTRACKED",
        ),
    ],
    ids=["lost", "untracked"],
)
def test_it_goes_on_waiting_where_another_may_be_about_to_mend_it(
    tree: Project, database: Database, mend: str, state: str
) -> None:
    database.execute("CREATE TABLE t1 ()")
    if state == "LOST":
        database.execute(
            "CREATE TABLE alembic_version (version_num varchar(32)); INSERT INTO alembic_version VALUES ('z')"
        )
    with started(tree.folder, "await", "head", env={"DATABASE_URL": database.url}) as waiting:
        wait_until(lambda: waiting.has("head.awaited"), timeout=30, what="it waits")
        assert any(each.get("missing", "").startswith(f"{state}: ") for each in waiting.events)
        database.execute(mend)
        assert waiting.end().code == 0


def test_it_ends_at_once_where_waiting_cannot_help(tree: Project, database: Database, tmp_path: Path) -> None:
    newer = project(tmp_path / "newer")
    newer.add_line(3)
    assert run(newer, database, "migrate").code == 0
    assert (run(tree, database, "await", "head").code, run(tree, database, "await", "head").state) == (65, "AHEAD")
    allowed = run(tree, database, "await", "head", "--ahead", "run", "--", "echo", "up")
    assert (allowed.code, allowed.stdout) == (0, "up\n")
    tree.add("fork", down="r1")
    assert (run(tree, database, "await", "head").code, run(tree, database, "await", "head").state) == (78, "FORKED")


def test_await_connection_waits_for_a_server_that_starts_late_and_needs_no_migrations(tmp_path: Path) -> None:
    with own_server() as server:
        url = server.url
        server.stop()
        with started(tmp_path, "await", "connection", "--", "echo", "up", env={"DATABASE_URL": url}) as waiting:
            wait_until(lambda: waiting.has("database.waiting"), what="it waits")
            server.start()
            result = waiting.end()
    assert (result.code, result.stdout) == (0, "up\n")


def test_a_standby_will_do(tree: Project, server: Server) -> None:
    with own_server() as primary, standby_of(primary) as standby:
        assert run(tree, Database(primary, "postgres"), "migrate").code == 0
        wait_until(lambda: standby.query("SELECT to_regclass('t2')") != [(None,)], what="replicated")
        replica = Database(standby, "postgres")
        assert run(tree, replica, "await", "connection").code == 0
        assert run(tree, replica, "await", "head").code == 0


def test_a_lost_connection_is_no_end(tree: Project) -> None:
    with own_server() as server:
        database = Database(server, "postgres")
        with started(tree.folder, "await", "head", env={"DATABASE_URL": database.url}) as waiting:
            wait_until(lambda: waiting.has("head.awaited"), timeout=30, what="it waits")
            server.stop("immediate")
            server.start()
            assert run(tree, database, "migrate").code == 0
            assert waiting.end().code == 0
