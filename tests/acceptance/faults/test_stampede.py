"""A hundred replicas at once on an empty database that has room for twenty-five sessions."""

from __future__ import annotations

import resource
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest
from witness import (
    SETTINGS,
    VERSION_TABLE,
    closed_gate,
    measured,
    off,
    prepare,
    recorded,
    rounds,
    violations,
    witnessed,
    workers_of,
)

from commands import Result, started
from projects import Project
from servers import Database, fresh_database, own_server, wait_until

pytestmark = pytest.mark.faults

REPLICAS = 100
SLOTS = 25


class Peak:
    """The most sessions of ours at one time, counted from outside over one session that was there before."""

    def __init__(self, database: Database) -> None:
        self._connection = database.connect(application_name="the test's own")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count)
        self.sessions = 0

    def _count(self) -> None:
        while not self._over.wait(0.02):
            row = self._connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            ).fetchone()
            self.sessions = max(self.sessions, row[0] if row else 0)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with suppress(psycopg.Error):
            self._connection.close()


def stampede(tree: Project, database: Database, replicas: int, env: dict[str, str]) -> tuple[list[Result], float, int]:
    """Start them all at once; give how each ended, the seconds until the last was ready, and the peak of sessions."""
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "300", **env}
    began = time.monotonic()
    with Peak(database) as peak, ExitStack() as stack:
        runs = [
            stack.enter_context(started(tree.folder, "run", "true", env=env, name=f"replica-{n}"))
            for n in range(replicas)
        ]
        results = [run.end(400) for run in runs]
    return results, time.monotonic() - began, peak.sessions


def test_one_of_a_hundred_upgrades_and_all_start(tmp_path: Path) -> None:
    tree = witnessed(tmp_path, 3)
    with own_server(18, {**SETTINGS, "max_connections": str(SLOTS)}) as server:
        for _ in range(rounds(10)):
            with fresh_database(server) as database:
                prepare(database)
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                results, elapsed, peak = stampede(tree, database, REPLICAS, {})
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                assert_one_upgraded_and_all_started(results, database)
                assert peak, "they were counted"
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                locks = sum(bool(each.named("lock.acquired")) for each in results)
                numbers = {"elapsed": round(elapsed, 1), "cpu": round(cpu, 1), "peak_sessions": peak, "locks": locks}
                measured("Stampede", replicas=REPLICAS, **numbers)


def assert_one_upgraded_and_all_started(results: list[Result], database: Database) -> None:
    assert {each.code for each in results} == {0}, next(each.stderr for each in results if each.code)
    assert sum(bool(each.named("schema.upgraded")) for each in results) == 1
    assert recorded(database) == ["r3"]
    assert violations(database) == []


def test_where_others_leave_two_slots_all_wait_for_one_and_start(tmp_path: Path) -> None:
    """The one that migrates needs both: one for the lock, one for its worker."""
    tree, replicas = witnessed(tmp_path, 3, seconds=0), 12
    with (
        own_server(18, {**SETTINGS, "max_connections": str(SLOTS)}) as server,
        fresh_database(server) as database,
        ExitStack() as stack,
    ):
        prepare(database)
        for _ in range(SLOTS - 1 - 2):  # one is the test's own, which counts
            stack.enter_context(server.connect())
        results, elapsed, peak = stampede(tree, database, replicas, {})
        assert_one_upgraded_and_all_started(results, database)
        refused = sum("too many clients" in each.stderr for each in results)
        numbers = {"elapsed": round(elapsed, 1), "peak_sessions": peak, "waited_for_a_slot": refused}
        measured("Stampede, two slots", replicas=replicas, **numbers)
        assert 0 < peak <= 2
        assert refused


def test_without_the_lock_several_migrate_at_once(tmp_path: Path, watched: Database) -> None:
    tree = witnessed(tmp_path, 3, gated=True)
    watched.execute(VERSION_TABLE)
    env = {"DATABASE_URL": watched.url, **off(tmp_path, "lock", "check")}
    with ExitStack() as stack:
        with closed_gate(watched):
            for n in range(4):
                stack.enter_context(started(tree.folder, "migrate", env=env, name=f"replica-{n}"))
            wait_until(lambda: len(workers_of(watched)) > 1, 60)
        wait_until(lambda: violations(watched), 60)
