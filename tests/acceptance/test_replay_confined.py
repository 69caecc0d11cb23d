"""A replay reaches nothing but its scratch database: whatever else history would do, it is ended before it acts [R5].

The target's tables, rows, roles, databases and settings are compared, and what would be reached outside listens.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alembic_entrypoint.replay import NotReplayed
from projects import ENV, project
from replays import recorded, replayed
from servers import Database, Server, fresh_database

STATE = """
SELECT (SELECT json_agg(to_jsonb(a) ORDER BY rolname) FROM pg_authid a)::text,
       (SELECT json_agg(to_jsonb(m) ORDER BY roleid, member) FROM pg_auth_members m)::text,
       (SELECT json_agg(to_jsonb(s) ORDER BY setdatabase, setrole) FROM pg_db_role_setting s)::text,
       (SELECT json_agg(to_jsonb(d) - 'datfrozenxid' - 'datminmxid' ORDER BY datname) FROM pg_database d)::text,
       (SELECT json_agg(sourcefile || name || setting ORDER BY seqno) FROM pg_file_settings)::text,
       (SELECT json_agg(oid::text || relname || relfilenode ORDER BY oid) FROM pg_class WHERE oid >= 16384)::text,
       (SELECT json_agg(to_jsonb(k) ORDER BY id) FROM kept k)::text
"""

ENVS = {
    "hard-codes the target": 'engine = create_engine("{url}".replace("postgresql:", "postgresql+psycopg:"))',
    "has a creator": (
        "import psycopg; engine = create_engine('postgresql+psycopg://', creator=lambda: psycopg.connect('{url}'))"
    ),
    "has a psycopg2 creator": (
        "import psycopg2; engine = create_engine('postgresql+psycopg2://', creator=lambda: psycopg2.connect('{url}'))"
    ),
    "has a second engine to the target": (
        "other = create_engine('{url}'.replace('postgresql:', 'postgresql+psycopg:'))\n"
        "with other.begin() as second: second.exec_driver_sql('DROP TABLE IF EXISTS kept')"
    ),
    "has a raw driver and DATABASE_URL": (
        "import psycopg, os\n"
        "with psycopg.connect(os.environ['DATABASE_URL']) as raw: raw.execute('DROP TABLE IF EXISTS kept')"
    ),
    "has a raw driver and PG variables": (
        "import psycopg\nwith psycopg.connect('') as raw: raw.execute('DROP TABLE IF EXISTS kept')"
    ),
    "has psycopg2's own connection and DATABASE_URL": (
        "import os, psycopg2.extensions\nraw = psycopg2.extensions.connection(os.environ['DATABASE_URL'])\n"
        "assert type(raw) is psycopg2.extensions.connection and isinstance(raw, psycopg2.extensions.connection)\n"
        "raw.cursor().execute('DROP TABLE IF EXISTS kept')\nraw.commit()"
    ),
    "has asyncpg and DATABASE_URL": (
        "import asyncio, asyncpg, os\nasync def drop():\n"
        "    raw = await asyncpg.connect(os.environ['DATABASE_URL'])\n"
        "    await raw.execute('DROP TABLE IF EXISTS kept')\n    await raw.close()\nasyncio.run(drop())"
    ),
}


def env_with(text: str, url: str) -> str:
    """Put a text into an `env.py`, after the engine that it may replace."""
    lines = text.replace("{url}", url).replace("\n", "\n    ")
    return ENV.replace("    with engine.connect()", f"    {lines}\n    with engine.connect()")


@pytest.fixture
def target(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Give a database with a table and a row, which every variable names."""
    database.execute("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)")
    assert isinstance(database.server, Server)
    for name, value in (("HOST", "127.0.0.1"), ("PORT", database.server.port), ("DATABASE", database.name)):
        monkeypatch.setenv(f"PG{name}", str(value))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("DATABASE_URL", database.url)
    return database


@contextmanager
def unchanged(target: Database) -> Iterator[None]:
    """See that the target and its server are in the end as they were."""
    before = target.query(STATE)
    yield
    assert target.query(STATE) == before


def few(table: dict[str, str], *quick: str) -> list[Any]:
    """Mark all but a few cases as extra."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.extra, id=name) for name in table]


@pytest.mark.parametrize(
    "name", few(ENVS, "has a creator", "has asyncpg and DATABASE_URL", "has psycopg2's own connection and DATABASE_URL")
)
def test_every_way_to_the_target_leads_to_scratch(
    name: str, tmp_path: Path, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ENVS[name]
    made = project(tmp_path, env=env_with(text, target.url) if "DROP" not in text else ENV)
    if "DROP" in text:  # while observing it is read-only, so it is the migration that does it
        made.add("a1", f"from sqlalchemy import create_engine\n{text.replace('{url}', target.url)}")
    else:
        made.add("a1", "op.execute('CREATE TABLE made (id int)')")
    with unchanged(target):
        assert recorded(replayed(made, target, monkeypatch)) == [(), ("a1",)]


READS = """
import os
for name in ("DATABASE_URL", "ALEMBIC_ENTRYPOINT_DATABASE_URL", "APP_DB"):
    assert os.environ[name].startswith("postgresql+asyncpg://") and "scratch" in os.environ[name], name
    assert os.environ[name].endswith("?prepared_statement_cache_size=0"), name
assert "scratch" in open(os.environ["DATABASE_URL_FILE"]).read()
assert "scratch" in os.environ["PGDATABASE"] and "PGSERVICE" not in os.environ
assert os.environ["CACHE"] == "redis://127.0.0.1/0" and os.environ["OTHER_DB"] == "postgresql://192.0.2.1/other"
"""


def test_what_reads_the_targets_url_from_the_environment_reads_scratchs(
    tmp_path: Path, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = target.url.replace("postgresql:", "postgresql+asyncpg:") + "?prepared_statement_cache_size=0"
    (tmp_path / "secret").write_text(f"{target.url}\n")
    for name in ("DATABASE_URL", "ALEMBIC_ENTRYPOINT_DATABASE_URL", "APP_DB"):
        monkeypatch.setenv(name, url)
    (tmp_path / "services").write_text(f"[here]\ndbname={target.name}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    others = {"CACHE": "redis://127.0.0.1/0", "OTHER_DB": "postgresql://192.0.2.1/other", "PGSERVICE": "here"}
    for name, value in {**others, "DATABASE_URL_FILE": str(tmp_path / "secret")}.items():
        monkeypatch.setenv(name, value)
    made = project(tmp_path)
    made.add("a1", READS)
    with unchanged(target):
        assert recorded(replayed(made, target, monkeypatch)) == [(), ("a1",)]


@pytest.mark.parametrize("scratch", ["auto", pytest.param("embedded", marks=pytest.mark.extra)])
def test_a_target_that_is_named_in_parts_is_still_the_target(
    scratch: str, tmp_path: Path, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The `PG…` variables, which give the rest, mean scratch then."""
    parts = f"psycopg.connect('dbname={target.name}'); psycopg.connect(host='127.0.0.1'); psycopg.connect('')"
    made = project(tmp_path)
    made.add("a1", f"import psycopg; {parts}")
    with unchanged(target):
        assert recorded(replayed(made, target, monkeypatch, scratch=scratch)) == [(), ("a1",)]


class Listener:
    """A socket that takes note of whoever connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.came = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            self._socket.accept()[0].close()
            self.came += 1


SQL = {
    "ALTER ROLE": "ALTER ROLE postgres PASSWORD 'x'",
    "CREATE ROLE": "CREATE ROLE from_replay",
    "ALTER DATABASE": "ALTER DATABASE {database} SET search_path = nowhere",
    "GRANT PG_MONITOR TO": "GRANT pg_monitor TO postgres",
    "CREATE DATABASE": "DO $$ BEGIN EXECUTE 'CREATE DATABASE x'; END $$",
    "REASSIGN OWNED": "REASSIGN OWNED BY postgres TO pg_monitor",
    "COPY KEPT TO PROGRAM": "COPY kept TO PROGRAM 'touch {marker}'",
    "COPY KEPT TO": "COPY kept TO '{marker}'",
    "PG_TERMINATE_BACKEND": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
    "DELETE FROM PG_DB_ROLE_SETTING": "DELETE FROM pg_db_role_setting",
}
PYTHON = {
    "starts a program": "import subprocess; subprocess.run(['touch', {marker!r}])",
    "starts a program: b'psql": "import os; os.system('psql -c \"DROP TABLE kept\"; touch {marker}')",
    "starts a program: '/bin/touch'": "import os; os.posix_spawn('/bin/touch', ['touch', {marker!r}], {{}})",
    "forks": "import os; os.fork() or os._exit(0)",
    "opens a network connection": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')",
    "opens a network connection to (": (
        "import os, socket; socket.create_connection(('127.0.0.1', int(os.environ['PGPORT'])))"
    ),
    "connects to another database, postgres at": (
        "import psycopg; psycopg.connect({url!r}, dbname='postgres').execute('DROP TABLE kept')"
    ),
    "connects to another database, other at 192.0.2.1": (
        "import psycopg2; psycopg2.connect('host=192.0.2.1 dbname=other connect_timeout=1')"
    ),
    "connects to another database, other at 192.0.2.2": (
        "import psycopg2.extensions; psycopg2.extensions.connection('host=192.0.2.2 dbname=other connect_timeout=1')"
    ),
    "connects through libpq itself": (
        "import psycopg; psycopg.pq.PGconn.connect({url!r}.encode()).exec_(b'DROP TABLE kept')"
    ),
    "calls system() of C": "import ctypes; ctypes.CDLL(None).system(b'touch {marker}')",
    "sends a signal to process": "import os, signal; os.kill(os.getpid(), 0); os.kill(os.getppid(), signal.SIGCONT)",
}


WAYS = {
    "op.execute": "op.execute(statement)",
    "psycopg": "psycopg.connect(url, autocommit=True).cursor(row_factory=psycopg.rows.dict_row).execute(statement)",
    "psycopg2": "psycopg2.connect(url).cursor(cursor_factory=DictCursor).execute(statement)",
    "psycopg2's classes": "psycopg2.extensions.cursor(psycopg2.extensions.connection(url)).execute(statement)",
    "asyncpg": "asyncio.run(sent())",
}
QUICK = [("op.execute", "ALTER ROLE"), ("psycopg2", "CREATE DATABASE"), ("asyncpg", "ALTER DATABASE")]
#: Every statement by Alembic and one other way: what it is called is the same for all of them.
OTHERS = [*itertools.islice(itertools.cycle([*WAYS][1:]), len(SQL))]
CASES = dict.fromkeys([*QUICK, *(("op.execute", what) for what in SQL), *zip(OTHERS, SQL, strict=True)])


@pytest.mark.parametrize(
    ("way", "what"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.extra) for case in CASES],
)
def test_a_statement_that_reaches_beyond_the_database_is_ended_before_it_runs(
    what: str, way: str, tmp_path: Path, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = Path(f"/tmp/{tmp_path.name}.{target.name}.marker")
    statement = SQL[what].format(database=target.name, marker=marker)
    run = WAYS[way]
    made = project(tmp_path)
    made.add_line(1)
    head = f"""
import asyncio, os, asyncpg, psycopg, psycopg.rows, psycopg2, psycopg2.extensions
from psycopg2.extras import DictCursor
statement, url = {statement!r}, os.environ["DATABASE_URL"]
async def sent():
    await (await asyncpg.connect(url)).fetch(statement)
"""
    swallowed = f"try:\n    {run}\nexcept BaseException:\n    pass\nop.execute('CREATE TABLE after ()')"
    made.add("guilty", swallowed, down="r1", head=head)
    with unchanged(target), pytest.raises(NotReplayed) as caught:
        replayed(made, target, monkeypatch)
    assert f"Migration guilty (migrations/versions/guilty.py) cannot be replayed: it runs {what}" in str(caught.value)
    assert caught.value.is_confined
    assert not marker.exists()


HIDDEN = """
import asyncio, os, asyncpg, psycopg, psycopg2
url = os.environ["DATABASE_URL"]
hidden = "DO $$ BEGIN EXECUTE 'AL' || 'TER ROLE postgres CONNECTION LIMIT 7'; END $$"

def run(cursor, *statements):
    for each in (hidden, *statements):
        cursor.execute(each)

async def asyncpg_block():
    raw = await asyncpg.connect(url)
    async with raw.transaction():
        await raw.execute(hidden)

async def psycopg_block():
    async with await psycopg.AsyncConnection.connect(url) as raw:
        await raw.execute(hidden)
"""
COMMITS = {
    "env.py": "op.execute(hidden)",
    "a statement": "op.execute(hidden); op.execute('COMMIT')",
    "psycopg": "raw = psycopg.connect(url); run(raw); raw.commit()",
    "psycopg, a statement": "run(psycopg.connect(url).cursor(), '/* now */ END')",
    "psycopg, a block": "raw = psycopg.connect(url, autocommit=True)\nwith raw.transaction():\n    run(raw)",
    "psycopg, async": "asyncio.run(psycopg_block())",
    "psycopg2": "raw = psycopg2.connect(url); run(raw.cursor()); raw.commit()",
    "psycopg2, a statement": "run(psycopg2.connect(url).cursor(), 'commit')",
    "psycopg2, a block": "with psycopg2.connect(url) as raw:\n    run(raw.cursor())",
    "asyncpg": "asyncio.run(asyncpg_block())",
}


@pytest.mark.parametrize("commit", few(COMMITS, "env.py", "psycopg", "psycopg2, a block", "asyncpg"))
def test_a_statement_that_was_hidden_is_ended_before_it_is_committed(
    commit: str, tmp_path: Path, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path)
    made.add("a1", COMMITS[commit], head=HIDDEN)
    with unchanged(target), pytest.raises(NotReplayed, match=r"a1 .* cannot be replayed: it changes pg_authid"):
        replayed(made, target, monkeypatch)


@pytest.mark.parametrize("what", few(PYTHON, "starts a program", "opens a network connection"))
def test_what_leaves_the_process_is_ended_before_it_acts(
    what: str, tmp_path: Path, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, marker = Listener(), tmp_path / "marker"
    text = PYTHON[what].format(marker=str(marker), port=listener.port, url=target.url)
    made = project(tmp_path)
    made.add_line(1)
    made.add("guilty", f"try:\n    {text}\nexcept BaseException:\n    pass", down="r1")
    with unchanged(target), pytest.raises(NotReplayed) as caught:
        replayed(made, target, monkeypatch)
    assert f"Migration guilty (migrations/versions/guilty.py) cannot be replayed: it {what}" in str(caught.value)
    assert not marker.exists()
    assert listener.came == 0


TALKS = """
import asyncio, os, socket, asyncpg
async def talk():
    socket.socketpair()[0].sendmsg([b"x", b"y"])  # as `writelines` of asyncio does from Python 3.12 on
    raw = await asyncpg.connect(os.environ["DATABASE_URL"])
    await raw.executemany("INSERT INTO made VALUES ($1)", [(1,), (2,)])
    await raw.close()
"""
ASYNCPG = """
    from sqlalchemy.ext.asyncio import create_async_engine
    engine = create_async_engine(config.get_main_option("sqlalchemy.url").replace("+psycopg:", "+asyncpg:"))

    def migrate(connection):
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()

    async def migrate_async():
        async with engine.connect() as connection:
            await connection.run_sync(migrate)

    import asyncio
    asyncio.run(migrate_async())
    return
"""


def test_what_goes_through_a_connection_that_was_looked_at_is_not_ended(
    tmp_path: Path, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path, env=ENV.replace("run_online():\n", f"run_online():{ASYNCPG}"))
    made.add("a1", "op.execute('CREATE TABLE made (id int)')")
    rows = "op.bulk_insert(sa.table('made', sa.column('id', sa.Integer)), [{'id': 1}, {'id': 2}])"
    made.add("b2", rows, down="a1")
    thread = (
        "import threading; other = threading.Thread(target=lambda: asyncio.run(talk())); other.start(); other.join()"
    )
    made.add("c3", thread, down="b2", head=TALKS)
    with unchanged(target):
        assert recorded(replayed(made, target, monkeypatch)) == [(), ("a1",), ("b2",), ("c3",)]


def test_an_env_that_calls_psql_is_ended_before_it_does(
    tmp_path: Path, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Observing would let it do so, as Alembic itself does: in scratch alone it calls.
    calls = """
        import subprocess
        if "scratch" in connection.exec_driver_sql("SELECT current_database()").scalar():
            subprocess.run(["psql", "-c", "DROP TABLE kept"])
        connection.rollback()
    """
    env = ENV.replace(
        "        context.configure(connection", f"{calls.strip(' ')}\n        context.configure(connection"
    )
    made = project(tmp_path, env=env)
    made.add("a1", "pass")
    with unchanged(target), pytest.raises(NotReplayed, match=r"env.py, .* cannot be replayed: it starts a program"):
        replayed(made, target, monkeypatch)


ASTRAY = """
import gc, os, psycopg
from alembic_entrypoint.worker.connections import Policy
gc.unfreeze()
(policy,) = (each for each in gc.get_objects() if type(each) is Policy)
policy.target = {{**policy.target, "dbname": {name!r}}}
psycopg.connect(os.environ["DATABASE_URL"], autocommit=True).execute("CREATE TABLE made ()")
"""


def test_a_connection_that_went_astray_is_ended_before_its_first_statement(
    tmp_path: Path, target: Database, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever libpq's variables, a pooler or DNS lead it: what counts is the token that it sees there."""
    made = project(tmp_path)
    with fresh_database(server) as other:
        made.add("a1", ASTRAY.format(name=other.name))
        with (
            unchanged(target),
            pytest.raises(NotReplayed, match="it reaches a database that is not its scratch database"),
        ):
            replayed(made, target, monkeypatch)
        assert other.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
