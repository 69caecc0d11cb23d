"""PgBouncer in front: session pooling works; where sessions are shared it refuses before it locks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import psycopg
import pytest
from witness import HAS_ALL_ROUNDS, has_witness, measured, off, recorded, rounds, until_seen, violations, witnessed

from commands import environment, started
from projects import ENV, project
from servers import Database, Pooler, Server, pgbouncer, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.extra]

# Half of all services read DATABASE_URL in env.py, whatever the ini says.
OWN_URL_ENV = ENV.replace('config.get_main_option("sqlalchemy.url")', 'os.environ["DATABASE_URL"]')
SHARED = ("transaction", "statement")


def pooled(database: Database, pooler: Pooler) -> str:
    return pooler.url_for(database.name).replace("postgresql://", "postgresql+psycopg://")


def advisory_locks(database: Database) -> int:
    rows = database.query(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return int(rows[0][0])


def test_through_session_pooling_one_of_four_migrates(tmp_path: Path, watched: Database) -> None:
    tree = witnessed(tmp_path, 2, env=OWN_URL_ENV)
    server = watched.server
    assert isinstance(server, Server)
    with pgbouncer(server, "session", default_pool_size=40) as pooler:
        env = {"DATABASE_URL": pooled(watched, pooler)}
        with ExitStack() as stack:
            runs = [stack.enter_context(started(tree.folder, "run", "true", env=env, name=str(n))) for n in range(4)]
            results = [run.end(90) for run in runs]
        assert [each.code for each in results] == [0] * 4
        assert sum(bool(each.named("schema.upgraded")) for each in results) == 1
    assert recorded(watched) == ["r2"]
    assert violations(watched) == []
    wait_until(lambda: advisory_locks(watched) == 0, 5)


@pytest.mark.parametrize("mode", SHARED)
def test_shared_sessions_are_refused_before_anything_is_locked(tmp_path: Path, watched: Database, mode: str) -> None:
    tree = witnessed(tmp_path, 1, env=OWN_URL_ENV)
    server = watched.server
    assert isinstance(server, Server)
    with pgbouncer(server, mode) as pooler:
        env = {"DATABASE_URL": pooled(watched, pooler)}
        with started(tree.folder, "run", "echo", "the app", env=env) as run:
            result = run.end(60)
        assert (result.code, result.stdout) == (78, ""), result.stderr
        assert "Set ALEMBIC_ENTRYPOINT_DATABASE_URL to the database itself" in result.message
        assert not result.named("lock.acquired")
        assert advisory_locks(watched) == 0, "the pooler's sessions are still open, and hold nothing"
        direct = {**env, "ALEMBIC_ENTRYPOINT_DATABASE_URL": watched.url}
        with started(tree.folder, "run", "echo", "the app", env=direct, name="direct") as run:
            result = run.end(60)
    assert (result.code, result.stdout) == (0, "the app\n"), result.stderr
    assert has_witness(watched, "r1")
    assert recorded(watched) == ["r1"]


def test_a_current_database_is_started_on_through_a_transaction_pooler(tmp_path: Path, watched: Database) -> None:
    tree = project(tmp_path, env=OWN_URL_ENV)
    tree.add_line(1)
    server = watched.server
    assert isinstance(server, Server)
    with started(tree.folder, "migrate", env={"DATABASE_URL": watched.url}) as run:
        assert run.end(60).code == 0
    with pgbouncer(server, "transaction") as pooler:
        env = {"DATABASE_URL": pooled(watched, pooler)}
        with started(tree.folder, "run", "echo", "the app", env=env, name="pooled") as run:
            assert run.end(60).stdout == "the app\n"


@contextmanager
def load(url: str, clients: int = 4) -> Iterator[None]:
    """Keep the pooler's sessions changing hands."""
    over, ready = threading.Event(), threading.Barrier(clients + 1, timeout=30)

    def client() -> None:
        with suppress(psycopg.Error), psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            connection.execute("SELECT 1")
            ready.wait()
            while not over.is_set():
                connection.execute("SELECT pg_sleep(0.002)")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


# What a replica does at the lock, in a process of its own, once for each URL that it is given; it says from when to
# when it held it.
ASKING = """
import json, sys, time
from contextlib import suppress
from alembic_entrypoint import lock
from alembic_entrypoint.address import parse
from alembic_entrypoint.errors import Ended
for url in sys.stdin:
    held = []
    with suppress(Ended), lock.locked(parse(url.strip()), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False):
        held.append(time.monotonic())
        time.sleep(0.02)
        held.append(time.monotonic())
    print(json.dumps(held), flush=True)
"""


@contextmanager
def two_replicas(env: dict[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start two processes that ask for the lock when they are given a URL."""
    command = [sys.executable, "-c", ASKING]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:
        runs = [
            stack.enter_context(subprocess.Popen(command, env=environment(env), text=True, **pipes)) for _ in range(2)
        ]
        stack.callback(lambda: [run.kill() for run in runs])
        yield runs


@dataclass(frozen=True)
class Round:
    """How many of two were granted the lock, whether at the same time, and how many locks the pooler still has."""

    granted: int
    is_both: bool
    left: int


def one_round(replicas: list[subprocess.Popen[str]], database: Database, size: int) -> Round:
    """Let two ask at once, through a pool of so many sessions that others use, too."""
    server = database.server
    assert isinstance(server, Server)
    # A pooler of its own: what an earlier round left there would answer for this one.
    with pgbouncer(server, "transaction", default_pool_size=size) as pooler, load(pooler.url_for(database.name)):
        for replica in replicas:
            assert replica.stdin is not None
            replica.stdin.write(pooler.url_for(database.name) + "\n")
            replica.stdin.flush()
        held = [json.loads(replica.stdout.readline()) for replica in replicas if replica.stdout is not None]
        left = advisory_locks(database)
    granted = [each for each in held if each]
    is_both = len(granted) == 2 and max(began for began, _ in granted) < min(ended for _, ended in granted)
    return Round(len(granted), is_both, left)


def test_of_two_that_ask_through_shared_sessions_the_check_alone_never_lets_both_through(
    tmp_path: Path, watched: Database
) -> None:
    with two_replicas(off(tmp_path, "probe")) as replicas:
        seen = [one_round(replicas, watched, 1 + n % 4) for n in range(rounds(200))]
    granted = Counter(each.granted for each in seen)
    left = sum(each.left for each in seen)
    measured("Transaction pooling", rounds=len(seen), granted=granted, both=0, locks_left=left)
    assert not any(each.is_both for each in seen)
    assert left == 0, "what was taken is given back"
    assert granted[1] or not HAS_ALL_ROUNDS, "nobody got so far that the other one could have followed"


def test_without_the_check_both_are_let_through(tmp_path: Path, watched_server: Server) -> None:
    sizes = cycle((1, 2, 3, 4))
    with two_replicas(off(tmp_path, "probe", "check")) as replicas:
        took = until_seen(lambda database: one_round(replicas, database, next(sizes)).is_both, watched_server, 60)
    measured("Transaction pooling, no check", seen_in_round=took)
