"""Names that are read as they come and go are those that a full reading gives, whatever came between two looks."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.reading import Name
from alembic_entrypoint.worker.names import Names
from servers import Database

IGNORED = [("public", "left_out")]
#: Each may fail, as where it names what is not there.
STATEMENTS = [
    "CREATE TABLE {a} (id serial PRIMARY KEY)",
    "CREATE TABLE {s}.{a} (id int)",
    "DROP TABLE {a}",
    "DROP TABLE {s}.{a}",
    "ALTER TABLE {a} RENAME TO {b}",
    "ALTER TABLE {a} SET SCHEMA {s}",
    "ALTER TABLE {a} ADD COLUMN more int",
    "DROP TABLE {a}; CREATE TABLE {a} (id int)",
    "DROP TABLE {a}; CREATE TABLE {b} (id int)",
    "CREATE SCHEMA {s}",
    "DROP SCHEMA {s} CASCADE",
    "ALTER SCHEMA {s} RENAME TO {t}",
    "CREATE TYPE {a} AS ENUM ('one')",
    "CREATE TYPE {a} AS (one int)",
    "DROP TYPE {a}",
    "CREATE FUNCTION {a}() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION {a}(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP FUNCTION {a}()",
    "ALTER FUNCTION {a}(int) RENAME TO {b}",
    "CREATE VIEW {a} AS SELECT 1 AS one",
    "ALTER EXTENSION plpgsql ADD FUNCTION {a}()",
    "ALTER EXTENSION plpgsql DROP FUNCTION {a}()",
    "SAVEPOINT before; DROP TABLE {a}; ROLLBACK TO before",
    "SAVEPOINT before; CREATE TABLE {a} (id int); RELEASE before",
    "CREATE TABLE {a} (id int); SAVEPOINT before; DROP TABLE {a}; ROLLBACK TO before",
    "CREATE TABLE left_out (id int)",
    "RESET ALL",
    "DISCARD PLANS",
    "COMMIT; BEGIN",
    "ROLLBACK; BEGIN",
]


@pytest.fixture(params=["psycopg", "psycopg2"])
def connection(request: pytest.FixtureRequest, database: Database) -> Iterator[Connection]:
    engine = create_engine(database.url.replace("postgresql:", f"postgresql+{request.param}:"))
    with engine.connect() as opened:
        yield opened
    engine.dispose()


def execute(connection: Connection, statement: str) -> bool:
    """Run statements; tell whether they went well."""
    cursor = connection.connection.cursor()
    try:
        for each in statement.split("; "):
            cursor.execute(each)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_what_comes_and_goes_is_what_a_full_reading_shows(connection: Connection, seed: int) -> None:
    draw = random.Random(seed)
    names, seen = Names(IGNORED), frozenset[Name]()
    for _ in range(120):
        a, b = draw.sample(["a", "b", "c"], 2)
        s, t = draw.sample(["s", "t", "u"], 2)
        statement = draw.choice(STATEMENTS).format(a=a, b=b, s=s, t=t)
        execute(connection, "SAVEPOINT step")
        if not execute(connection, statement):
            execute(connection, "ROLLBACK TO step")
        come, gone = names.changes(connection, is_alone=True)
        assert not come & seen, statement
        assert gone <= seen, statement
        seen = (seen - gone) | come
        cursor = connection.connection.cursor()
        cursor.execute(reading.NAMES)
        assert seen == reading.names_of(cursor.fetchone()[0], IGNORED), statement
