"""`diagnose` on what is broken: it answers what it can, says what it cannot, and its commands lead out."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from alembic_entrypoint.worker.messages import LOCK_A, LOCK_CLASS
from commands import COMMAND, Result, entrypoint, started
from projects import ENV, Project, project
from servers import Database, Server, fresh_database, own_server, pgbouncer, standby_of, wait_until

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "schema" / "diagnose.json").read_text())
MAKO = """revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
def upgrade(): pass
"""
PARTS = [name for name in SCHEMA["properties"] if name not in ("exit_code", "what_to_do")]
RECORDED = "CREATE TABLE alembic_version (version_num varchar(32)); INSERT INTO alembic_version VALUES ('{}')"


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add_line(3)
    return made


def diagnose(tree: Project, url: str, *arguments: str, **env: str) -> dict[str, Any]:
    """Diagnose, see that the document is what the schema says, and that the exit code is the one in it."""
    result = entrypoint("diagnose", "--json", *arguments, cwd=tree.folder, env={"DATABASE_URL": url, **env})
    document: dict[str, Any] = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    assert document["exit_code"] == result.code
    return document


def screen(tree: Project, url: str, **env: str) -> Result:
    return entrypoint("diagnose", cwd=tree.folder, env={"DATABASE_URL": url, **env})


def run(tree: Project, url: str, *arguments: str, **env: str) -> Result:
    return entrypoint("run", *arguments, "true", cwd=tree.folder, env={"DATABASE_URL": url, **env})


def advised(document: dict[str, Any]) -> str:
    return "\n".join(step["because"] for step in document["what_to_do"])


def follow(document: dict[str, Any], tree: Project, server: Server, url: str) -> list[subprocess.CompletedProcess[str]]:
    """Run exactly the commands that are shown, in order, as the administrator that PGUSER makes us."""
    path = f"{Path(COMMAND).parent}:{server.binaries}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "DATABASE_URL": url, "PGUSER": "postgres"}
    commands = [step["command"] for step in document["what_to_do"] if step["command"]]
    return [
        subprocess.run(["sh", "-c", command], cwd=tree.folder, env=env, capture_output=True, text=True, timeout=60)
        for command in commands
    ]


def recorded(database: Database) -> list[str]:
    return [row[0] for row in database.query("SELECT version_num FROM alembic_version")]


@contextmanager
def weak_role(database: Database, *grants: str) -> Iterator[str]:
    """Make a role that may do so much and no more; give its URL."""
    role = f"weak_{database.name}"
    database.execute(f"REVOKE ALL ON DATABASE {database.name} FROM PUBLIC; CREATE ROLE {role} LOGIN")
    database.execute(f"GRANT CONNECT ON DATABASE {database.name} TO {role}")
    for each in grants:
        database.execute(each.format(role))
    try:
        yield database.url.replace("postgres@", f"{role}@")
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# --- databases in every state --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "prepare"),
    [
        pytest.param("FRESH", "", marks=pytest.mark.extra),
        pytest.param("BEHIND", RECORDED.format("r1") + "; CREATE TABLE t1 ()", marks=pytest.mark.extra),
        ("CURRENT", RECORDED.format("r3")),
        pytest.param("UNTRACKED", "CREATE TABLE t2 (x text)", marks=pytest.mark.extra),
        ("LOST", RECORDED.format("gone")),
        pytest.param(
            "OVERLAPPED", RECORDED.format("r3") + "; INSERT INTO alembic_version VALUES ('r1')", marks=pytest.mark.extra
        ),
    ],
)
def test_the_state_is_told_and_the_code_is_that_of_run(
    state: str, prepare: str, tree: Project, database: Database
) -> None:
    if prepare:
        database.execute(prepare)
    document = diagnose(tree, database.url)
    assert document["state"]["state"] == state
    assert document["exit_code"] == run(tree, database.url).code
    assert {name: document[name]["error"] for name in PARTS if document[name]["error"]} == {}


@pytest.mark.extra
def test_faults_of_the_image_are_told(tree: Project, database: Database) -> None:
    tree.add("x", down="gone")
    document = diagnose(tree, database.url)
    assert (document["exit_code"], document["state"]["state"]) == (78, "BROKEN")
    assert document["migrations"]["faults"] == ["x (migrations/versions/x.py) follows gone, which no file has"]


@pytest.mark.extra
def test_the_command_for_two_heads_merges_them(tree: Project, database: Database, server: Server) -> None:
    tree.write("migrations/script.py.mako", MAKO)
    tree.add("x", down="r1")
    document = diagnose(tree, database.url)
    assert (document["exit_code"], document["state"]["state"]) == (78, "FORKED")
    assert document["what_to_do"][0]["command"] == "alembic merge -m 'merge heads' r3 x"
    [merged] = follow(document, tree, server, database.url)
    assert merged.returncode == 0, merged.stderr
    assert run(tree, database.url).code == 0


def test_it_changes_nothing(tree: Project, database: Database) -> None:
    document = diagnose(tree, database.url)
    assert document["what_to_do"][-1]["command"] == "alembic-entrypoint migrate"
    assert database.query("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [(0,)]


def test_the_screen_shows_every_part_the_graph_and_what_to_do(tree: Project, database: Database) -> None:
    database.execute(RECORDED.format("r1") + "; CREATE TABLE t1 ()")
    result = screen(tree, database.url, PYTHONIOENCODING="utf-8")
    for part in (
        "✓ login        as postgres, a superuser",
        "✓ lock         free",
        "✓ migrations   3 migrations, 1 head, 0 branch points, 0 merges",
        "○ r3  Migration r3.  pending",
        "● r1  Migration r1.  ← the database is here",
        "What to do now (run would end with 0):",
        "$ alembic-entrypoint migrate",
    ):
        assert part in result.stdout
    assert len(result.stdout.splitlines()) < 40
    plain = screen(tree, database.url, PYTHONIOENCODING="ascii").stdout
    assert plain.isascii()
    assert "* r1  Migration r1.  <- the database is here" in plain


# --- what cannot be reached ----------------------------------------------------------------------------------------


def test_a_name_that_does_not_resolve(tree: Project) -> None:
    document = diagnose(tree, "postgresql://app:s3cret@nowhere.invalid/app")
    assert document["exit_code"] == 69
    [host] = document["network"]["hosts"]
    assert "does not resolve" in host["problem"]
    assert document["migrations"]["heads"] == 1
    assert document["state"]["error"] == "there is no session"
    assert "s3cret" not in json.dumps(document)
    assert "does not resolve" in advised(document)


@pytest.mark.extra
def test_a_port_that_is_closed(tree: Project) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        document = diagnose(tree, f"postgresql://app@127.0.0.1:{closed.getsockname()[1]}/app")
    assert (document["exit_code"], document["network"]["hosts"][0]["problem"]) == (69, "Connection refused")


@pytest.mark.extra
def test_a_server_that_accepts_and_says_nothing(tree: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        document = diagnose(tree, f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app")
    assert document["exit_code"] == 69
    assert document["network"]["hosts"][0]["answers"] is True
    assert document["login"]["error"]


@pytest.mark.extra
def test_a_database_that_is_not_there(tree: Project, server: Server) -> None:
    document = diagnose(tree, server.url_for("nowhere"))
    assert (document["exit_code"], document["network"]["hosts"][0]["answers"]) == (78, True)
    assert 'database "nowhere" does not exist' in document["login"]["error"]
    assert "Create the database" in advised(document)


def test_a_role_that_is_not_there(tree: Project, database: Database) -> None:
    document = diagnose(tree, database.url.replace("postgres@", "nobody@"))
    assert document["exit_code"] == 77
    assert 'role "nobody" does not exist' in document["login"]["error"]


@pytest.mark.extra
def test_no_database_is_named_anywhere(tree: Project) -> None:
    tree.write("migrations/env.py", "raise SystemExit('nothing is configured')")
    document = diagnose(tree, "")
    assert document["exit_code"] == 78
    assert "nothing is configured" in document["database"]["error"]
    assert document["login"]["error"] == "no database is named"
    assert document["tree"]["files"] == 4


@pytest.mark.extra
def test_a_frozen_server_ends_no_diagnosis(tree: Project) -> None:
    with own_server() as server, fresh_database(server) as database:
        server.freeze()
        document = diagnose(tree, f"{database.url}?connect_timeout=2")
        server.thaw()
    assert document["exit_code"] == 69
    assert document["software"]["error"] is None


@pytest.mark.extra
def test_a_question_that_is_not_answered_keeps_only_what_comes_after_it_back(tree: Project) -> None:
    """Somebody holds a table of the catalog that the questions read, and gives it back to nobody."""
    with own_server() as server, fresh_database(server) as database, database.connect(autocommit=False) as other:
        other.execute("LOCK TABLE pg_catalog.pg_constraint IN ACCESS EXCLUSIVE MODE")
        document = diagnose(tree, database.url)
        other.rollback()
    errors = {name: document[name]["error"] for name in PARTS if document[name]["error"]}
    assert "did not answer within" in errors.pop("login")
    assert errors == dict.fromkeys(
        ("server", "lock", "state", "rights", "ledger", "left_behind"), "the server fell silent before"
    )
    assert document["exit_code"] == 69


def test_settings_that_are_refused_are_all_named_and_the_rest_is_looked_at(tree: Project, database: Database) -> None:
    wrong = {"ALEMBIC_ENTRYPOINT_LOCKWAIT": "5", "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "soon"}
    document = diagnose(tree, database.url, "--ddl-retries", "many", **wrong)
    assert document["exit_code"] == 78
    named = [problem.split()[0] for problem in document["settings"]["problems"]]
    assert named == ["ALEMBIC_ENTRYPOINT_LOCKWAIT", "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT", "--ddl-retries"]
    assert document["state"]["state"] == "FRESH"
    values = {each["name"]: each for each in document["settings"]["values"]}
    assert values["WAIT_TIMEOUT"] == {"name": "WAIT_TIMEOUT", "value": "60", "from": "default"}
    assert values["DATABASE_URL"]["from"] == "DATABASE_URL"


def test_secrets_are_masked(tree: Project, database: Database) -> None:
    url = database.url.replace("postgres@", "postgres:s3cret-w0rd@")
    env = {
        "ALEMBIC_ENTRYPOINT_X": "tenant=a api_key=s3cret-key",
        "ALEMBIC_ENTRYPOINT_HELP_URL": "https://u:s3cret-help@h/",
    }
    document = diagnose(tree, url, **env)
    values = {each["name"]: each["value"] for each in document["settings"]["values"]}
    assert values["X"] == "tenant=a api_key=***"
    assert "s3cret" not in json.dumps(document)
    assert "s3cret" not in screen(tree, url, **env).stdout


# --- the image -----------------------------------------------------------------------------------------------------


@pytest.mark.extra
def test_two_trees_have_the_same_fingerprint_exactly_when_their_files_are_the_same(
    tree: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = project(tmp_path_factory.mktemp("other"))
    other.add_line(3)
    nowhere = "postgresql://app@127.0.0.1:1/app"
    ours, theirs = (diagnose(each, nowhere)["tree"]["fingerprint"] for each in (tree, other))
    assert ours == theirs
    other.add("r3", "pass", down="r2")
    assert diagnose(other, nowhere)["tree"]["fingerprint"] != ours


@pytest.mark.extra
def test_migrations_that_do_not_load_keep_nothing_else_back(tmp_path: Path, database: Database) -> None:
    document = diagnose(Project(tmp_path), database.url)
    assert document["exit_code"] == 78
    assert "no Alembic configuration" in document["migrations"]["error"]
    assert document["server"]["error"] is None


@pytest.mark.extra
def test_an_env_py_that_writes_first_is_named(tree: Project, database: Database) -> None:
    tree.write(
        "migrations/env.py",
        ENV.replace(
            "context.configure(connection",
            "connection.exec_driver_sql('CREATE SCHEMA a'); context.configure(connection",
        ),
    )
    document = diagnose(tree, database.url)
    assert (document["exit_code"], "diagnose never writes" in document["state"]["error"]) == (65, True)
    assert database.query("SELECT to_regnamespace('a')::text") == [(None,)]


def test_stale_bytecode_is_named_and_the_command_removes_it(tree: Project, database: Database, server: Server) -> None:
    database.execute(RECORDED.format("r3"))
    legacy = tree.versions / "r1.pyc"
    legacy.write_bytes(b"stale")
    subprocess.run(["python3", "-m", "compileall", "-q", "-b", str(tree.versions / "r1.py")], check=True)
    document = diagnose(tree, database.url)
    assert [each["reason"] for each in document["bytecode"]["stale"]] == ["legacy"]
    assert legacy.exists()
    follow(document, tree, server, database.url)
    assert not legacy.exists()


# --- the commands lead out -----------------------------------------------------------------------------------------


def test_a_lock_that_somebody_left_behind(tree: Project, database: Database, server: Server) -> None:
    with database.connect(application_name="left behind") as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, LOCK_A])
        document = diagnose(tree, database.url)
        assert document["exit_code"] == 75
        assert document["exit_code"] == run(tree, database.url, "--lock-wait", "0.1").code
        assert document["lock"]["holder"]["application_name"] == "left behind"
        assert "holds the migration lock" in advised(document)
        follow(document, tree, server, database.url)
    assert recorded(database) == ["r3"]


@pytest.mark.extra
def test_a_migration_that_is_blocked(tree: Project, database: Database, server: Server) -> None:
    tree.add("r4", "op.execute('ALTER TABLE t1 ADD x int')", down="r3")
    assert run(tree, database.url, "--target", "r3").code == 0
    other = database.connect(autocommit=False, application_name="somebody")
    other.execute("SELECT * FROM t1")
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": "0"}
    with started(tree.folder, "migrate", env=env) as running:
        wait_until(lambda: running.has("migration.blocked"), 30)
        document = diagnose(tree, database.url)
        assert document["lock"]["blocker"]["application_name"] == "somebody"
        assert len(document["lock"]["migrating"]) == 1
        [first] = [step for step in document["what_to_do"] if "keeps a migration waiting" in step["because"]]
        follow({"what_to_do": [first]}, tree, server, database.url)
        assert running.end().code == 0
    other.close()
    assert recorded(database) == ["r4"]


def test_a_role_that_may_not_make_tables(tree: Project, database: Database, server: Server) -> None:
    with weak_role(database) as url:
        document = diagnose(tree, url)
        assert document["exit_code"] == 77
        assert document["exit_code"] == run(tree, url).code
        lacking = {each["name"] for each in document["rights"]["rights"] if not each["has"]}
        assert {"USAGE and CREATE on schema public", "CREATEDB"} <= lacking
        follow(document, tree, server, url)
        assert recorded(database) == ["r3"]


@pytest.mark.extra
def test_a_role_that_may_not_read_the_version_table(tree: Project, database: Database, server: Server) -> None:
    assert run(tree, database.url, "--target", "r2").code == 0
    with weak_role(database, "GRANT ALL ON SCHEMA public TO {}") as url:
        document = diagnose(tree, url)
        assert document["exit_code"] == 77
        assert document["exit_code"] == run(tree, url).code
        [right] = [each for each in document["rights"]["rights"] if "alembic_version" in each["name"]]
        assert right["has"] is False
        assert right["remedy"].startswith("GRANT SELECT, INSERT, UPDATE, DELETE ON alembic_version TO weak_")
        database.execute(right["remedy"])
        [owned] = [each for each in diagnose(tree, url)["rights"]["rights"] if "ownership" in each["name"]]
        assert "not ours are t1, t2" in owned["why"]
        assert owned["remedy"].startswith("ALTER TABLE t1 OWNER TO weak_")


def test_what_an_interrupted_migration_left_behind(tree: Project, database: Database, server: Server) -> None:
    assert run(tree, database.url).code == 0
    database.execute("INSERT INTO t1 VALUES (1); ALTER TABLE t1 ADD x int CHECK (true)")
    database.execute("ALTER TABLE t1 ADD CONSTRAINT positive CHECK (id > 0) NOT VALID")
    database.execute(
        "CREATE INDEX half ON t1 (id); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half'::regclass"
    )
    document = diagnose(tree, database.url)
    assert document["exit_code"] == 0
    assert len(document["left_behind"]["invalid_indexes"]) == 1
    assert len(document["left_behind"]["not_valid_constraints"]) == 1
    follow(document, tree, server, database.url)
    after = diagnose(tree, database.url)
    assert after["left_behind"] == {"error": None, "invalid_indexes": [], "not_valid_constraints": []}
    assert after["what_to_do"] == [{"because": "Nothing: it would start.", "command": None}]


# --- other servers -------------------------------------------------------------------------------------------------


@pytest.mark.extra
def test_a_standby(tree: Project) -> None:
    with own_server() as primary, standby_of(primary) as standby:
        document = diagnose(tree, standby.url)
        assert (document["exit_code"], document["server"]["standby"]) == (69, True)
        assert "point the URL to the primary" in advised(document)
        both = f"postgresql://postgres@127.0.0.1:{standby.port},127.0.0.1:{primary.port}/postgres"
        document = diagnose(tree, both)
        assert (document["exit_code"], document["server"]["standby"]) == (0, False)


@pytest.mark.extra
@pytest.mark.parametrize(("mode", "code"), [("session", 0), ("transaction", 78), ("statement", 78)])
def test_a_pooler(mode: str, code: int, tree: Project, server: Server, database: Database) -> None:
    with pgbouncer(server, mode) as pooler:
        url = pooler.url_for(database.name)
        document = diagnose(tree, url)
        assert document["exit_code"] == code, document
        assert document["server"]["pooled"] is True
        assert document["server"]["shared"] is (mode != "session")
        assert run(tree, url).code == code


@pytest.mark.extra
@pytest.mark.parametrize("name", ["pg13", "pg15", "pg16"])
def test_every_server_answers_every_question(name: str, tree: Project, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(name)
    with fresh_database(server) as database:
        document = diagnose(tree, database.url)
        assert {part: document[part]["error"] for part in PARTS if document[part]["error"]} == {}
