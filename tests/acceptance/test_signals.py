"""SIGTERM and SIGINT end a run at every step before the exec: soon, rolled back, and with nothing left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from alembic_entrypoint.worker.messages import LOCK_A, LOCK_CLASS
from commands import Result, Running, started
from projects import ASYNC_ENV, ENV, Project, project
from servers import Database, Server, fresh_database, own_server, processes_of, processes_with, signals_of, wait_until

#: Two seconds are promised, and demanded of the faults, which have the machine for themselves; this one may be busy.
LIMIT = 3.0
#: Processes that its process group does not hold: a child, and one that has lost its parent.
ESCAPES = """
import os, subprocess
subprocess.Popen(["sleep", "60"], start_new_session=True)
os.system("setsid sleep 60 &")
"""
SLEEP = "op.execute('CREATE TABLE half (id int)'); op.execute('SELECT pg_sleep(60)')"
SLEEPING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
REPLAYING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname ~ '_scratch_'"
CREATING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE DATABASE %'"
SCRATCH = "SELECT datname FROM pg_database WHERE datname ~ '_scratch_'"
NEVER_ENDS = f"{ESCAPES}\nimport time\nopen('reached', 'w').close()\ntime.sleep(60)\n"


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add("r1", f"{ESCAPES}\n{SLEEP}")
    return made


@pytest.fixture(scope="module")
def freezing() -> Iterator[Server]:
    """Give a server that may be frozen: no other test is at it."""
    with own_server() as server:
        yield server


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@contextmanager
def running_until(
    tree: Project,
    is_reached: Callable[[Running], object],
    url: str,
    within: Sequence[str] = (),
    command: Sequence[str] = ("run",),
    **variables: str,
) -> Iterator[Running]:
    """Start a run and let it get to a step. Whatever it starts carries the folder's name in its environment."""
    env = {"MARK": str(tree.folder), **variables} | ({"DATABASE_URL": url} if url else {})
    with started(tree.folder, *command, "echo", "the app", env=env, within=within) as running:
        wait_until(lambda: is_reached(running) or running.process.poll() is not None, 60, what="the step")
        assert running.process.poll() is None, running.log.read_text()
        yield running


def ended_by(signum: int, running: Running) -> Result:
    """Send a signal and see that it ends the run in time."""
    began = time.monotonic()
    os.kill(command_of(running), signum)
    result = running.end(20)
    elapsed = time.monotonic() - began
    assert (result.code, result.stdout) == (128 + signum, ""), result.stderr
    assert elapsed < LIMIT
    return result


def command_of(running: Running) -> int:
    """Name the process of the command: `unshare` stays outside, and passes the exit status on."""
    is_outside = isinstance(running.process.args, list) and running.process.args[0] == AS_PID_1[0]
    return processes_of(running.pid)[1] if is_outside else running.pid


def left_behind(tree: Project) -> list[str]:
    """List the processes that a run of this project started."""
    return processes_with(f"MARK={tree.folder}")


def see_that_nothing_is_left(tree: Project, database: Database, limit: float = LIMIT) -> None:
    wait_until(lambda: not left_behind(tree), LIMIT, what="no process is left")
    sessions = "SELECT application_name, query FROM pg_stat_activity WHERE datname = %s"
    wait_until(lambda: not database.server.query(sessions, database.name), limit, what="no session is left")
    wait_until(lambda: not database.server.query(SCRATCH), limit, what="no scratch database is left")
    assert database.query("SELECT to_regclass('half')::text, to_regclass('alembic_version')::text") == [(None, None)]


# --- the steps -----------------------------------------------------------------------------------------------------

Within = Sequence[str]


def waiting_for_the_database(
    tree: Project, database: Database, within: Within, command: Sequence[str] = ("run",)
) -> AbstractContextManager[Running]:
    nowhere = database.server.url_for("nowhere")
    return running_until(tree, lambda running: running.has("database.waiting"), nowhere, within, command)


def asking_env_py(tree: Project, database: Database, within: Within) -> AbstractContextManager[Running]:
    tree.write("migrations/env.py", NEVER_ENDS)
    return running_until(tree, lambda _: (tree.folder / "reached").exists(), "", within)


def looking_through_env_py(tree: Project, database: Database, within: Within) -> AbstractContextManager[Running]:
    tree.write("migrations/env.py", NEVER_ENDS)
    return running_until(tree, lambda _: (tree.folder / "reached").exists(), database.url, within)


@contextmanager
def waiting_for_the_lock(tree: Project, database: Database, within: Within) -> Iterator[Running]:
    with database.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, LOCK_A])
        with running_until(tree, lambda running: running.has("lock.waiting"), database.url, within) as running:
            yield running


def migrating(tree: Project, database: Database, within: Within) -> AbstractContextManager[Running]:
    return running_until(tree, lambda _: database.query(SLEEPING), database.url, within)


@contextmanager
def at_a_busy_table(
    tree: Project, database: Database, within: Within, event: str = "migration.blocked", limit: str = "0"
) -> Iterator[Running]:
    database.execute("CREATE TABLE busy (id int)")
    tree.add("r1", "op.execute('CREATE TABLE half (id int)'); op.execute('DROP TABLE busy')")
    env = {"ALEMBIC_ENTRYPOINT_IGNORE": "public.busy", "ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": limit}
    with database.connect(autocommit=False) as other:
        other.execute("LOCK TABLE busy")
        with running_until(tree, lambda running: running.has(event), database.url, within, **env) as running:
            yield running


def pausing_between_two_tries(tree: Project, database: Database, within: Within) -> AbstractContextManager[Running]:
    return at_a_busy_table(tree, database, within, "migration.retried", "0.05")


@contextmanager
def making_scratch(tree: Project, database: Database, within: Within) -> Iterator[Running]:
    database.execute("CREATE TABLE something ()")
    with database.connect(autocommit=False) as other:
        other.execute("LOCK TABLE pg_catalog.pg_database IN SHARE MODE")
        with running_until(tree, lambda _: database.query(CREATING), database.url, within) as running:
            yield running
        wait_until(lambda: not database.query(CREATING), what="the server sees that its client is gone")


def replaying(tree: Project, database: Database, within: Within) -> AbstractContextManager[Running]:
    database.execute("CREATE TABLE something ()")
    tree.add("r1", SLEEP)  # a replay may start nothing
    return running_until(tree, lambda _: database.server.query(REPLAYING), database.url, within)


def awaiting_the_database(tree: Project, database: Database, within: Within) -> AbstractContextManager[Running]:
    return waiting_for_the_database(tree, database, within, ("await", "connection", "--"))


def awaiting_head(tree: Project, database: Database, within: Within) -> AbstractContextManager[Running]:
    command = ("await", "head", "--")
    return running_until(tree, lambda running: running.has("head.awaited"), database.url, within, command)


Step = Callable[[Project, Database, Within], AbstractContextManager[Running]]
STEPS: list[Step] = [
    waiting_for_the_database,
    asking_env_py,
    looking_through_env_py,
    waiting_for_the_lock,
    migrating,
    at_a_busy_table,
    replaying,
]
RARE: list[Step] = [making_scratch, pausing_between_two_tries, awaiting_the_database, awaiting_head]


def named(steps: list[Step], *marks: pytest.MarkDecorator) -> list[Any]:
    return [pytest.param(step, marks=marks, id=step.__name__) for step in steps]


SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.wide)]
#: What it starts is PID 1 of a namespace of its own.
AS_PID_1 = ["unshare", "--pid", "--fork", "--mount-proc"]
PLACES = [pytest.param([], id="a child"), pytest.param(AS_PID_1, id="PID 1", marks=pytest.mark.extra)]


@pytest.mark.parametrize("within", PLACES)
@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("step", named(STEPS) + named(RARE, pytest.mark.wide))
def test_a_signal_ends_a_run_at_every_step(
    step: Step, signum: int, within: Within, tree: Project, database: Database
) -> None:
    with step(tree, database, within) as running:
        ended_by(signum, running)
    see_that_nothing_is_left(tree, database)


# --- what a migration may be at ------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", PLACES)
@pytest.mark.parametrize(("driver", "env"), [("psycopg2", ENV), ("asyncpg", ASYNC_ENV), ("psycopg", ASYNC_ENV)])
def test_a_migration_is_rolled_back_on_every_driver(
    driver: str, env: str, within: Within, tree: Project, database: Database
) -> None:
    tree.write("migrations/env.py", env)
    url = database.url_on(driver)
    with running_until(tree, lambda _: database.query(SLEEPING), url, within) as running:
        ended_by(signal.SIGTERM, running)
    see_that_nothing_is_left(tree, database)


@pytest.mark.extra
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_migration_is_rolled_back_on_a_server_that_does_not_look_after_its_clients(
    driver: str, tree: Project, pg13: Server
) -> None:
    """Before 14 there is no client_connection_check_interval: what is not cancelled runs to its end."""
    with fresh_database(pg13) as database:
        url = database.url_on(driver)
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
        subprocess.Popen(["sleep", "60"], start_new_session=True)
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


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize(
    ("step", "within"),
    [
        (migrating, []),
        pytest.param(migrating, AS_PID_1, marks=pytest.mark.extra),
        pytest.param(replaying, [], marks=pytest.mark.wide),
    ],
    ids=["migrating", "migrating as PID 1", "replaying"],
)
def test_a_signal_ends_a_run_when_the_server_does_not_answer(
    step: Step, within: Within, signum: int, tree: Project, freezing: Server
) -> None:
    with fresh_database(freezing) as database:
        with step(tree, database, within) as running, frozen(freezing):
            ended_by(signum, running)
            wait_until(lambda: not left_behind(tree), LIMIT, what="no process is left")
        see_that_nothing_is_left(tree, database, limit=12)


def test_a_signal_ends_a_run_that_waits_for_a_server_that_does_not_answer(tree: Project, freezing: Server) -> None:
    with fresh_database(freezing) as database, frozen(freezing):
        url = f"{database.url}?connect_timeout=2"
        with running_until(tree, lambda running: running.has("database.waiting"), url) as running:
            ended_by(signal.SIGTERM, running)
            wait_until(lambda: not left_behind(tree), LIMIT, what="no process is left")


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_ends_a_run_at_once(
    first: int, tree: Project, freezing: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first waits for a frozen server, up to its limit, which is a minute here; the second, the other, does not."""
    tree.write("patient/sitecustomize.py", "from alembic_entrypoint import boundary\nboundary.LIMIT = 60.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tree.folder / "patient"))
    second = {signal.SIGTERM: signal.SIGINT, signal.SIGINT: signal.SIGTERM}[signal.Signals(first)]
    with fresh_database(freezing) as database:
        with migrating(tree, database, []) as running, frozen(freezing):
            running.signal(first)
            wait_until(lambda: not signals_of(running.pid, "ShdPnd"), what="the first signal is taken")
            began = time.monotonic()
            running.signal(second)
            assert running.end(20).code == 128 + first
            assert time.monotonic() - began < 1.0
            wait_until(lambda: not left_behind(tree), LIMIT, what="no process is left")
        see_that_nothing_is_left(tree, database, limit=12)


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


@pytest.mark.extra
def test_nobody_but_who_came_with_us_is_left_to_an_app_that_is_pid_1(tree: Project, database: Database) -> None:
    """Whatever env.py started is ours when its parent is gone, and would be the app's."""
    tree.add("r1", f"{ESCAPES}[subprocess.Popen(['sh', '-c', 'sleep 60 & sleep 60']) for _ in range(5)]")
    # In a second the killed would be dead, and those that nobody reaps would be zombies.
    listing = (
        "import time, pathlib; time.sleep(1); print(*(p.read_text() for p in pathlib.Path('/proc').glob('*/comm')))"
    )
    leaving_a_child = ["sh", "-c", 'tail -f /dev/null & exec "$0" "$@"']
    within = [*AS_PID_1, *leaving_a_child]
    env = {"DATABASE_URL": database.url}
    with started(tree.folder, "run", sys.executable, "-c", listing, env=env, within=within) as running:
        result = running.end()
    assert result.code == 0, result.stderr
    assert [name for name in result.stdout.split() if name in ("sh", "sleep", "tail")] == ["tail"]
