"""How `env.py` connects, and what else it does with its connections: each form works unchanged."""

from __future__ import annotations

import json
import secrets
import socket
import socketserver
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from env_forms import (
    assert_migrated,
    async_env_py,
    env_on,
    env_py,
    ini_with,
    migrate,
    recorded,
    schemas,
    tables,
    tree_in,
)
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_entrypoint.postgres.session import ALIVE
from commands import entrypoint
from projects import DRIVERS
from servers import Database, Server, fresh_database, own_server

pytestmark = pytest.mark.wide

CREATORS = {
    "psycopg": (
        "postgresql+psycopg://",
        "psycopg.connect(host='db.invalid', dbname='elsewhere', user='nobody')",
    ),
    "psycopg2": ("postgresql+psycopg2://", "psycopg2.connect('host=db.invalid dbname=elsewhere user=nobody')"),
}
ASYNC_CREATORS = {
    "asyncpg": ("postgresql+asyncpg://", "asyncpg.connect('postgresql://nobody@db.invalid/elsewhere')"),
    "psycopg": ("postgresql+psycopg://", "psycopg.AsyncConnection.connect('host=db.invalid dbname=elsewhere')"),
}


@pytest.fixture
def other(server: Server) -> Iterator[Database]:
    """Give a second database, with a table to write to."""
    with fresh_database(server) as made:
        made.execute("CREATE TABLE audit (line text)")
        yield made


@pytest.mark.parametrize("driver", CREATORS)
def test_a_creator_of_its_own(tmp_path: Path, database: Database, driver: str) -> None:
    scheme, connect = CREATORS[driver]
    tree = tree_in(tmp_path, env_py(f"create_engine('{scheme}', creator=lambda: {connect})", above=f"import {driver}"))
    assert_migrated(migrate(tree, database), database)


@pytest.mark.parametrize("driver", CREATORS)
def test_a_creator_is_asked_where_the_database_is(tmp_path: Path, database: Database, driver: str) -> None:
    scheme, _ = CREATORS[driver]
    connect = f"{driver}.connect({database.url!r})"
    tree = tree_in(tmp_path, env_py(f"create_engine('{scheme}', creator=lambda: {connect})", above=f"import {driver}"))
    assert_migrated(migrate(tree), database)


# SQLAlchemy has it from 2.0.16 on.
if "async_creator" in (create_async_engine.__doc__ or ""):

    @pytest.mark.parametrize("driver", ASYNC_CREATORS)
    def test_an_async_creator_of_its_own(tmp_path: Path, database: Database, driver: str) -> None:
        scheme, connect = ASYNC_CREATORS[driver]
        above = f"import {driver}\nasync def connect():\n    return await {connect}"
        tree = tree_in(tmp_path, async_env_py(f"create_async_engine('{scheme}', async_creator=connect)", above=above))
        assert_migrated(migrate(tree, database), database)


def test_connect_functions_that_env_py_imported_by_name(tmp_path: Path, database: Database) -> None:
    connect = "connect(host='db.invalid', dbname='elsewhere')"
    env = env_py(
        f"create_engine('postgresql+psycopg://', creator=lambda: {connect})", above="from psycopg import connect"
    )
    assert_migrated(migrate(tree_in(tmp_path, env), database), database)


@pytest.fixture(scope="module")
def scram() -> Iterator[Server]:
    """Give a server that wants passwords."""
    hba = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    with own_server(hba=hba) as made:
        yield made


@pytest.fixture
def tokens(scram: Server) -> Iterator[list[str]]:
    """Give tokens for the role `app` to whoever connects to the port that comes first; only the newest is good."""
    given: list[str] = []

    class Giving(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            given.append(f"token-{secrets.token_hex(8)}")
            scram.execute(f"ALTER ROLE app PASSWORD '{given[-1]}'")
            self.request.sendall(given[-1].encode())

    scram.execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'constant token'")
    with socketserver.TCPServer(("127.0.0.1", 0), Giving) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        given.append(str(service.server_address[1]))
        yield given
        service.shutdown()
    scram.execute("DROP OWNED BY app; DROP ROLE app")


#: What env.py does for a password, where TOKEN_PORT names no service that gives a new one for each connection.
TOKEN = """
import socket
used = []
def token():
    if "TOKEN_PORT" not in os.environ:
        return "constant token"
    with socket.create_connection(("127.0.0.1", int(os.environ["TOKEN_PORT"]))) as service:
        used.append(service.recv(100).decode())
    return used[-1]

async def awaited_token():
    return token()
"""
LISTENER = """
    @event.listens_for(engine.sync_engine if hasattr(engine, "sync_engine") else engine, "do_connect")
    def add_token(dialect, record, arguments, parameters):
        parameters["password"] = token()
"""


def env_with_token(driver: str, how: str) -> str:
    """Write an `env.py` that adds a token to each connection: by a listener, or by a callable that is given."""
    env = env_on(driver)
    if how != "listener":
        env = env.replace("poolclass=", f"connect_args={{'password': {how}}}, poolclass=")
    else:
        at = "    async with engine" if driver == "asyncpg" else "with engine"
        listener = LISTENER if driver == "asyncpg" else textwrap.dedent(LISTENER)
        env = env.replace(at, f"{listener}\n{at}")
    return env.replace("config = context.config", f"from sqlalchemy import event\nconfig = context.config\n{TOKEN}")


TOKENS = [*((driver, "listener") for driver in DRIVERS), ("asyncpg", "token"), ("asyncpg", "awaited_token")]


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize(("driver", "how"), TOKENS)
def test_a_token_that_env_py_adds(
    tmp_path: Path, scram: Server, tokens: list[str], driver: str, how: str, is_given: bool
) -> None:
    with fresh_database(scram) as database:
        url = f"postgresql+{driver}://app@127.0.0.1:{scram.port}/{database.name}"
        tree = tree_in(tmp_path, env_with_token(driver, how), ini=ini_with("driver://" if is_given else url))
        given = {"DATABASE_URL": url} if is_given else {}
        result = migrate(tree, ALEMBIC_ENTRYPOINT_LOG_LEVEL="debug", **given)
        assert_migrated(result, database)
        assert "constant token" not in result.stderr


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("driver", DRIVERS)
def test_each_connection_may_have_a_token_of_its_own(
    tmp_path: Path, scram: Server, tokens: list[str], driver: str, is_given: bool
) -> None:
    # As with Azure's and AWS's tokens: what the first connection used is good for nothing else.
    with fresh_database(scram) as database:
        url = f"postgresql+{driver}://app@127.0.0.1:{scram.port}/{database.name}"
        printing = "\nprint(used)\n"
        tree = tree_in(
            tmp_path, env_with_token(driver, "listener") + printing, ini=ini_with("driver://" if is_given else url)
        )
        given = {"DATABASE_URL": url} if is_given else {}
        result = migrate(tree, TOKEN_PORT=tokens[0], ALEMBIC_ENTRYPOINT_LOG_LEVEL="debug", **given)
        assert_migrated(result, database)
        assert len(tokens) > 3
        assert "['***']" in [each["line"] for each in result.named("worker.output")]
        assert not [each for each in tokens[1:] if each in result.stderr]


def test_a_token_that_env_py_adds_is_added_in_a_replay(tmp_path: Path, scram: Server, tokens: list[str]) -> None:
    with fresh_database(scram) as database:
        url = f"postgresql+psycopg2://app@127.0.0.1:{scram.port}/{database.name}"
        tree = tree_in(tmp_path, env_with_token("psycopg2", "listener"))
        database.execute("CREATE TABLE t1 (id int PRIMARY KEY); CREATE TABLE t2 (id int PRIMARY KEY)")
        result = migrate(tree, DATABASE_URL=url)
        assert_migrated(result, database)
        assert result.named("schema.proved")


def test_a_password_that_nobody_names_is_asked_of_env_py_in_vain(
    tmp_path: Path, scram: Server, tokens: list[str]
) -> None:
    with fresh_database(scram) as database:
        url = f"postgresql://app@127.0.0.1:{scram.port}/{database.name}"
        result = migrate(tree_in(tmp_path, env_py()), DATABASE_URL=url, ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT="0")
    assert result.code == 77
    assert "no password supplied" in result.message
    assert "No setting names a password, so env.py was asked for one: it connects without one" in result.message


def test_a_pool_that_is_kept_and_asked_twice(tmp_path: Path, database: Database) -> None:
    again = "with engine.connect() as second:\n    second.execute(text('SELECT 1'))"
    engine = "create_engine(config.get_main_option('sqlalchemy.url'), pool_size=5, pool_pre_ping=True)"
    assert_migrated(migrate(tree_in(tmp_path, env_py(engine, after=again)), database), database)


def test_an_engine_that_is_opened_and_closed_for_each_migration(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py(configure="transaction_per_migration=True"))
    for n in (3, 4):
        body = f"""
        from alembic import context
        engine = sa.create_engine(context.config.get_main_option("sqlalchemy.url"))
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE s{n} (id int)"))
        engine.dispose()
        """
        tree.add(f"r{n}", body, down=f"r{n - 1}")
    result = migrate(tree, database)
    assert result.code == 0, result.message
    assert recorded(database) == ["r4"]
    assert {"public.s3", "public.s4"} <= set(tables(database))


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_engine_that_is_made_for_one_run_and_disposed_of(tmp_path: Path, database: Database, driver: str) -> None:
    assert_migrated(migrate(tree_in(tmp_path, env_on(driver)), DATABASE_URL=database.url_on(driver)), database)


SECOND = """
with create_engine(os.environ["OTHER"]).begin() as second:
    second.execute(text("INSERT INTO audit VALUES ('here')"))
"""
ASYNC_SECOND = """
import asyncio
from sqlalchemy.ext.asyncio import create_async_engine

async def write():
    async with create_async_engine(os.environ["OTHER"], poolclass=pool.NullPool).begin() as second:
        await second.execute(text("INSERT INTO audit VALUES ('here')"))

asyncio.run(write())
"""


@pytest.mark.parametrize(
    ("driver", "place", "is_given"),
    [*((driver, "above", True) for driver in DRIVERS), ("psycopg", "after", True), ("psycopg", "after", False)],
)
def test_a_second_engine_that_writes_to_another_database_does_so_once(
    tmp_path: Path, database: Database, other: Database, driver: str, place: str, is_given: bool
) -> None:
    second = ASYNC_SECOND if driver == "asyncpg" else SECOND
    tree = tree_in(tmp_path, env_py("create_engine(os.environ['URL'])", **{place: second}))
    given = {"DATABASE_URL": database.url} if is_given else {}
    result = migrate(tree, OTHER=other.url_on(driver), URL=database.url_on("psycopg"), **given)
    assert_migrated(result, database)
    assert other.query("SELECT line FROM audit") == [("here",)]
    assert tables(other) == ["public.audit"]


def test_a_second_engine_that_reads_another_database_before_it_migrates(
    tmp_path: Path, database: Database, other: Database
) -> None:
    reading = """
with create_engine(os.environ["OTHER"]).connect() as second:
    assert second.execute(text("SELECT count(*) FROM audit")).scalar() == 0
    assert second.execute(text("SELECT current_database()")).scalar() == os.environ["NAME"]
"""
    env = {"OTHER": other.url_on("psycopg"), "URL": database.url_on("psycopg"), "NAME": other.name}
    tree = tree_in(tmp_path, env_py("create_engine(os.environ['URL'])", above=reading))
    assert_migrated(migrate(tree, DATABASE_URL=database.url, **env), database)
    with fresh_database(database.server) as third:  # type: ignore[arg-type]
        env["URL"] = third.url_on("psycopg")
        assert_migrated(migrate(tree, **env), third)


def test_a_migration_that_writes_to_another_database(tmp_path: Path, database: Database, other: Database) -> None:
    tree = tree_in(tmp_path, env_py())
    body = """
    import os
    engine = sa.create_engine(os.environ["OTHER"])
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO audit VALUES ('migrated')"))
    """
    tree.add("r3", body, down="r2")
    result = migrate(tree, database, OTHER=other.url_on("psycopg"))
    assert result.code == 0, result.message
    assert other.query("SELECT line FROM audit") == [("migrated",)]
    assert recorded(database) == ["r3"]


@pytest.mark.parametrize("before", ["connection.commit()", "connection.rollback()"])
def test_a_connection_on_which_something_was_executed_and_ended_before(
    tmp_path: Path, database: Database, before: str
) -> None:
    env = env_py(before=f"connection.execute(text('SELECT 1')); {before}")
    assert_migrated(migrate(tree_in(tmp_path, env), database), database)


def test_a_transaction_of_env_pys_own_around_everything(tmp_path: Path, database: Database) -> None:
    env = env_py(before="connection.execute(text('SELECT 1'))").replace("engine.connect()", "engine.begin()")
    assert_migrated(migrate(tree_in(tmp_path, env), database), database)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_open_transaction_that_nobody_commits_is_noticed(tmp_path: Path, database: Database, driver: str) -> None:
    # Plain Alembic ends with 0 here, and nothing is migrated [in_transaction, hazard 1].
    tree = tree_in(tmp_path, env_on(driver, before="connection.execute(text('SELECT 1'))"))
    result = migrate(tree, DATABASE_URL=database.url_on(driver))
    assert result.code == 1
    assert "env.py did not commit them" in result.message
    assert tables(database) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_autocommit_block_in_an_open_transaction_fails_and_says_so(
    tmp_path: Path, database: Database, driver: str
) -> None:
    tree = tree_in(tmp_path, env_on(driver, before="connection.execute(text('SELECT 1'))"))
    tree.add("r3", "with op.get_context().autocommit_block():\n    op.execute('VACUUM t1')", down="r2")
    result = migrate(tree, DATABASE_URL=database.url_on(driver))
    assert result.code == 1
    assert "r3" in result.message
    assert "The database is as before" in result.message
    assert tables(database) == []


WRITING = {
    "in a transaction": "connection.execute(text('CREATE SCHEMA IF NOT EXISTS app')); connection.commit()",
    "in autocommit": "engine.connect().execution_options(isolation_level='AUTOCOMMIT')"
    ".execute(text('CREATE SCHEMA IF NOT EXISTS app'))",
    "over a raw connection": "raw = engine.raw_connection(); cursor = raw.cursor(); "
    "cursor.execute('CREATE SCHEMA IF NOT EXISTS app'); raw.commit(); raw.close()",
    "over the driver": "import psycopg; psycopg.connect(os.environ['RAW'], autocommit=True)"
    ".execute('CREATE SCHEMA IF NOT EXISTS app')",
}


@pytest.mark.parametrize(
    ("how", "is_given"), [*((how, True) for how in WRITING), ("in a transaction", False), ("in autocommit", False)]
)
def test_an_env_py_that_creates_its_schema_first(tmp_path: Path, database: Database, how: str, is_given: bool) -> None:
    tree = tree_in(tmp_path, env_py(before=WRITING[how], configure="version_table_schema='app'"))
    tree.write("alembic.ini", ini_with(database.url_on("psycopg")))
    env = {"RAW": database.url, **({"DATABASE_URL": database.url} if is_given else {})}

    planned = entrypoint("plan", cwd=tmp_path, env=env)
    assert planned.code == 65
    assert "env.py writes to the database before it migrates" in planned.message
    assert schemas(database) == []

    assert migrate(tree, **env).code == 0
    assert recorded(database, "app.alembic_version") == ["r2"]


def test_an_env_py_that_creates_its_schema_again_at_each_start(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py(before=WRITING["in a transaction"]))
    assert_migrated(migrate(tree, database), database)
    # Now that the schema is there it is a notice; but PostgreSQL still calls it a write.
    assert migrate(tree, database).state == "CURRENT"


def test_an_env_py_that_needs_the_schema_that_it_creates(tmp_path: Path, database: Database) -> None:
    # A look under the lock keeps nothing; this one must.
    need = "connection.execute(text(\"COMMENT ON SCHEMA app IS 'ours'\")); connection.commit()"
    tree = tree_in(tmp_path, env_py(before=f"{WRITING['in a transaction']}; {need}"))
    assert_migrated(migrate(tree, database), database)
    assert schemas(database) == ["app"]


def test_an_async_env_py_that_creates_its_schema_first(tmp_path: Path, database: Database) -> None:
    write = "    connection.exec_driver_sql('CREATE SCHEMA IF NOT EXISTS app'); connection.commit()\n"
    env = env_on("asyncpg").replace("    context.configure(", write + "    context.configure(")
    tree = tree_in(tmp_path, env)
    url = database.url_on("asyncpg")
    assert entrypoint("plan", cwd=tmp_path, env={"DATABASE_URL": url}).code == 65
    assert schemas(database) == []
    assert_migrated(migrate(tree, DATABASE_URL=url), database)


def test_an_env_py_that_writes_first_and_names_another_host(tmp_path: Path, database: Database) -> None:
    write = "connection.execute(text('CREATE SCHEMA IF NOT EXISTS app')); connection.commit()"
    env = env_py("create_engine('postgresql+psycopg://nobody@db.invalid/elsewhere')", before=write)
    assert_migrated(migrate(tree_in(tmp_path, env), database), database)
    assert schemas(database) == ["app"]


def test_an_env_py_that_creates_its_database(tmp_path: Path, server: Server) -> None:
    # As sqlalchemy_utils.create_database does where the database is not there yet; here it is.
    with fresh_database(server) as database:
        above = """
import psycopg
with psycopg.connect(os.environ["ADMIN"], autocommit=True) as admin:
    if not admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [os.environ["NAME"]]).fetchone():
        admin.execute("CREATE DATABASE " + os.environ["NAME"])
"""
        tree = tree_in(tmp_path, env_py(above=above))
        result = migrate(tree, database, ADMIN=server.url, NAME=database.name)
        assert_migrated(result, database)


def test_a_role_that_env_py_sets(tmp_path: Path, server: Server, database: Database) -> None:
    role = f"owner_{database.name}"
    server.execute(f"CREATE ROLE {role}")
    database.execute(f"GRANT ALL ON SCHEMA public TO {role}")
    listener = f"""
@event.listens_for(engine, "connect")
def set_role(connection, record):
    connection.cursor().execute("SET ROLE {role}")
    connection.commit()
"""
    env = env_py().replace("with engine", listener + "\nwith engine")
    assert_migrated(migrate(tree_in(tmp_path, env), database), database)
    owner = database.query("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 't1'")
    assert owner == [(role,)]


def test_a_search_path_that_env_py_sets_counts(tmp_path: Path, database: Database) -> None:
    database.execute("CREATE SCHEMA app")
    engine = "create_engine(config.get_main_option('sqlalchemy.url'), connect_args={'options': '-c search_path=app'})"
    tree = tree_in(tmp_path, env_py(engine))
    result = migrate(tree, database)
    assert result.code == 0, result.message
    assert tables(database) == ["app.alembic_version", "app.t1", "app.t2"]
    assert migrate(tree, database).state == "CURRENT"


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_a_search_path_in_database_url_counts(tmp_path: Path, database: Database, driver: str) -> None:
    database.execute("CREATE SCHEMA app")
    tree = tree_in(tmp_path, env_on(driver))
    url = database.url_on(driver) + "?options=-csearch_path%3Dapp"
    result = migrate(tree, DATABASE_URL=url)
    assert result.code == 0, result.message
    assert tables(database) == ["app.alembic_version", "app.t1", "app.t2"]


OURS = {**ALIVE, "lock_timeout": "7000", "statement_timeout": "90000"}
SETTINGS = f"SELECT name, setting FROM pg_settings WHERE name IN {(*OURS, 'application_name')}"
READ_BACK = """
url = op.get_bind().engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
found = {"main": [tuple(row) for row in op.get_bind().exec_driver_sql(SETTINGS)]}
for name, place in (("raw", url), ("other", OTHER)):
    with psycopg.connect(place, autocommit=True) as connection:
        found[name] = connection.execute(SETTINGS).fetchall()
with open("found", "w") as file:
    json.dump({name: dict(rows) for name, rows in found.items()}, file)
"""


@pytest.mark.parametrize("driver", DRIVERS)
def test_sessions_on_the_target_have_our_settings_and_no_other_has(
    tmp_path: Path, database: Database, other: Database, driver: str
) -> None:
    """Whoever opens them; for another database they are those that an administrator gave it."""
    other.execute(f"ALTER DATABASE {other.name} SET lock_timeout = '3s'")
    tree = tree_in(tmp_path, env_on(driver))
    head = f"import json\nimport psycopg\nSETTINGS, OTHER = {SETTINGS!r}, {other.url!r}"
    tree.add("r3", READ_BACK, down="r2", head=head)
    timeouts = {"ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": "7", "ALEMBIC_ENTRYPOINT_STATEMENT_TIMEOUT": "90"}
    result = migrate(tree, DATABASE_URL=database.url_on(driver), **timeouts)
    assert result.code == 0, result.stderr
    found = json.loads((tmp_path / "found").read_text())
    theirs = dict(other.query(SETTINGS))
    ours = {**OURS, "application_name": f"alembic-entrypoint migrating {socket.gethostname()}"[:63]}
    assert found["main"] == found["raw"] == {name: value for name, value in ours.items() if name in theirs}
    assert found["other"] == theirs
    assert found["other"]["lock_timeout"] == "3000"
