"""The server goes away: restarts, terminated sessions, a standby that is promoted, an administrator's timeouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path

import psycopg
import pytest
from witness import (
    HAS_ALL_ROUNDS,
    SETTINGS,
    WITNESS,
    closed_gate,
    has_witness,
    measured,
    off,
    prepare,
    recorded,
    violations,
    witnessed,
)

from alembic_entrypoint.address import parse
from alembic_entrypoint.lock import locked
from alembic_entrypoint.worker.messages import LOCK_A, LOCK_CLASS
from commands import Running, started
from projects import ASYNC_ENV, DRIVERS, ENV, PER_MIGRATION, Project, committing_each, project
from servers import Database, Server, fresh_database, own_server, standby_of, wait_until

pytestmark = pytest.mark.faults

LOCK_SESSION = "alembic-entrypoint locking%"
WORKER_SESSION = "alembic-entrypoint migrating%"
#: What `docs/how-it-locks.md` names: until a closed session is noticed, and until the worker is ended.
NOTICED, ENDED = 0.5, 0.7
#: A moment for the process to end; more where other tests run beside these on a small machine.
LIMIT = NOTICED + ENDED + (0.8 if HAS_ALL_ROUNDS else 3.8)

#: When the migrations of a tree are committed; within: also in the middle of the second.
HOW = ("one by one", "together", "within")


def a_tree(folder: Path, how: str, driver: str, count: int, seconds: float, *, gated: bool = False) -> Project:
    """Make migrations that note what they do; what commits in the middle can run again."""
    env = ASYNC_ENV if driver == "asyncpg" else ENV
    env = committing_each(env) if how == "one by one" else env
    made = witnessed(folder, count, env=env, seconds=seconds, gated=gated)
    if how == "within":
        body = f"""
with op.get_context().autocommit_block():
    op.execute("CREATE TABLE IF NOT EXISTS half ()")
{WITNESS.format("r2", seconds)}
"""
        made.add("r2", body, down="r1", head="import os")
    return made


def terminate(database: Database, name: str) -> None:
    database.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE %s",
        name,
    )


def test_a_terminated_lock_session_cancels_the_worker_and_ends_with_75(tmp_path: Path, watched: Database) -> None:
    tree = a_tree(tmp_path, "within", "psycopg2", 2, 20)
    with started(tree.folder, "run", "echo", "the app", env={"DATABASE_URL": watched.url_on("psycopg2")}) as run:
        wait_until(lambda: has_witness(watched, "r1"), 60)
        terminate(watched, LOCK_SESSION)
        began = time.monotonic()
        result = run.end(20)
        elapsed = time.monotonic() - began
    assert (result.code, result.stdout) == (75, ""), result.stderr
    assert result.named("lock.lost")
    assert elapsed < LIMIT
    assert watched.query("SELECT to_regclass('t1')") == [(None,)]
    measured("Lock session terminated", until_the_end=round(elapsed, 2))


def test_unwatched_a_terminated_lock_session_is_not_noticed(tmp_path: Path, watched: Database) -> None:
    tree = witnessed(tmp_path, 1, gated=True)
    env = {"DATABASE_URL": watched.url, **off(tmp_path, "watching")}
    with closed_gate(watched), started(tree.folder, "migrate", env=env) as run:
        wait_until(lambda: has_witness(watched, "gate"), 60)
        terminate(watched, LOCK_SESSION)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > LIMIT)
        assert run.process.poll() is None


def test_a_lost_lock_after_something_was_committed_ends_with_1(tmp_path: Path, watched: Database) -> None:
    tree = a_tree(tmp_path, "one by one", "asyncpg", 2, 1)
    with started(tree.folder, "migrate", env={"DATABASE_URL": watched.url_on("asyncpg")}) as run:
        wait_until(lambda: has_witness(watched, "r2"), 60)
        terminate(watched, LOCK_SESSION)
        result = run.end(20)
    assert result.code == 1, result.stderr
    assert "are committed: r1" in result.message
    assert recorded(watched) == ["r1"]


def test_a_terminated_worker_session_ends_with_75_and_the_database_as_before(tmp_path: Path, watched: Database) -> None:
    tree = a_tree(tmp_path, "together", "asyncpg", 2, 20)
    with started(tree.folder, "migrate", env={"DATABASE_URL": watched.url_on("asyncpg")}) as run:
        wait_until(lambda: has_witness(watched, "r1"), 60)
        terminate(watched, WORKER_SESSION)
        result = run.end(20)
    assert result.code == 75, result.stderr
    assert "as before" in result.message
    assert watched.query("SELECT to_regclass('t1')") == [(None,)]


Moment = Callable[[Running, Database], bool]
MOMENTS: dict[str, Moment] = {
    "waiting": lambda run, _: run.has("database.waiting"),
    "locking": lambda run, _: run.has("server.examined"),
    "locked": lambda run, _: run.has("lock.acquired"),
    "migrating": lambda run, database: has_witness(database, "r2"),
    "between migrations": lambda run, database: run.has("migration.finished"),
}


#: Every moment with both ways to stop, each on another driver and tree, so that all pairs of these come up.
RESTARTS = [
    pytest.param(moment, mode, DRIVERS[n % 3], HOW[(n + n // 3) % 3], id=f"{moment}-{mode}")
    for n, (moment, mode) in enumerate(product(MOMENTS, ("fast", "immediate")))
]


@pytest.mark.parametrize(("moment", "mode", "driver", "how"), RESTARTS)
def test_a_restart_of_the_server_is_survived_or_ends_cleanly(
    tmp_path: Path, moment: str, mode: str, driver: str, how: str
) -> None:
    tree = a_tree(tmp_path, how, driver, 3, 0.3)
    with own_server(18, SETTINGS) as server:
        database = Database(server, "postgres")
        prepare(database)
        if moment == "waiting":
            server.stop(mode)
        with started(tree.folder, "migrate", env={"DATABASE_URL": database.url_on(driver)}) as run:
            wait_until(lambda: MOMENTS[moment](run, database), 60)
            server.stop(mode)
            server.start()
            result = run.end(60)
        assert result.code in ({0} if moment == "waiting" else {0, 1, 75}), result.stderr
        # What is said of the database is so.
        done = applied(database)
        assert done == ["r3"] or result.code != 0
        assert done == [] or result.code != 75, result.stderr
        assert result.code != 1 or "committed" in result.message or "rolled back" in result.message, result.stderr
        with started(tree.folder, "migrate", env={"DATABASE_URL": database.url_on(driver)}, name="again") as again:
            assert again.end(60).code == 0
        assert recorded(database) == ["r3"]
        assert violations(database) == []


def test_a_restart_while_another_holds_the_lock_ends_that_one_and_who_waits_goes_on(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, "one by one", "psycopg2", 2, 0, gated=True)
    with own_server(18, SETTINGS) as server:
        database = Database(server, "postgres")
        prepare(database)
        env = {"DATABASE_URL": database.url_on("psycopg2")}
        with closed_gate(database), started(tree.folder, "migrate", env=env, name="holder") as holder:
            wait_until(lambda: has_witness(database, "gate"), 60)
            with started(tree.folder, "migrate", env=env, name="waiter") as waiter:
                wait_until(lambda: waiter.has("lock.waiting"), 60)
                server.stop()
                server.start()
                results = [holder.end(60), waiter.end(60)]
        assert [each.code for each in results] == [75, 0], [each.stderr for each in results]
        assert recorded(database) == ["r2"]
        assert violations(database) == []


def applied(database: Database) -> list[str]:
    """Read what is recorded, where there is a version table."""
    return recorded(database) if database.query("SELECT to_regclass('alembic_version')") != [(None,)] else []


@contextmanager
def primary_and_standby() -> Iterator[tuple[Database, Database]]:
    """Start a server and a standby of it that has all that the first one has."""
    with own_server(18, SETTINGS) as server:
        primary = Database(server, "postgres")
        prepare(primary)
        with standby_of(server) as follower:
            standby = Database(follower, "postgres")
            has_followed = "SELECT count(*) FROM pg_proc WHERE proname = 'witness'"
            wait_until(lambda: standby.query(has_followed) == [(1,)], 30)
            yield primary, standby


def take_over(primary: Database, standby: Database) -> None:
    """Let the primary crash, and the standby take its place."""
    assert isinstance(primary.server, Server)
    assert isinstance(standby.server, Server)
    primary.server.stop("immediate")
    standby.server.promote()


def test_a_standby_is_waited_for_until_it_is_promoted(tmp_path: Path) -> None:
    tree = witnessed(tmp_path, 1, seconds=0)
    with primary_and_standby() as (primary, standby):
        with started(tree.folder, "run", "echo", "the app", env={"DATABASE_URL": standby.url}) as run:
            wait_until(lambda: any("standby" in each.get("reason", "") for each in run.events), 30)
            assert not run.has("server.examined")
            take_over(primary, standby)
            result = run.end(60)
        assert (result.code, result.stdout) == (0, "the app\n"), result.stderr
        assert recorded(standby) == ["r1"]


def test_unlooked_at_a_standby_grants_the_lock_beside_its_primary(tmp_path: Path) -> None:
    """Which is why it is looked at: the lock of a standby is not that of its primary [E16]."""
    tree = witnessed(tmp_path, 1, seconds=0)
    with (
        primary_and_standby() as (primary, standby),
        locked(parse(primary.url), 0.0, 30.0, "alembic-entrypoint locking", lambda _: False) as held,
    ):
        assert held is not None
        env = {"DATABASE_URL": standby.url, **off(tmp_path, "standby")}
        with started(tree.folder, "run", "echo", "the app", env=env) as run:
            result = run.end(60)
    assert result.named("lock.acquired"), result.stderr
    assert result.code != 0


def url_of_both(primary: Database, standby: Database, driver: str = "psycopg") -> str:
    both = f"127.0.0.1:{primary.server.port},127.0.0.1:{standby.server.port}"
    return f"postgresql+{driver}://postgres@{both}/postgres"


def test_a_failover_ends_the_migrator_and_the_next_one_goes_on(tmp_path: Path) -> None:
    tree = witnessed(tmp_path, 2, seconds=0, gated=True)
    with primary_and_standby() as (primary, standby):
        env = {"DATABASE_URL": url_of_both(primary, standby)}
        with closed_gate(primary), started(tree.folder, "migrate", env=env) as run:
            wait_until(lambda: has_witness(primary, "gate"), 60)
            take_over(primary, standby)
            result = run.end(60)
        assert result.code == 75, result.stderr
        with started(tree.folder, "migrate", env=env, name="again") as again:
            result = again.end(60)
        assert result.code == 0, result.stderr
        assert recorded(standby) == ["r2"]


@contextmanager
def holding(database: Database) -> Iterator[None]:
    """Keep others waiting for the lock within the block, or until the server goes away."""
    with database.connect() as holder:
        holder.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, LOCK_A])
        yield


def test_who_waits_for_lock_or_head_goes_on_with_the_promoted_standby(tmp_path: Path) -> None:
    """Every host of the URL is asked again, and not only the one that answered first."""
    tree = witnessed(tmp_path, 1, seconds=0)
    with primary_and_standby() as (primary, standby):
        # Without a ledger it looks first, and what is said last is that it waits.
        env = {"DATABASE_URL": url_of_both(primary, standby), "ALEMBIC_ENTRYPOINT_LEDGER": "off"}
        with (
            holding(primary),
            started(tree.folder, "migrate", env=env, name="migrates") as migrates,
            started(tree.folder, "await", "head", env=env, name="awaits") as awaits,
        ):
            wait_until(lambda: migrates.has("lock.waiting") and awaits.has("head.awaited"), 60)
            take_over(primary, standby)
            results = [migrates.end(60), awaits.end(60)]
        assert [each.code for each in results] == [0, 0], [each.stderr for each in results]
        acquired = results[0].named("lock.acquired")[0]["database"]
        assert acquired.startswith(f"postgres at 127.0.0.1:{standby.server.port}")
        assert recorded(standby) == ["r1"]


def test_a_failover_between_migrations_ends_with_1_and_the_next_one_goes_on_from_there(tmp_path: Path) -> None:
    over = tmp_path / "over"
    pause = f"import time\nwhile not os.path.exists({str(over)!r}):\n    time.sleep(0.02)"
    tree = witnessed(tmp_path, 2, seconds=0, env=PER_MIGRATION, pause=pause)
    with primary_and_standby() as (primary, standby):
        env = {"DATABASE_URL": url_of_both(primary, standby, "psycopg2")}
        with started(tree.folder, "migrate", env=env) as run:
            # What the standby has not heard of when its primary ends is lost, whoever committed it.
            wait_until(lambda: run.has("migration.started", revision="r2") and applied(standby) == ["r1"], 60)
            take_over(primary, standby)
            result = run.end(60)
        assert result.code == 1, result.stderr
        assert "committed: r1" in result.message
        over.touch()
        with started(tree.folder, "migrate", env=env, name="again") as again:
            result = again.end(60)
        assert result.code == 0, result.stderr
        assert recorded(standby) == ["r2"]
        assert not has_witness(standby, "r1")


TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
)


#: How an administrator sets a timeout: for a database, a role, or a role in a database.
WAYS = ("DATABASE {0}", "ROLE owner_{0}", "ROLE owner_{0} IN DATABASE {0}")


@pytest.fixture
def owned(watched_server: Server, watched: Database) -> Iterator[Database]:
    """Give a database with an owner of its own."""
    watched_server.execute(f"CREATE ROLE owner_{watched.name} LOGIN")
    watched_server.execute(f"ALTER DATABASE {watched.name} OWNER TO owner_{watched.name}")
    yield watched
    watched_server.execute(f"DROP DATABASE {watched.name} WITH (FORCE)")
    watched_server.execute(f"DROP ROLE owner_{watched.name}")


def impatient(database: Database, way: str, driver: str) -> dict[str, str]:
    """Set every timeout of a second that an administrator can, and say where the owner migrates."""
    for name in TIMEOUTS:
        database.execute(f"ALTER {way.format(database.name)} SET {name} = '1s'")
    url = database.url.replace("//postgres@", f"//owner_{database.name}@")
    return {"DATABASE_URL": url.replace("postgresql://", f"postgresql+{driver}://")}


def wait_in_line(tree: Project, env: dict[str, str]) -> tuple[int, int]:
    """Let one wait while another holds the lock for longer than the timeouts; give how both ended."""
    with started(tree.folder, "migrate", env=env, name="first") as first:
        wait_until(lambda: first.has("lock.acquired"), 60)
        with started(tree.folder, "migrate", env=env, name="second") as second:
            return first.end(60).code, second.end(60).code


# Python sleeps while the lock's session is idle, and the migrating one in its transaction.
IDLE = "import time\ntime.sleep(3)\nop.execute('SELECT pg_sleep(2)')\nop.execute('CREATE TABLE t1 ()')"


@pytest.mark.parametrize(("way", "driver"), list(zip(WAYS, DRIVERS, strict=True)))
def test_an_administrators_timeouts_end_neither_lock_nor_wait(
    tmp_path: Path, owned: Database, way: str, driver: str
) -> None:
    tree = witnessed(tmp_path, 0, env=ASYNC_ENV if driver == "asyncpg" else ENV)
    tree.add("r1", IDLE)
    assert wait_in_line(tree, impatient(owned, way, driver)) == (0, 0)
    assert recorded(owned) == ["r1"]


def test_without_our_own_timeouts_the_administrators_end_the_lock(tmp_path: Path, owned: Database) -> None:
    tree = witnessed(tmp_path, 0)
    tree.add("r1", IDLE)
    env = {**impatient(owned, WAYS[0], "psycopg"), **off(tmp_path, "timeouts")}
    assert wait_in_line(tree, env) != (0, 0)


#: env.py as it is, but that it connects only when the test lets it.
HELD_BACK = """
import os, time
open("here", "w").close()
while not os.path.exists("go"):
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """Give a server with room for a few sessions."""
    settings = {"max_connections": "6", "max_wal_senders": "0", "superuser_reserved_connections": "0"}
    with own_server(18, settings) as server:
        yield server


def code_without_a_slot(folder: Path, server: Server, driver: str, **extra: str) -> int:
    """Fill the server before the worker connects, and make room when it has tried often; give how it ended."""
    tree = project(folder, env=HELD_BACK + (ASYNC_ENV if driver == "asyncpg" else ENV))
    tree.add_line(1)
    with (
        fresh_database(server) as database,
        ExitStack() as others,
        started(folder, "migrate", env={"DATABASE_URL": database.url_on(driver), **extra}) as run,
    ):
        wait_until(lambda: (folder / "here").exists(), 60)
        with suppress(psycopg.OperationalError):
            while True:
                others.enter_context(server.connect())
        enough = server.log.count("too many clients") + 5
        (folder / "go").touch()
        wait_until(lambda: server.log.count("too many clients") > enough or run.process.poll() is not None, 60)
        others.close()
        return run.end(60).code


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_worker_that_finds_no_free_session_waits_for_one(tmp_path: Path, small: Server, driver: str) -> None:
    assert code_without_a_slot(tmp_path, small, driver) == 0


def test_a_worker_that_does_not_wait_for_a_session_fails(tmp_path: Path, small: Server) -> None:
    assert code_without_a_slot(tmp_path, small, "psycopg", **off(tmp_path, "connecting again")) != 0
