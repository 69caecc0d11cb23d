"""Proof instead of hope: what can be proved is recorded and goes on, everything else is refused and left as it was."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import psycopg
import pytest

from commands import Result, entrypoint
from projects import Project, project
from servers import Database, Server, fresh_database


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path / "tree")
    made.add_line(3)
    return made


def run(tree: Project, database: Database, *arguments: str, **env: str) -> Result:
    return entrypoint(*(arguments or ("migrate",)), cwd=tree.folder, env={"DATABASE_URL": database.url, **env})


def recorded(database: Database) -> list[str]:
    return sorted(row[0] for row in database.query("SELECT version_num FROM alembic_version"))


def scratches(server: Server) -> list[str]:
    return [row[0] for row in server.query("SELECT datname FROM pg_database WHERE datname ~ 'scratch'")]


FORGET = {
    "emptied": "DELETE FROM alembic_version",
    "dropped": "DROP TABLE alembic_version",
    "lost": "UPDATE alembic_version SET version_num = 'a2242b61af45'",
}


@pytest.mark.wide
@pytest.mark.parametrize("forget", FORGET)
@pytest.mark.parametrize("at", ["r1", "r2", "r3"])
def test_a_database_is_proved_at_its_revision_and_upgraded_from_there(
    tree: Project, server: Server, database: Database, at: str, forget: str
) -> None:
    run(tree, database, "migrate", "--target", at)
    database.execute(FORGET[forget])
    result = run(tree, database, "run", "--", "echo", "up")
    assert (result.code, result.stdout) == (0, "up\n"), result.message
    assert recorded(database) == ["r3"]
    stamped = result.named("schema.stamped")[0]
    assert stamped["after"] == [at]
    assert stamped["before"] == (["a2242b61af45"] if forget == "lost" else [])
    assert result.named("schema.proved")[0]["candidates"] == [[at]]
    assert [each["revision"] for each in result.named("migration.finished")] == [
        f"r{n}" for n in range(int(at[1]) + 1, 4)
    ]
    assert scratches(server) == []


def test_the_message_says_how_to_go_back(tree: Project, database: Database) -> None:
    run(tree, database)
    database.execute(FORGET["lost"])
    undo = run(tree, database).named("schema.stamped")[0]["undo"]
    database.execute(undo)
    assert recorded(database) == ["a2242b61af45"]


def test_what_differs_from_every_revision_is_refused_with_the_difference_to_the_nearest(
    tree: Project, database: Database
) -> None:
    run(tree, database)
    database.execute("ALTER TABLE t3 ADD COLUMN email text; UPDATE alembic_version SET version_num = 'lost'")
    before = database.query("SELECT * FROM alembic_version")
    result = run(tree, database)
    assert (result.code, result.state) == (65, "LOST")
    assert "The nearest is r3; what differs:" in result.message
    assert "t3.email" in result.message
    assert database.query("SELECT * FROM alembic_version") == before
    assert not result.named("schema.stamped")


def test_recover_off_refuses_without_a_proof(tree: Project, database: Database) -> None:
    run(tree, database)
    database.execute(FORGET["lost"])
    result = run(tree, database, "migrate", "--recover", "off")
    assert (result.code, result.state) == (65, "LOST")
    assert not result.named("schema.proved")
    assert recorded(database) == ["a2242b61af45"]


def test_a_data_step_between_two_revisions_is_never_skipped(tree: Project, database: Database) -> None:
    """A data-only head and its parent look alike [R2]."""
    run(tree, database)
    database.execute("INSERT INTO t1 VALUES (5)")
    tree.add("r4", "op.execute('UPDATE t1 SET id = id * 100')", down="r3")
    database.execute(FORGET["emptied"])
    result = run(tree, database)
    assert (result.code, result.state) == (65, "UNTRACKED")
    assert "r4; r3" in result.message or "r3; r4" in result.message
    assert database.query("SELECT id FROM t1") == [(5,)]


def test_a_lost_revision_is_set_aside_and_never_run_again(tree: Project, database: Database, tmp_path: Path) -> None:
    """A newer data-only revision was applied without a ledger, and the old image proves its own head [R3]."""
    newer = project(tmp_path / "newer")
    newer.add_line(3)
    newer.add("r4", "op.execute('UPDATE t1 SET id = id * 100')", down="r3")
    assert run(newer, database, "migrate", "--ledger", "off").code == 0
    database.execute("INSERT INTO t1 VALUES (5)")
    assert run(tree, database).code == 0
    assert recorded(database) == ["r3"]
    result = run(newer, database)
    assert (result.code, result.state) == (65, "SET ASIDE")
    assert database.query("SELECT id FROM t1") == [(5,)]


def test_a_lost_revision_is_not_given_up_where_that_cannot_be_remembered(tree: Project, database: Database) -> None:
    run(tree, database, "migrate", "--ledger", "off")
    database.execute(FORGET["lost"])
    result = run(tree, database, "migrate", "--ledger", "off")
    assert (result.code, result.state) == (65, "LOST")
    assert "ALEMBIC_ENTRYPOINT_LEDGER is off" in result.message
    assert recorded(database) == ["a2242b61af45"]


def squashed(folder: Path, replaces: tuple[str, ...] = ("r1", "r2", "r3"), more: str = "") -> Project:
    made = project(folder)
    sql = "\n".join(f"op.execute('CREATE TABLE t{n} (id int PRIMARY KEY)')" for n in (1, 2, 3)) + more
    made.add("s1", sql, replaces=list(replaces))
    made.add("r4", "op.execute('CREATE TABLE t4 ()')", down="s1")
    return made


def test_a_squash_takes_the_place_of_its_last_member_after_proof(
    tree: Project, database: Database, tmp_path: Path
) -> None:
    run(tree, database)
    result = run(squashed(tmp_path / "squashed"), database)
    assert result.code == 0, result.message
    assert result.named("schema.decided")[0]["state"] == "REPLACED"
    assert result.named("schema.stamped")[0]["after"] == ["s1"]
    assert recorded(database) == ["r4"]


@pytest.mark.wide
def test_a_squash_that_makes_something_else_is_refused(tree: Project, database: Database, tmp_path: Path) -> None:
    run(tree, database)
    result = run(squashed(tmp_path / "squashed", more="\nop.execute('CREATE TABLE more ()')"), database)
    assert (result.code, result.state) == (65, "REPLACED")
    assert "more" in result.message
    assert recorded(database) == ["r3"]


def test_a_database_in_the_middle_of_a_squash_is_named_the_release_to_deploy_first(
    tree: Project, database: Database, tmp_path: Path
) -> None:
    """Any member of `replaces` counted as replaced would skip the rest [R4]."""
    run(tree, database, "migrate", "--target", "r2")
    result = run(squashed(tmp_path / "squashed"), database)
    assert (result.code, result.state) == (65, "SUPERSEDED")
    assert "whose newest migration is r3 first" in result.message
    assert recorded(database) == ["r2"]


def test_a_service_in_a_database_that_others_use_is_proved_at_base(tree: Project, database: Database) -> None:
    """UNTRACKED for ever, unless `base` can be proved [R14]."""
    database.execute("CREATE TABLE theirs (id int); INSERT INTO theirs VALUES (1)")
    result = run(tree, database)
    assert result.code == 0, result.message
    assert recorded(database) == ["r3"]
    assert database.query("SELECT id FROM theirs") == [(1,)]


@pytest.mark.wide
def test_a_table_of_the_same_name_is_not_base(tree: Project, database: Database) -> None:
    database.execute("CREATE TABLE t2 (theirs text)")
    result = run(tree, database)
    assert (result.code, result.state) == (65, "UNTRACKED")
    assert database.query("SELECT to_regclass('t1')") == [(None,)]


@pytest.mark.wide
def test_a_sequence_of_the_same_name_is_not_base(tree: Project, database: Database) -> None:
    """A migration that sets it would give numbers away twice."""
    sequence = """op.execute("CREATE SEQUENCE IF NOT EXISTS invoices"); op.execute("SELECT setval('invoices', 1)")"""
    tree.add("r1", sequence)
    database.execute("CREATE TABLE theirs (id int); CREATE SEQUENCE invoices; SELECT setval('invoices', 500)")
    assert run(tree, database).code == 65
    assert database.query("SELECT last_value FROM invoices") == [(500,)]


def test_an_empty_database_with_a_lost_revision_is_told_so(tree: Project, database: Database) -> None:
    database.execute("CREATE TABLE alembic_version (version_num varchar(32)); INSERT INTO alembic_version VALUES ('x')")
    result = run(tree, database)
    assert result.code == 65
    assert "Nothing that any revision makes is there, and yet something is recorded." in result.message
    assert "what differs:" not in result.message


def test_strangers_are_a_difference_unless_they_are_named(tree: Project, database: Database) -> None:
    run(tree, database)
    database.execute("CREATE TABLE theirs (); UPDATE alembic_version SET version_num = 'lost'")
    refused = run(tree, database)
    assert refused.code == 65
    assert "theirs" in refused.message
    assert "ALEMBIC_ENTRYPOINT_IGNORE" in refused.message
    assert run(tree, database, "migrate", "--ignore", "public.theirs").code == 0
    assert recorded(database) == ["r3"]


def test_seed_rows_that_create_all_did_not_make_are_a_difference(tree: Project, database: Database) -> None:
    tree.add("r4", "op.execute('INSERT INTO t1 VALUES (1)')", down="r3")
    for n in (1, 2, 3):
        database.execute(f"CREATE TABLE t{n} (id int PRIMARY KEY)")
    result = run(tree, database)
    assert result.code == 0, result.message
    # The schema is that of r3 and r4, but the rows of r4 are not there.
    assert result.named("schema.stamped")[0]["after"] == ["r3"]
    assert database.query("SELECT id FROM t1") == [(1,)]


@pytest.mark.wide
def test_some_rows_known_and_some_not(tree: Project, database: Database) -> None:
    run(tree, database)
    database.execute("INSERT INTO alembic_version VALUES ('lost')")
    assert run(tree, database).code == 0
    assert recorded(database) == ["r3"]


@pytest.mark.wide
def test_a_version_table_in_another_schema_is_the_one_that_is_swapped(tree: Project, database: Database) -> None:
    database.execute("CREATE SCHEMA app")
    env = (tree.folder / "migrations/env.py").read_text()
    named = "configure(connection=connection, version_table_schema='app', version_table='ours')"
    tree.write("migrations/env.py", env.replace("configure(connection=connection)", named))
    run(tree, database, "migrate", "--target", "r2")
    database.execute(
        "DROP TABLE app.ours; CREATE TABLE alembic_version (version_num text);"
        "INSERT INTO alembic_version VALUES ('of another app')"
    )
    result = run(tree, database, "migrate", "--ignore", "public.alembic_version")
    assert result.code == 0, result.message
    assert database.query("SELECT version_num FROM app.ours") == [("r3",)]
    assert database.query("SELECT version_num FROM alembic_version") == [("of another app",)]


@pytest.mark.wide
@pytest.mark.parametrize("has_ours", [True, False])
def test_another_apps_revision_in_our_version_table_stays_there(
    tree: Project, database: Database, has_ours: bool
) -> None:
    """Two apps that share `alembic_version`: whose row it is cannot be told, and it is not overwritten."""
    if has_ours:
        run(tree, database)
        database.execute("DELETE FROM alembic_version")
    rdb = Path(optuna.__file__).parent / "storages" / "_rdb"
    theirs = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_IGNORE": "public.t1 public.t2 public.t3"}
    assert entrypoint("migrate", cwd=rdb, env=theirs).code == 0
    (revision,) = recorded(database)
    result = run(tree, database)
    assert (result.code, result.state) == (65, "LOST")
    assert "studies" in result.message
    assert recorded(database) == [revision]


@pytest.mark.wide
def test_who_is_refused_again_and_again_replays_once(tree: Project, database: Database) -> None:
    run(tree, database)
    database.execute("ALTER TABLE t3 ADD COLUMN email text; UPDATE alembic_version SET version_num = 'lost'")
    assert run(tree, database).named("schema.proved")[0]["replays"] >= 1
    again = run(tree, database)
    assert (again.code, again.named("schema.proved")[0]["replays"]) == (65, 0)
    # A migration may read what is set otherwise now.
    other = run(tree, database, FLAG="on")
    assert other.named("schema.proved")[0]["replays"] >= 1
    assert "t3.email" in again.message


@pytest.mark.wide
def test_the_ledger_tells_what_was_recorded_before(tree: Project, database: Database) -> None:
    run(tree, database)
    database.execute(FORGET["lost"])
    run(tree, database)
    told = json.loads(run(tree, database, "history", "--json").stdout)
    assert [(each["state"], each["action"], each["outcome"], each["before"], each["after"]) for each in told] == [
        ("FRESH", "UPGRADE", "ok", [], ["r3"]),
        ("LOST", "STAMP", "ok", ["a2242b61af45"], ["r3"]),
    ]


def test_a_role_that_may_not_create_a_database_is_told_the_other_ways(tree: Project, pg18: Server) -> None:
    with fresh_database(pg18) as database:  # the embedded PostgreSQL is of this major
        role = f"weak_{database.name}"
        pg18.execute(f"CREATE ROLE {role} LOGIN")
        try:
            grants = f"GRANT ALL ON SCHEMA public TO {role}; GRANT CREATE ON DATABASE {database.name} TO {role}"
            database.execute(grants)
            env = {"DATABASE_URL": database.url.replace("postgres@", f"{role}@")}
            assert entrypoint("migrate", cwd=tree.folder, env=env).code == 0
            database.execute(FORGET["lost"])
            result = entrypoint("migrate", cwd=tree.folder, env=env)
            assert result.code == 77
            assert "ALEMBIC_ENTRYPOINT_SCRATCH" in result.message
            assert recorded(database) == ["a2242b61af45"]
            embedded = entrypoint("migrate", "--scratch", "embedded", cwd=tree.folder, env=env)
            assert embedded.code == 0, embedded.message
            assert recorded(database) == ["r3"]
        finally:
            database.execute(f"DROP OWNED BY {role}")
            pg18.execute(f"DROP ROLE {role}")


def test_a_proof_that_was_owed_is_given_before_the_app_starts(tree: Project, database: Database) -> None:
    """Recorded is the target, but the run that recorded it ended before its proof [R6]."""
    run(tree, database)
    database.execute("UPDATE alembic_entrypoint.settling SET owes_proof = true; DELETE FROM alembic_entrypoint.start")
    database.execute("ALTER TABLE t3 ADD COLUMN more int")
    refused = run(tree, database)
    assert (refused.code, refused.state) == (65, "UNPROVED")
    database.execute("ALTER TABLE t3 DROP COLUMN more")
    assert run(tree, database).code == 0
    assert database.query("SELECT bool_or(owes_proof) FROM alembic_entrypoint.settling") == [(False,)]
    assert not run(tree, database).named("schema.proved")


def test_a_schema_that_is_changed_between_proof_and_record_is_refused(
    tree: Project, server: Server, database: Database
) -> None:
    run(tree, database)
    database.execute(FORGET["lost"])
    # The replay runs the migrations: one of them changes the live schema, as a person could meanwhile.
    with psycopg.connect(database.url, autocommit=True) as person:
        from commands import started
        from servers import wait_until

        with started(tree.folder, "migrate", env={"DATABASE_URL": database.url}) as running:
            wait_until(lambda: running.has("schema.proving"), timeout=30, interval=0.002, what="it proves")
            person.execute("ALTER TABLE t3 ADD COLUMN meanwhile int")
            result = running.end()
    assert result.code == 65, result.message
    assert recorded(database) == ["a2242b61af45"]
    assert "Somebody changed the schema while it was being proved" in result.message
