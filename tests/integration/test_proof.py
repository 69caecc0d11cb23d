"""A proof says whose schema is live: of one set of revisions and no other, of none, of several, or of nobody's."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from alembic_entrypoint.address import parse
from alembic_entrypoint.comparison import Outcome
from alembic_entrypoint.errors import TryAgain
from alembic_entrypoint.observe import find_target, observe
from alembic_entrypoint.postgres import embedded
from alembic_entrypoint.proof import Proof, prove
from alembic_entrypoint.settings import Settings
from projects import ENV, Project, project
from servers import Database, Server, fresh_database, own_server


def proved(
    made: Project,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    only: tuple[str, ...] | None = None,
    known: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Proof:
    """Prove, and see that neither schema nor rows of the target change."""
    monkeypatch.chdir(made.folder)
    given = Settings(database_url=parse(database.url), wait_timeout=10, target="heads", **settings)
    seen = observe(given, find_target(given))
    with database.connect() as connection:
        before = connection.execute(STATE).fetchone()
        document = None if known is None else json.loads(json.dumps(known))
        proof = prove(connection, given, seen.target, seen.facts, only=only, known=document)
        assert connection.execute(STATE).fetchone() == before
    return proof


STATE = """
SELECT (SELECT json_agg(oid::text || relname || relfilenode ORDER BY oid) FROM pg_class WHERE oid >= 16384)::text,
       (SELECT count(*) FROM pg_database WHERE datname ~ 'scratch'),
       (SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables)
"""


def migrate(made: Project, database: Database, revision: str = "heads", *, forgets: bool = True) -> None:
    """Upgrade as plain Alembic does, and lose the version table."""
    url = database.url.replace("postgresql:", "postgresql+psycopg:")
    text = "from alembic.config import Config; from alembic import command; c = Config('alembic.ini'); "
    text += f"c.set_main_option('sqlalchemy.url', {url!r}); command.upgrade(c, {revision!r})"
    subprocess.run([sys.executable, "-c", text], cwd=made.folder, check=True, capture_output=True)
    if forgets:
        database.execute("DROP TABLE alembic_version")


def table(name: str) -> str:
    return f"op.create_table('{name}', sa.Column('id', sa.Integer, primary_key=True), sa.Column('name', sa.String(50)))"


@pytest.fixture
def line(tmp_path: Path) -> Project:
    """Make a line of five: two tables, a merge-like `pass`, a column, a table."""
    made = project(tmp_path)
    made.add("a1", table("users"))
    made.add("b2", table("notes"), down="a1")
    made.add("c3", "pass", down="b2")
    made.add("d4", "op.add_column('notes', sa.Column('slug', sa.Text))", down="c3")
    made.add("e5", table("tags"), down="d4")
    return made


@pytest.mark.parametrize(
    ("revision", "found"),
    [
        ("a1", "a1"),
        pytest.param("b2", "c3", id="b2, with which the next that executes nothing counts as one"),
        pytest.param("d4", "d4", marks=pytest.mark.extra),
        pytest.param("e5", "e5", marks=pytest.mark.extra),
    ],
)
def test_the_one_revision_is_found(
    line: Project, database: Database, monkeypatch: pytest.MonkeyPatch, revision: str, found: str
) -> None:
    migrate(line, database, revision)
    proof = proved(line, database, monkeypatch)
    assert (proof.outcome, proof.candidates) == (Outcome.ONE, ((found,),))
    assert proof.difference == ()
    assert found in proof.message


def test_a_schema_one_column_short_is_nobodys_and_the_nearest_is_named(
    line: Project, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(line, database)
    database.execute("ALTER TABLE tags DROP COLUMN name")
    proof = proved(line, database, monkeypatch)
    assert (proof.outcome, proof.nearest) == (Outcome.NONE, ("e5",))
    assert proof.difference == ("tags.name: missing here, varchar(50) in e5",)
    assert "nearest is e5" in proof.message
    assert proof.difference[0] in proof.message


@pytest.mark.extra
def test_between_revisions_with_the_same_tables_the_nearest_is_the_one_with_the_fewest_differences(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path)
    made.add("a0", table("users"))
    for n in range(1, 13):  # more than are looked at closely in a replay of its own
        made.add(f"a{n}", f"op.add_column('users', sa.Column('c{n}', sa.Integer))", down=f"a{n - 1}")
    migrate(made, database, "a2")
    database.execute("ALTER TABLE users ALTER c2 TYPE bigint")
    proof = proved(made, database, monkeypatch)
    assert (proof.outcome, proof.nearest) == (Outcome.NONE, ("a2",))
    assert proof.difference == ("users.c2: bigint here, integer in a2",)


def test_a_data_only_head_and_its_parent_are_several(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[R2] Taking the head would skip its data step."""
    made = project(tmp_path)
    made.add("a1", table("users"))
    made.add("b2", "op.execute(\"UPDATE users SET name = 'x'\")", down="a1")
    migrate(made, database, "a1")
    proof = proved(made, database, monkeypatch)
    assert (proof.outcome, proof.candidates) == (Outcome.SEVERAL, (("b2",), ("a1",)))
    assert "b2; a1" in proof.message


def test_tables_that_the_replay_fills_and_that_are_empty_are_a_difference(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema made by create_all() is not at head when head brings seed rows; with them it is not at the parent."""
    made = project(tmp_path)
    made.add("a1", table("users"))
    made.add("b2", f"{table('roles')}\nop.execute('INSERT INTO roles (id) VALUES (1)')", down="a1")
    migrate(made, database)
    assert proved(made, database, monkeypatch).candidates == (("b2",),)
    database.execute("DELETE FROM roles")
    proof = proved(made, database, monkeypatch)
    assert (proof.outcome, proof.nearest) == (Outcome.NONE, ("b2",))
    assert proof.difference == ("public.roles: no rows here, rows in b2",)


def test_base_is_what_others_alone_have_made(
    line: Project, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("CREATE TABLE strangers (id int); CREATE SCHEMA other; CREATE TABLE other.things (id int)")
    assert proved(line, database, monkeypatch).outcome is Outcome.BASE
    database.execute("CREATE VIEW tags AS SELECT 1")
    assert proved(line, database, monkeypatch).outcome is Outcome.NONE


def test_strangers_are_a_difference_and_listed_unless_they_are_ignored(
    line: Project, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(line, database)
    database.execute("CREATE TABLE spatial_ref (id serial); CREATE SCHEMA other; CREATE TABLE other.things (id int)")
    proof = proved(line, database, monkeypatch)
    assert (proof.outcome, proof.strangers) == (Outcome.NONE, ("public.spatial_ref",))
    assert "ALEMBIC_ENTRYPOINT_IGNORE" in proof.message
    proof = proved(line, database, monkeypatch, ignore=("public.spatial_*",))
    assert (proof.outcome, proof.candidates, proof.strangers) == (Outcome.ONE, (("e5",),), ())


PSYCOPG2 = ENV.replace(
    'create_engine(config.get_main_option("sqlalchemy.url")',
    "create_engine(config.get_main_option('sqlalchemy.url').replace('+psycopg:', '+psycopg2:')",
)


def branches(folder: Path) -> Project:
    made = project(folder)
    made.add("root", table("users"))
    for side in ("l", "r"):
        made.add(f"{side}1", table(f"{side}1"), down="root")
        made.add(f"{side}2", table(f"{side}2"), down=f"{side}1")
    made.add("m", "pass", down=("l2", "r2"))
    made.add("last", table("last"), down="m")
    return made


@pytest.mark.parametrize(
    ("revisions", "found"),
    [
        pytest.param(["l1"], ("l1",), marks=pytest.mark.extra),
        (["l1", "r2"], ("l1", "r2")),
        pytest.param(["r2"], ("r2",), marks=pytest.mark.extra),
        pytest.param(["l2", "r1"], ("l2", "r1"), marks=pytest.mark.extra),
        pytest.param(["l2", "r2"], ("m",), marks=pytest.mark.extra),
        pytest.param(["heads"], ("last",), marks=pytest.mark.extra),
    ],
)
def test_a_set_of_branches_is_found_whichever_of_them_came_first(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, revisions: list[str], found: tuple[str, ...]
) -> None:
    made = branches(tmp_path)
    for n, each in enumerate(revisions):
        migrate(made, database, each, forgets=n == len(revisions) - 1)
    proof = proved(made, database, monkeypatch)
    assert (proof.outcome, proof.candidates) == (Outcome.ONE, (found,))


def test_only_one_set_is_asked_about(line: Project, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(line, database, "b2")
    assert proved(line, database, monkeypatch, only=("b2",)).outcome is Outcome.ONE
    proof = proved(line, database, monkeypatch, only=("d4",))
    assert (proof.outcome, proof.nearest) == (Outcome.NONE, ("d4",))
    assert proof.difference == ("notes.slug: missing here, text in d4",)


def test_a_proof_whose_replays_are_known_replays_nothing(
    line: Project, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty replicas that crash-loop on a refusal do not replay fifty times."""
    migrate(line, database, "d4")
    first = proved(line, database, monkeypatch)
    second = proved(line, database, monkeypatch, known=first.document, scratch="off")
    assert dataclasses.replace(second) == first
    database.execute("ALTER TABLE notes ALTER slug SET NOT NULL")
    changed = proved(line, database, monkeypatch)
    assert (changed.outcome, changed.nearest) == (Outcome.NONE, ("d4",))
    assert proved(line, database, monkeypatch, known=changed.document, scratch="off") == changed
    database.execute("DROP TABLE notes")
    # What was known says too little of this schema, and is not guessed.
    assert proved(line, database, monkeypatch, known=changed.document).candidates == (("a1",),)


@pytest.mark.extra
def test_a_replay_that_fails_proves_nothing_and_is_known_to_fail(
    line: Project, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(line, database)
    line.add("f6", "op.execute('SELECT 1/0')", down="e5")
    proof = proved(line, database, monkeypatch)
    assert (proof.outcome, proof.candidates) == (Outcome.FAILED, ())
    assert "Migration f6" in proof.message
    assert "division by zero" in proof.message
    assert proved(line, database, monkeypatch, known=proof.document, scratch="off") == proof


@pytest.mark.extra
def test_a_replay_that_fails_for_want_of_room_may_be_tried_again(
    line: Project, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(line, database)
    full = "DO $$ BEGIN RAISE 'no space left' USING ERRCODE = '53100'; END $$"
    line.add("f6", f"op.execute({full!r})", down="e5")
    with pytest.raises(TryAgain, match=r"no space left(.|\n)*\nNothing was changed"):
        proved(line, database, monkeypatch)


@pytest.mark.extra
def test_a_schema_of_a_database_without_encoding_is_proved(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path, env=PSYCOPG2)  # psycopg itself cannot be used there
    made.add("a1", "op.execute('CREATE TABLE users (name text)')")
    made.add("b2", "op.execute('CREATE TABLE t ()')", down="a1")
    with fresh_database(server, like="ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0") as database:
        database.execute("CREATE TABLE users (name text)")
        assert proved(made, database, monkeypatch).candidates == (("a1",),)


@pytest.mark.extra
def test_other_drivers_and_schemas_are_proved_too(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = PSYCOPG2
    options = "version_table='versions', version_table_schema='app'"
    env = env.replace("(connection=connection)", f"(connection=connection, {options})")
    assert "versions" in env
    made = project(tmp_path, env=env)
    made.add("a1", "op.execute('CREATE TABLE app.users (id serial)')")
    made.add("b2", "op.execute('CREATE TABLE app.notes (id serial)')", down="a1")
    database.execute("CREATE SCHEMA app; CREATE TABLE app.users (id serial)")
    assert proved(made, database, monkeypatch).candidates == (("a1",),)


@pytest.mark.extra
def test_an_extension_that_the_server_lacks_is_no_passing_matter(
    line: Project, monkeypatch: pytest.MonkeyPatch, pg13: Server
) -> None:
    with fresh_database(pg13) as database:
        migrate(line, database)
        line.add("f6", "op.execute('CREATE EXTENSION nowhere')", down="e5")
        proof = proved(line, database, monkeypatch)
    assert proof.outcome is Outcome.FAILED
    assert "Migration f6" in proof.message
    assert "nowhere.control" in proof.message
    assert proof.document == {}, "it may be installed, and is not kept as a failure of the migrations"


@pytest.mark.wide
def test_an_extension_that_scratch_lacks_is_named(line: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedded.new_folder() as folder:
        (folder / "extension").mkdir()
        (folder / "extension" / "only_here.control").write_text("default_version = '1'")
        (folder / "extension" / "only_here--1.sql").write_text("CREATE DOMAIN only_here AS text")
        with own_server(settings={"extension_control_path": f"{folder}:$system"}) as server:
            database = Database(server, "postgres")
            database.execute("CREATE EXTENSION only_here")
            line.add("f6", "op.execute('CREATE TABLE those (id only_here)')", down="e5")
            migrate(line, database)
            proof = proved(line, database, monkeypatch, scratch="embedded")
    assert proof.outcome is Outcome.FAILED
    assert 'failed in a replay, on an empty database: type "only_here" does not exist' in proof.message
    assert "The target has the extension only_here, which cannot be made in scratch: extension" in proof.message
    assert "ALEMBIC_ENTRYPOINT_SCRATCH" in proof.message


@pytest.mark.extra
@pytest.mark.parametrize("major", [13, 15, 16])
def test_older_servers_prove_as_well(
    line: Project, monkeypatch: pytest.MonkeyPatch, major: int, request: pytest.FixtureRequest
) -> None:
    with fresh_database(request.getfixturevalue(f"pg{major}")) as database:
        migrate(line, database, "d4")
        assert proved(line, database, monkeypatch).candidates == (("d4",),)
        database.execute("DROP INDEX IF EXISTS x; ALTER TABLE notes DROP slug; ALTER TABLE users ADD slug text")
        assert proved(line, database, monkeypatch).outcome is Outcome.NONE
