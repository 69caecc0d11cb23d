"""SIGTERM and SIGINT end a run at every step before the exec: soon, rolled back, and with nothing left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from alembic_entrypoint.worker.messages import LOCK_A, LOCK_CLASS
from commands import Result, Running, started
from projects import ENV, Project, project
from servers import Database, Server, fresh_database, own_server, processes_of, signals_of, wait_until

#: Two seconds are promised. The machine that tests may be busy with others; what it interrupts would take a minute.
LIMIT = 4.0
SLEEP = "op.execute('CREATE TABLE half (id int)'); op.execute('SELECT pg_sleep(60)')"
SLEEPING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
NEVER_ENDS = "import os, time\nopen('reached', 'w').close()\ntime.sleep(60)\n"

ASYNC_ENV = """
import asyncio
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine


def run(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def run_online():
    engine = create_async_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)


asyncio.run(run_online())
"""


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add("r1", SLEEP)
    return made


@contextmanager
def running_until(
    tree: Project, is_reached: Callable[[Running], object], url: str, **options: Any
) -> Iterator[Running]:
    """Start a run and let it get to a step. Whatever it starts carries the folder's name in its environment."""
    env = {"MARK": str(tree.folder)} | ({"DATABASE_URL": url} if url else {})
    with started(tree.folder, "run", "echo", "the app", env=env, **options) as running:
        wait_until(lambda: is_reached(running) or running.process.poll() is not None, 30, what="the step")
        assert running.process.poll() is None, running.log.read_text()
        yield running


def ended_by(signum: int, running: Running, pid: int | None = None) -> Result:
    """Send a signal and see that it ends the run in time."""
    began = time.monotonic()
    os.kill(pid or running.pid, signum)
    result = running.end(20)
    elapsed = time.monotonic() - began
    assert (result.code, result.stdout) == (128 + signum, ""), result.stderr
    assert elapsed < LIMIT
    return result


def left_behind(tree: Project) -> list[str]:
    """List the processes that a run of this project started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={tree.folder}\0".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def see_that_nothing_is_left(tree: Project, database: Database) -> None:
    wait_until(lambda: not left_behind(tree), LIMIT, what="no process is left")
    sessions = "SELECT application_name, query FROM pg_stat_activity WHERE datname = %s"
    wait_until(lambda: not database.server.query(sessions, database.name), 3 * LIMIT, what="no session is left")
    assert database.query("SELECT to_regclass('half')::text, to_regclass('alembic_version')::text") == [(None, None)]


# --- the steps -----------------------------------------------------------------------------------------------------


@contextmanager
def waiting_for_the_database(tree: Project, database: Database, **options: Any) -> Iterator[Running]:
    nowhere = database.server.url_for("nowhere")
    with running_until(tree, lambda running: running.has("database.waiting"), nowhere, **options) as running:
        yield running


def asking_env_py(tree: Project, database: Database, **options: Any) -> AbstractContextManager[Running]:
    tree.write("migrations/env.py", NEVER_ENDS)
    return running_until(tree, lambda _: (tree.folder / "reached").exists(), "", **options)


def looking_through_env_py(tree: Project, database: Database, **options: Any) -> AbstractContextManager[Running]:
    tree.write("migrations/env.py", NEVER_ENDS)
    return running_until(tree, lambda _: (tree.folder / "reached").exists(), database.url, **options)


@contextmanager
def waiting_for_the_lock(tree: Project, database: Database, **options: Any) -> Iterator[Running]:
    with database.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, LOCK_A])
        with running_until(tree, lambda running: running.has("lock.waiting"), database.url, **options) as running:
            yield running


def migrating(tree: Project, database: Database, **options: Any) -> AbstractContextManager[Running]:
    return running_until(tree, lambda _: database.query(SLEEPING), database.url, **options)


Step = Callable[..., AbstractContextManager[Running]]
STEPS: list[Step] = [waiting_for_the_database, asking_env_py, looking_through_env_py, waiting_for_the_lock, migrating]


SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.wide)]


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_signal_ends_a_run_at_every_step(
    step: Step,
    signum: int,
    tree: Project,
    database: Database,
) -> None:
    with step(tree, database) as running:
        ended_by(signum, running)
    see_that_nothing_is_left(tree, database)


# --- what a migration may be at ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "env"), [("psycopg", ENV), ("psycopg2", ENV), ("asyncpg", ASYNC_ENV), ("psycopg", ASYNC_ENV)]
)
def test_a_migration_is_rolled_back_on_every_driver(driver: str, env: str, tree: Project, database: Database) -> None:
    tree.write("migrations/env.py", env)
    url = database.url.replace("postgresql://", f"postgresql+{driver}://")
    with running_until(tree, lambda _: database.query(SLEEPING), url) as running:
        ended_by(signal.SIGTERM, running)
    see_that_nothing_is_left(tree, database)


@pytest.mark.extra
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_migration_is_rolled_back_on_a_server_that_does_not_look_after_its_clients(
    driver: str, tree: Project, pg13: Server
) -> None:
    """Before 14 there is no client_connection_check_interval: what is not cancelled runs to its end."""
    with fresh_database(pg13) as database:
        url = database.url.replace("postgresql://", f"postgresql+{driver}://")
        with running_until(tree, lambda _: database.query(SLEEPING), url) as running:
            ended_by(signal.SIGTERM, running)
        see_that_nothing_is_left(tree, database)


def test_a_migration_that_is_busy_in_python_is_ended(tree: Project, database: Database) -> None:
    """It holds a transaction, ignores signals, swallows what can be caught, and has started a child."""
    tree.add(
        "r1",
        """
        import signal, subprocess, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        subprocess.Popen(["sleep", "60"])
        op.execute("CREATE TABLE half (id int)")
        end = time.monotonic() + 60
        open("reached", "w").close()
        while time.monotonic() < end:
            try:
                sum(range(10 ** 6))
            except BaseException:
                pass
        """,
    )
    with running_until(tree, lambda _: (tree.folder / "reached").exists(), database.url) as running:
        ended_by(signal.SIGTERM, running)
    see_that_nothing_is_left(tree, database)


def test_a_migration_that_waits_for_a_table_lock_is_ended(tree: Project, database: Database) -> None:
    database.execute("CREATE TABLE busy (id int)")
    tree.add("r1", "op.execute('CREATE TABLE half (id int)'); op.execute('DROP TABLE busy')")
    env = {"ALEMBIC_ENTRYPOINT_IGNORE": "public.busy", "ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": "0"}
    with database.connect(autocommit=False) as other, pytest.MonkeyPatch.context() as patch:
        other.execute("LOCK TABLE busy")
        for name, value in env.items():
            patch.setenv(name, value)
        with running_until(tree, lambda running: running.has("migration.blocked"), database.url) as running:
            ended_by(signal.SIGTERM, running)
        other.rollback()
    see_that_nothing_is_left(tree, database)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_a_run_when_the_server_does_not_answer(signum: int, tree: Project) -> None:
    with own_server() as server, fresh_database(server) as database:
        with running_until(tree, lambda _: database.query(SLEEPING), database.url) as running:
            server.freeze()
            ended_by(signum, running)
            wait_until(lambda: not left_behind(tree), LIMIT, what="no process is left")
            server.thaw()
        see_that_nothing_is_left(tree, database)


def test_a_signal_ends_a_run_that_waits_for_a_server_that_does_not_answer(tree: Project) -> None:
    with own_server() as server, fresh_database(server) as database:
        server.freeze()
        url = f"{database.url}?connect_timeout=2"
        with running_until(tree, lambda running: running.has("database.waiting"), url) as running:
            ended_by(signal.SIGTERM, running)
            wait_until(lambda: not left_behind(tree), LIMIT, what="no process is left")
        server.thaw()


def test_a_second_signal_ends_a_run_at_once(tree: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits for a frozen server, up to its limit, which is a minute here; the second does not."""
    tree.write("patient/sitecustomize.py", "from alembic_entrypoint import boundary\nboundary.LIMIT = 60.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tree.folder / "patient"))
    with own_server() as server, fresh_database(server) as database:
        with running_until(tree, lambda _: database.query(SLEEPING), database.url) as running:
            server.freeze()
            running.signal(signal.SIGINT)
            wait_until(lambda: not signals_of(running.pid, "ShdPnd"), what="the first signal is taken")
            running.signal(signal.SIGINT)
            assert running.end(20).code == 130
            wait_until(lambda: not left_behind(tree), LIMIT, what="no process is left")
            server.thaw()
        see_that_nothing_is_left(tree, database)


# --- what we say and how we end ------------------------------------------------------------------------------------

#: One step of ours, with a minute before or after it, the first time.
PAUSED = """
import time
from alembic_entrypoint import boundary

given = boundary.{step}


def paused(*arguments):
    boundary.{step} = given
    for each in {order}:
        each(*arguments)


def pause(*_):
    open("reached", "w").close()
    time.sleep(60)


boundary.{step} = paused
"""


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize(
    ("step", "order"),
    [("_catch_signals", "given, pause"), ("_say", "given, pause"), ("_end", "pause, given")],
)
def test_a_signal_between_what_a_run_does_and_its_end_ends_it(
    step: str, order: str, signum: int, tree: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.write("paused/sitecustomize.py", PAUSED.format(step=step, order=order))
    monkeypatch.setenv("PYTHONPATH", str(tree.folder / "paused"))
    monkeypatch.setenv("ALEMBIC_ENTRYPOINT_LOG_LEVEL", "unheard of")
    with running_until(tree, lambda _: (tree.folder / "reached").exists(), "") as running:
        result = ended_by(signum, running)
    assert "Traceback" not in result.stderr


# --- PID 1 ---------------------------------------------------------------------------------------------------------

#: `unshare` stays outside and passes the exit status on; what it starts is PID 1 of a namespace of its own.
AS_PID_1 = ["unshare", "--pid", "--fork", "--mount-proc"]


@pytest.mark.extra
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [waiting_for_the_database, migrating], ids=lambda step: step.__name__)
def test_a_signal_ends_a_run_that_is_pid_1(
    step: Step,
    signum: int,
    tree: Project,
    database: Database,
) -> None:
    with step(tree, database, within=AS_PID_1) as running:
        ended_by(signum, running, processes_of(running.pid)[1])
    see_that_nothing_is_left(tree, database)


@pytest.mark.extra
def test_no_zombie_is_left_to_an_app_that_is_pid_1(tree: Project, database: Database) -> None:
    """Whatever env.py started is ours when its parent is gone, and would be the app's."""
    tree.add("r1", "import subprocess; [subprocess.Popen(['sh', '-c', 'sleep 60 & sleep 60']) for _ in range(5)]")
    # In a second the killed would be dead, and those that nobody reaps would be zombies.
    listing = (
        "import time, pathlib; time.sleep(1); print(*(p.read_text() for p in pathlib.Path('/proc').glob('*/comm')))"
    )
    env = {"DATABASE_URL": database.url}
    with started(tree.folder, "run", sys.executable, "-c", listing, env=env, within=AS_PID_1) as running:
        result = running.end()
    assert result.code == 0, result.stderr
    assert [name for name in result.stdout.split() if name in ("sh", "sleep")] == []
