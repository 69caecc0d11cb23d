"""PgBouncer in front: session pooling works; where sessions are shared it refuses before it locks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from witness import has_witness, measured, recorded, rounds, violations, witnessed

from alembic_entrypoint import lock
from alembic_entrypoint.address import parse
from alembic_entrypoint.errors import Ended
from commands import started
from projects import ENV, project
from servers import Database, Pooler, Server, pgbouncer, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.extra]

# Half of all services read DATABASE_URL in env.py, whatever the ini says.
OWN_URL_ENV = ENV.replace('config.get_main_option("sqlalchemy.url")', 'os.environ["DATABASE_URL"]')
SHARED = ("transaction", "statement")


def pooled(database: Database, pooler: Pooler) -> str:
    return pooler.url_for(database.name).replace("postgresql://", "postgresql+psycopg://")


def advisory_locks(database: Database) -> int:
    rows = database.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    return int(rows[0][0])


def test_through_session_pooling_one_of_four_migrates(tmp_path: Path, watched: Database) -> None:
    tree = witnessed(tmp_path, 2, env=OWN_URL_ENV)
    server = watched.server
    assert isinstance(server, Server)
    with pgbouncer(server, "session", default_pool_size=40) as pooler:
        env = {"DATABASE_URL": pooled(watched, pooler)}
        with (
            started(tree.folder, "run", "true", env=env, name="1") as first,
            started(tree.folder, "run", "true", env=env, name="2") as second,
            started(tree.folder, "run", "true", env=env, name="3") as third,
        ):
            assert [run.end(90).code for run in (first, second, third)] == [0, 0, 0]
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
def load(url: str, clients: int = 6) -> Iterator[None]:
    """Keep the pooler's sessions changing hands."""
    over = threading.Event()

    def client() -> None:
        with suppress(psycopg.Error), psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            while not over.is_set():
                connection.execute("SELECT pg_sleep(0.002)")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def granted_at_once(url: str) -> int:
    """Let two ask for the lock at once; give the most that held it at the same time."""
    held: list[int] = []
    most: list[int] = [0]
    ready = threading.Barrier(2)

    def ask() -> None:
        ready.wait()
        with suppress(Ended), lock.locked(parse(url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False):
            held.append(1)
            most[0] = max(most[0], len(held))
            over = time.monotonic() + 0.02
            wait_until(lambda: time.monotonic() > over, 1)
            held.pop()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most[0]


def test_the_check_alone_never_lets_two_through(watched: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    server = watched.server
    assert isinstance(server, Server)
    monkeypatch.setattr(lock, "_refuse_shared", lambda *_: None)  # the probe only words the refusal [R8]
    with pgbouncer(server, "transaction", default_pool_size=4) as pooler:
        url = pooler.url_for(watched.name)
        with load(url):
            granted = [granted_at_once(url) for _ in range(rounds(200, 20))]
        left = advisory_locks(watched)
    alone = sum(bool(each) for each in granted)
    measured("Transaction pooling", rounds=len(granted), granted=alone, both=granted.count(2))
    assert granted.count(2) == 0
    assert left == 0, "what was taken is given back, also in vain"


def test_without_the_check_both_are_let_through(watched: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    server = watched.server
    assert isinstance(server, Server)
    monkeypatch.setattr(lock, "_refuse_shared", lambda *_: None)
    monkeypatch.setattr(lock, "HOLDER_CHECK", "SELECT true FROM pg_catalog.pg_backend_pid() AS l(pid) WHERE true")
    with pgbouncer(server, "transaction", default_pool_size=1) as pooler:
        url = pooler.url_for(watched.name)
        assert 2 in [granted_at_once(url) for _ in range(40)]
