"""Lock and fence over several sessions of a real server, in every order that hypothesis comes upon."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from alembic_entrypoint import lock
from alembic_entrypoint.address import parse
from alembic_entrypoint.errors import TryAgain
from alembic_entrypoint.worker.connections import FenceError, Steps, fence_steps
from servers import Database, wait_until

SESSION = {"application_name": "a worker"}
PICK = st.integers(0, 99)
#: Whether every order is tried that `make faults` has the time for.
ALL = float(os.environ.get("FAULT_ROUNDS", "0")) >= 1


@dataclass
class Worker:
    """One connection of a holder's worker, and how far it has come."""

    connection: psycopg.Connection[Any]
    token: int
    steps: Steps
    statement: str
    is_admitted: bool = False


class Replicas(RuleBasedStateMachine):
    """Holders that come and die, and workers that connect, step by step, whenever they like."""

    database: Database
    make_steps: Callable[[int, dict[str, str]], Steps] = staticmethod(fence_steps)

    def __init__(self) -> None:
        super().__init__()
        self.holder: lock.Lock | None = None
        self.tokens: list[int] = []
        self.workers: list[Worker] = []
        self.watch = self.database.connect()

    def end(self, connection: psycopg.Connection[Any]) -> None:
        """Close a session, and wait until the server has noticed."""
        pid = connection.info.backend_pid
        connection.close()
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
        wait_until(lambda: self.watch.execute(gone, [pid]).fetchone() == (True,), interval=0.002)

    @rule()
    def try_to_hold(self) -> None:
        connection = self.database.connect()
        held = lock.hold(connection)
        if held is not None:
            try:
                lock._await_fence(held, lock._Waiting(parse(self.database.url), 0.0))
            except TryAgain:
                held = None
        if held is None:
            self.end(connection)
            return
        assert self.holder is None, "two hold the lock"
        self.holder = held
        self.tokens.append(held.token)

    @precondition(lambda self: self.holder is not None)
    @rule()
    def holder_dies(self) -> None:
        assert self.holder is not None
        self.end(self.holder.connection)
        self.holder = None

    @precondition(lambda self: self.tokens and len(self.workers) < 4)
    @rule(pick=PICK)
    def worker_connects(self, pick: int) -> None:
        """Open a connection for any holder that there ever was, and stop before its first statement."""
        token = self.tokens[-1 - pick % min(2, len(self.tokens))]
        steps = self.make_steps(token, SESSION)
        self.workers.append(Worker(self.database.connect(), token, steps, next(steps)))

    @precondition(lambda self: any(not worker.is_admitted for worker in self.workers))
    @rule(pick=PICK)
    def worker_takes_a_step(self, pick: int) -> None:
        waiting = [worker for worker in self.workers if not worker.is_admitted]
        worker = waiting[pick % len(waiting)]
        row = worker.connection.execute(worker.statement).fetchone()
        try:
            worker.statement = worker.steps.send(row)
        except StopIteration:
            worker.is_admitted = True
            assert self.holder is not None or self.tokens[-1] == worker.token, "one of a holder long gone may work"
        except FenceError:
            self.workers.remove(worker)
            self.end(worker.connection)

    @precondition(lambda self: any(worker.is_admitted for worker in self.workers))
    @rule(pick=PICK)
    def worker_drops_its_share(self, pick: int) -> None:
        """As `DISCARD ALL` in a migration does; it begins its next transaction by asking anew."""
        working = [worker for worker in self.workers if worker.is_admitted]
        worker = working[pick % len(working)]
        worker.connection.execute("SELECT pg_advisory_unlock_all()")
        worker.is_admitted = False
        worker.steps = self.make_steps(worker.token, SESSION)
        worker.statement = next(worker.steps)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK)
    def worker_ends(self, pick: int) -> None:
        worker = self.workers.pop(pick % len(self.workers))
        self.end(worker.connection)

    @invariant()
    def those_who_may_work_are_of_one_holder(self) -> None:
        working = {worker.token for worker in self.workers if worker.is_admitted}
        if self.holder is not None:
            working.add(self.holder.token)
        assert len(working) <= 1, "two migrators at once"

    def teardown(self) -> None:
        for worker in self.workers:
            self.end(worker.connection)
        if self.holder is not None:
            self.end(self.holder.connection)
        self.watch.close()


def machine_on(database: Database, steps: Callable[[int, dict[str, str]], Steps]) -> type[Replicas]:
    """Make the machine for one database, whose workers take these steps."""
    return type("Machine", (Replicas,), {"database": database, "make_steps": staticmethod(steps)})


def check_before_share(token: int, session: dict[str, str]) -> Steps:
    """Do the same in the wrong order: check, and only then take a share of the fence."""
    steps = fence_steps(token, session)
    share = next(steps)
    row = yield steps.send((True,))
    if not row[0]:
        raise FenceError("the lock is not held")
    row = yield share
    if not row[0]:
        raise FenceError("another migrator is at work")


def check_alone(token: int, session: dict[str, str]) -> Steps:
    """Only check, and take no share."""
    steps = fence_steps(token, session)
    next(steps)
    row = yield steps.send((True,))
    if not row[0]:
        raise FenceError("the lock is not held")


def share_alone(token: int, session: dict[str, str]) -> Steps:
    """Only take a share: a second lock that is checked once, as it was tried first [R7]."""
    row = yield next(fence_steps(token, session))
    if not row[0]:
        raise FenceError("another migrator is at work")


def in_any_order(database: Database, steps: Callable[[int, dict[str, str]], Steps], examples: int) -> None:
    """Let hypothesis look for an order in which two work at once. Raises AssertionError where it finds one."""
    limits = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine_on(database, steps), settings=limits)


def test_no_two_migrators_ever_work_at_once(database: Database) -> None:
    in_any_order(database, fence_steps, 40)


@pytest.mark.extra
def test_nor_in_any_of_many_more_orders(database: Database) -> None:
    in_any_order(database, fence_steps, 400 if ALL else 160)


@pytest.mark.extra
@pytest.mark.parametrize("steps", [check_before_share, check_alone, share_alone])
def test_what_was_tried_before_is_found_out(database: Database, steps: Callable[[int, dict[str, str]], Steps]) -> None:
    with pytest.raises(AssertionError, match=r"two migrators at once|one of a holder long gone may work"):
        in_any_order(database, steps, 4000)  # it ends with the first that it finds


@pytest.mark.parametrize("steps", [fence_steps, check_before_share])
def test_the_order_of_share_and_check_decides(
    database: Database, steps: Callable[[int, dict[str, str]], Steps]
) -> None:
    """A holder dies between the two steps of its worker, and another one takes the lock."""
    machine = machine_on(database, steps)()
    machine.try_to_hold()
    machine.worker_connects(0)
    machine.worker_takes_a_step(0)
    machine.holder_dies()
    machine.try_to_hold()
    machine.worker_takes_a_step(0)
    try:
        if steps is fence_steps:
            machine.those_who_may_work_are_of_one_holder()
        else:
            with pytest.raises(AssertionError, match="two migrators at once"):
                machine.those_who_may_work_are_of_one_holder()
    finally:
        machine.teardown()


def test_the_lock_is_freed_and_can_be_taken_again(database: Database) -> None:
    for _ in range(2):
        with lock.locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False) as held:
            assert held is not None
            rows = database.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            assert rows == [(2,)]
    assert database.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def test_nothing_is_locked_when_nothing_is_left_to_do(database: Database) -> None:
    with lock.locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: True) as held:
        assert held is None


def test_the_session_of_the_lock_holds_no_snapshot(database: Database) -> None:
    with lock.locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False):
        rows = database.query(
            "SELECT state, backend_xmin, backend_xid FROM pg_stat_activity WHERE application_name LIKE '%% locking'"
        )
    assert rows == [("idle", None, None)]


def test_the_lock_of_one_database_is_not_that_of_another(database: Database) -> None:
    other = Database(database.server, "postgres")
    with (
        lock.locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False) as here,
        lock.locked(parse(other.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False) as there,
    ):
        assert here is not None
        assert there is not None


def test_those_who_wait_try_again_at_moments_of_their_own_and_ever_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    waiting = [lock._Waiting(parse("postgresql:///app"), 600.0) for _ in range(100)]
    for pause in (lock.SHORTEST * 1.5**n for n in range(12)):
        slept.clear()
        for each in waiting:
            each.sleep()
        longest = min(pause, lock.LONGEST)
        assert min(slept) >= longest / 2
        assert max(slept) <= longest
        assert max(slept) - min(slept) > longest / 4, "a hundred do not come at once"
        assert len(set(slept)) > 90


def test_who_waits_sleeps_no_longer_than_it_was_told_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    waiting = lock._Waiting(parse("postgresql:///app"), 0.02)
    waiting.sleep()
    assert slept[0] <= 0.02
    waiting.started -= 0.02
    with pytest.raises(TryAgain, match=r"was not free within the 0\.02 s"):
        waiting.sleep()


def test_an_unlock_that_freed_nothing_is_noticed(database: Database) -> None:
    taken = lock.locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False)
    held = taken.__enter__()
    assert held is not None
    held.connection.execute("SELECT pg_advisory_unlock_all()")
    with pytest.raises(lock.LockLost):
        taken.__exit__(None, None, None)


def test_a_session_that_goes_when_the_work_is_done_loses_nothing(database: Database) -> None:
    with lock.locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False) as held:
        assert held is not None
        pid = held.connection.info.backend_pid
        database.query("SELECT pg_terminate_backend(%s)", pid)
        wait_until(lambda: not database.query("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid))


def test_a_session_that_an_idle_timeout_ended_is_a_lost_lock(database: Database) -> None:
    """Where a service forbids to switch that off: psycopg calls it no OperationalError [E7]."""

    def idle_too_long() -> None:
        with lock.locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False) as held:
            assert held is not None
            held.connection.execute("SET idle_in_transaction_session_timeout = '50ms'")
            held.connection.execute("BEGIN")
            is_there = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '% locking'"
            wait_until(lambda: database.query(is_there) == [(0,)])
            held.connection.execute("SELECT 1")

    with pytest.raises(lock.LockLost, match="idle-in-transaction timeout"):
        idle_too_long()


def test_what_waits_for_the_end_of_a_statement_holds_up_no_other_thread(database: Database) -> None:
    """One of them is the timer of a signal: libpq, left to wait, would keep it from running [R11]."""
    with lock.locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False) as held:
        assert held is not None
        held.connection.pgconn.send_query(b"SELECT pg_sleep(1)")
        waiting, turns = threading.Thread(target=held.worker_backends), 0
        waiting.start()
        while waiting.is_alive():
            turns += 1
            waiting.join(0.01)
        assert turns > 10
        assert held.worker_backends() == []


def test_a_worker_in_another_database_is_not_let_in(database: Database) -> None:
    other = Database(database.server, "postgres")
    with (
        lock.locked(parse(database.url), 0.0, 5.0, "alembic-entrypoint locking", lambda _: False) as held,
        other.connect() as connection,
    ):
        assert held is not None
        steps = fence_steps(held.token, SESSION)
        check = steps.send(connection.execute(next(steps)).fetchone())
        row = connection.execute(check).fetchone()
        with pytest.raises(FenceError):
            steps.send(row)
