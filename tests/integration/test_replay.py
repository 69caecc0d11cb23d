"""A replay tells what each migration makes, in scratch, whatever the driver, and as a live snapshot has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from alembic_entrypoint.replay import NotReplayed, Visited
from alembic_entrypoint.schema import snapshot
from alembic_entrypoint.schema.difference import difference
from alembic_entrypoint.schema.reading import Name
from projects import project
from replays import IGNORED, recorded, replayed
from servers import Database

GONE = [("type", "app", "mood"), ("relation", "public", "people"), ("sequence", "public", "users_id_seq")]


def test_each_migration_is_visited_with_what_it_makes(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path)
    made.add("a1", "op.create_table('users', sa.Column('id', sa.Integer, primary_key=True))")
    made.add("b2", "op.execute('CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ()')", down="a1")
    made.add("c3", "pass", down="b2")
    made.add("d4", "op.execute('ALTER TABLE users RENAME TO people')", down="c3")
    made.add("e5", "op.bulk_insert(sa.table('people', sa.column('id')), [{'id': 1}])", down="d4")
    made.add("f6", "op.execute('ALTER SCHEMA app RENAME TO lib; DROP TABLE people')", down="e5")
    visits = replayed(made, database, monkeypatch)
    assert recorded(visits) == [(), ("a1",), ("b2",), ("c3",), ("d4",), ("e5",), ("f6",)]
    assert [each.revision for each in visits] == [None, "a1", "b2", "c3", "d4", "e5", "f6"]
    assert [each.executed for each in visits] == [True, True, True, False, True, True, True]
    public, app = Name("schema", "public", ""), Name("schema", "app", "")
    assert [set(each.added) for each in visits] == [
        {public, Name("extension", "", "plpgsql")},
        {Name("relation", "public", "users"), Name("sequence", "public", "users_id_seq")},
        {app, Name("type", "app", "mood")},
        set(),
        {Name("relation", "public", "people")},
        set(),
        {Name("schema", "lib", ""), Name("type", "lib", "mood")},
    ]
    assert [set(each.removed) for each in visits[4:]] == [
        {Name("relation", "public", "users")},
        set(),
        {app, *(Name(*each) for each in GONE)},
    ]
    assert [Visited.of(each.document()) for each in visits] == list(visits)


#: A connection that the next migration goes on to use.
OPENS = """
engine = sa.create_engine(op.get_bind().engine.url, isolation_level="AUTOCOMMIT")
op.get_context().opts["own"] = engine.connect()
op.get_context().opts["own"].exec_driver_sql("CREATE TABLE users ()")
"""


def test_what_another_connection_makes_and_takes_is_seen(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path)
    made.add("a1", OPENS)
    made.add("b2", "op.get_context().opts['own'].exec_driver_sql('DROP TABLE users')", down="a1")
    made.add("c3", "op.execute('CREATE TABLE people ()')", down="b2")
    visits = replayed(made, database, monkeypatch)
    users, people = (frozenset([Name("relation", "public", each)]) for each in ("users", "people"))
    seen = [(set(each.added), set(each.removed)) for each in visits[1:]]
    assert seen == [(users, set()), (set(), users), (people, set())]


DRIVERS = {
    "psycopg": None,
    "psycopg2": "engine = create_engine(url.set(drivername='postgresql+psycopg2'))",
    "asyncpg": "engine = create_async_engine(url.set(drivername='postgresql+asyncpg'))",
    "psycopg, async": "engine = create_async_engine(url.set(drivername='postgresql+psycopg_async'))",
    "autocommit": "engine = create_engine(url, isolation_level='AUTOCOMMIT')",
}
ENV = """
import asyncio, os
from alembic import context
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
engine = create_engine(url)
{engine}


def migrate(connection):
    context.configure(connection=connection, {options})
    with context.begin_transaction():
        context.run_migrations()


async def migrate_async():
    async with engine.connect() as connection:
        await connection.run_sync(migrate)


if hasattr(engine, "sync_engine"):
    asyncio.run(migrate_async())
else:
    with engine.connect() as connection:
        migrate(connection)
"""


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("psycopg", ""),
        ("psycopg2", "transaction_per_migration=True"),
        ("asyncpg", ""),
        pytest.param("psycopg", "transaction_per_migration=True", marks=pytest.mark.extra),
        pytest.param("psycopg2", "", marks=pytest.mark.extra),
        pytest.param("asyncpg", "transaction_per_migration=True", marks=pytest.mark.extra),
        pytest.param("psycopg, async", "", marks=pytest.mark.extra),
        pytest.param("autocommit", "", marks=pytest.mark.extra),
    ],
)
def test_a_digest_is_that_of_a_live_snapshot(
    driver: str, options: str, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = """
        CREATE SCHEMA app;
        CREATE TABLE app.users (id serial PRIMARY KEY, name varchar(50) COLLATE "C" DEFAULT 'x', at timestamptz,
            ok boolean NOT NULL DEFAULT false, state text CHECK (state IN ('a', 'b')));
        CREATE INDEX ON app.users (lower(name)) WITH (fillfactor = 70);
        CREATE TYPE app.mood AS ENUM ('sad', 'glad');
        CREATE FUNCTION app.one(n int) RETURNS int LANGUAGE sql COST 12.5 SET search_path = app AS 'SELECT 1';
        CREATE FUNCTION app.many() RETURNS SETOF int LANGUAGE sql ROWS 7 AS 'SELECT 1';
        CREATE VIEW app.names AS SELECT name FROM app.users WHERE at > now();
        INSERT INTO app.users (name) VALUES ('first');
    """
    statements = [each.strip() for each in schema.split(";") if each.strip()]
    made = project(tmp_path, env=ENV.format(engine=DRIVERS[driver] or "", options=options))
    made.add("a1", "\n".join(f"op.execute({each!r})" for each in statements))
    made.add("b2", "op.execute('CREATE TABLE app.late (id int)')", down="a1")
    for statement in statements:
        database.execute(statement)
    monkeypatch.setenv("DATABASE_URL", database.url)
    visits = replayed(made, database, monkeypatch, shown=[("a1",)])
    with database.connect() as connection:
        live = snapshot.take(connection, ignore=IGNORED)
    there = {("schema", "public"), ("extension", "plpgsql")}
    facts = {
        thing: told for thing, told in live.facts.items() if (thing.kind.value, thing.schema or thing.name) not in there
    }
    live = snapshot.Snapshot(live.major, facts)
    at_head = visits[1]
    assert at_head.snapshot is not None
    assert [each.line() for each in difference(live, at_head.snapshot)] == []
    assert at_head.digest == live.digest
    assert at_head.rows == (("app", "users"),)
    assert visits[2].digest is None
    assert visits[2].snapshot is None


def test_branches_are_replayed_in_the_order_that_is_asked_for(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path)
    made.add("root")
    for name, down in (("l1", "root"), ("l2", "l1"), ("r1", "root"), ("r2", "r1")):
        made.add(name, f"op.execute('CREATE TABLE {name} ()')", down=down)
    made.add("m", down=("l2", "r2"))
    order = ["root", "r1", "l1", "r2", "l2", "m"]
    visits = replayed(made, database, monkeypatch, order)
    expected = [(), ("root",), ("r1",), ("l1", "r1"), ("l1", "r2"), ("l2", "r2"), ("m",)]
    assert recorded(visits) == expected


STREAMS = {
    "psycopg": "c = psycopg.connect(url); c.cursor().copy('COPY t FROM STDIN').__enter__()",
    "psycopg2": "psycopg2.connect(url).cursor().copy_from(io.StringIO(''), 't')",
    "psycopg2, a procedure": "psycopg2.connect(url).cursor().callproc('now')",
    "asyncpg": "asyncio.run(streamed())",
}


@pytest.mark.extra
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_what_is_streamed_counts_as_executed(
    stream: str, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    made = project(tmp_path, env=ENV.format(engine="", options="transaction_per_migration=True"))
    made.add("a1", "op.execute('CREATE TABLE t (id int)')")
    head = """
import asyncio, io, os, asyncpg, psycopg, psycopg2
url = os.environ["DATABASE_URL"]
async def streamed():
    await (await asyncpg.connect(url)).copy_records_to_table("t", records=[])
"""
    made.add("b2", stream, down="a1", head=head)
    made.add("c3", "import os", down="b2", head=head)
    assert [each.executed for each in replayed(made, database, monkeypatch)] == [True, True, True, False]


def test_what_an_administrator_has_made_is_made_in_scratch_too(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (extension,) = database.query("SELECT min(name) FROM pg_available_extensions WHERE name IN ('citext', 'vector')")[0]
    database.execute(f"CREATE SCHEMA ext; CREATE SCHEMA app; CREATE EXTENSION {extension} SCHEMA ext")
    made = project(tmp_path)
    made.add("a1", "op.execute('CREATE TABLE app.users (id int)')")
    made.add("b2", f"op.execute('CREATE TABLE app.things (id ext.{extension})')", down="a1")
    made.add("c3", "op.execute('CREATE SCHEMA own')", down="b2")
    database.execute("CREATE SCHEMA own")
    visits = replayed(made, database, monkeypatch)
    assert recorded(visits)[-1] == ("c3",)
    assert {Name("schema", "app", ""), Name("schema", "ext", ""), Name("extension", "", extension)} <= set(
        visits[0].added
    )
    assert visits[3].added == (Name("schema", "own", ""),)


def test_a_migration_that_fails_on_an_empty_database_is_named(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path)
    made.add_line(2)
    made.add("c3", "op.execute('SELECT 1/(SELECT count(*) FROM t1)')", down="r2")
    with pytest.raises(
        NotReplayed, match=r"Migration c3 \(.*c3.py\) failed in a replay, .*: division by zero"
    ) as caught:
        replayed(made, database, monkeypatch)
    assert caught.value.revision == "c3"
    assert not caught.value.is_confined


def test_the_search_path_of_the_database_holds_in_a_replay(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("CREATE SCHEMA app")
    database.execute(f"ALTER DATABASE {database.name} SET search_path = app, public")
    made = project(tmp_path)
    made.add("a1", "op.execute('CREATE SCHEMA IF NOT EXISTS app; CREATE TABLE users (id int)')")
    visits = replayed(made, database, monkeypatch)
    assert Name("relation", "app", "users") in visits[1].added
