"""SIGKILL at every phase, to the parent, to the worker and to both, while four others wait."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from witness import (
    PER_MIGRATION,
    SLOW_RECORDING,
    VERSION_TABLE,
    WITNESS,
    closed_gate,
    has_witness,
    in_rounds,
    lines_of,
    measured,
    off,
    prepare,
    recorded,
    rounds,
    violations,
    witnessed,
    workers_of,
)

from alembic_entrypoint.worker.messages import LOCK_A, LOCK_CLASS
from commands import Result, Running, started
from projects import ENV, Project
from servers import Database, Server, fresh_database, processes_of, wait_until

pytestmark = pytest.mark.faults


MakeTree = Callable[[Path], Project]
#: Between two migrations: the next one has done nothing yet but say so.
PAUSE = "import time\nop.execute(f\"SELECT witness({os.getpid()}, 'pause')\")\ntime.sleep(0.15)"


def in_one_transaction(folder: Path) -> Project:
    """Make three migrations that commit together."""
    return witnessed(folder, env=ENV, pause=PAUSE)


def per_migration(folder: Path) -> Project:
    """Make three migrations that commit one by one."""
    return witnessed(folder, env=PER_MIGRATION, pause=PAUSE)


def with_autocommit(folder: Path) -> Project:
    """Make a second migration that commits in its middle."""
    made = witnessed(folder, env=ENV, pause=PAUSE)
    block = f"""
{PAUSE}
with op.get_context().autocommit_block():
    op.execute("CREATE TABLE half ()")
{WITNESS.format("r2", 0.2)}
op.execute("CREATE TABLE t2 ()")
"""
    made.add("r2", block, down="r1", head="import os")
    return made


def with_concurrently(folder: Path) -> Project:
    """Make a second migration that builds an index concurrently."""
    made = witnessed(folder, env=ENV, pause=PAUSE)
    block = f"""
{PAUSE}
op.execute("CREATE TABLE t2 (id int)")
op.execute("INSERT INTO t2 SELECT generate_series(1, 40)")
{WITNESS.format("r2", 0)}
with op.get_context().autocommit_block():
    op.execute(f"CREATE INDEX CONCURRENTLY slow_index ON t2 (slow(id, {{os.getpid()}}))")
"""
    made.add("r2", block, down="r1", head="import os")
    return made


Phase = Callable[[Running, Database], bool]
#: How each phase is recognised, the latest first: what holds of it and of no earlier one.
PHASES: dict[str, Phase] = {
    "launching": lambda run, _: run.has("app.launching"),
    "at commit": lambda run, database: last_label(database) == "commit",
    "recording": lambda run, database: last_label(database) == "recording",
    "building concurrently": lambda run, database: last_label(database) == "concurrently",
    "in a statement": lambda run, database: last_label(database) in ("r2", "r3"),
    "between migrations": lambda run, database: last_label(database) == "pause",
    "in the first migration": lambda run, database: has_witness(database, "r1"),
    "preparing": lambda run, _: run.has("lock.acquired"),
    "locking": lambda run, _: run.has("lock.waiting"),
    "observing": lambda run, _: run.has("server.examined"),
    "waiting": lambda run, _: True,
}
WHO = ("parent", "worker", "both")
#: Of the phases, those that any moment may come upon, but that no round aims at.
IN_PASSING = ("in the first migration", "preparing")
TREES = (in_one_transaction, per_migration, with_autocommit, with_concurrently)


def last_label(database: Database) -> str:
    lines = lines_of(database)
    return lines[-1][2] if lines else ""


def phase_of(run: Running, database: Database) -> str:
    """Tell where a run is."""
    return next(name for name, is_there in PHASES.items() if is_there(run, database))


def aims_of(make_tree: MakeTree, total: int) -> list[str]:
    """Give the phase that each round aims at: each in turn, beginning elsewhere for each tree."""
    names = [name for name in PHASES if name not in IN_PASSING]
    if make_tree is not with_concurrently:
        names.remove("building concurrently")
    first = TREES.index(make_tree) * total
    return [names[n % len(names)] for n in range(first, first + total)]


def kill(run: Running, who: str) -> None:
    """Kill the command, its worker, or both."""
    parent, *workers = processes_of(run.pid)
    for pid in {"parent": [parent], "worker": workers, "both": [parent, *workers]}[who]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def lock_held(database: Database) -> Iterator[None]:
    """Hold what all wait for, so that nobody gets past it within the block."""
    with database.connect() as connection:
        connection.execute(f"SELECT pg_advisory_lock({LOCK_CLASS}, {LOCK_A})")
        yield


def one_round(tree: Project, database: Database, aim: str, who: str) -> tuple[str, list[Result]]:
    """Kill the first of five at a phase; give the phase in which it was, and how the four others ended."""
    database.execute(SLOW_RECORDING)
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_LOCK_WAIT": "60"}
    moment = random.uniform(0.0, 0.05)
    with ExitStack() as stack:
        is_early = aim in ("waiting", "observing", "locking")
        with lock_held(database) if is_early else nullcontext():
            first = stack.enter_context(started(tree.folder, "run", "sleep", "1", env=env, name=f"{database.name}-0"))
            if not is_early:
                wait_until(lambda: first.has("lock.acquired"), 60)
            others = [
                stack.enter_context(started(tree.folder, "run", "true", env=env, name=f"{database.name}-{k}"))
                for k in range(1, 5)
            ]
            wait_until(lambda: PHASES[aim](first, database) or has_ended(first), 60, interval=0.002)
            reached = time.monotonic()
            wait_until(lambda: time.monotonic() - reached > moment, interval=0.005)
            phase = phase_of(first, database)
            kill(first, who)
        results = [other.end(120) for other in others]
        first.end(60)
    return phase, results


def has_ended(run: Running) -> bool:
    return run.process.poll() is not None


def in_phases(
    aims: list[str], round_of: Callable[[Database, str, str], tuple[str, str]], server: Server, **what: object
) -> None:
    """Run a round for each phase that is aimed at, and again for those that no kill has hit; an empty cell fails."""

    def run(aimed: list[str]) -> list[tuple[str, str]]:
        return in_rounds(len(aimed), lambda database, n: round_of(database, aimed[n], WHO[n % 3]), server, at_once=3)

    ends = run(aims)
    for _ in range(3):
        ends += run(sorted(set(aims) - {phase for phase, _ in ends}))
    phases, outcomes = Counter(phase for phase, _ in ends), Counter(end for _, end in ends)
    cells = {name: phases[name] for name in reversed(PHASES) if name in aims or phases[name]}
    numbers = {"postgresql": server.major, "rounds": len(ends), "violations": 0}
    measured("Kill", **what, **numbers, ends=outcomes, histogram=cells)
    assert all(cells.values()), cells


@pytest.mark.parametrize("make_tree", [in_one_transaction, per_migration], ids=lambda each: each.__name__)
def test_after_a_kill_another_brings_a_transactional_tree_to_head(
    tmp_path: Path, watched_server: Server, make_tree: MakeTree
) -> None:
    bring_to_head(make_tree, tmp_path, watched_server, rounds(60))


@pytest.mark.extra
def test_after_a_kill_another_brings_a_tree_to_head_on_postgresql_13(tmp_path: Path, watched13: Server) -> None:
    """There the server does not look after the client of a statement that runs."""
    bring_to_head(per_migration, tmp_path, watched13, rounds(30))


def bring_to_head(make_tree: MakeTree, folder: Path, server: Server, total: int) -> None:
    tree = make_tree(folder)

    def round_of(database: Database, aim: str, who: str) -> tuple[str, str]:
        phase, results = one_round(tree, database, aim, who)
        assert [each.code for each in results] == [0] * 4, (phase, who, [each.stderr for each in results if each.code])
        assert recorded(database) == ["r3"]
        assert violations(database) == []
        return phase, "at head"

    in_phases(aims_of(make_tree, total), round_of, server, tree=make_tree.__name__)


@pytest.mark.parametrize("make_tree", [with_autocommit, with_concurrently], ids=lambda each: each.__name__)
def test_after_a_kill_what_other_trees_left_behind_is_named(
    tmp_path: Path, watched_server: Server, make_tree: MakeTree
) -> None:
    tree = make_tree(tmp_path)

    def round_of(database: Database, aim: str, who: str) -> tuple[str, str]:
        phase, results = one_round(tree, database, aim, who)
        assert violations(database) == []
        is_interrupted = bool(database.query("SELECT FROM pg_index WHERE NOT indisvalid"))
        if phase == "building concurrently" and not is_interrupted:
            phase = "in a statement"  # it had just been built
        codes = {each.code for each in results}
        if codes == {0}:
            assert recorded(database) == ["r3"]
            return phase, "at head"
        assert codes <= {0, 1, 75}, (phase, who, [each.message for each in results])
        told = "\n".join(each.stderr for each in results if each.code == 1)
        # What was committed is not lost, and the failure says what of it is in the way.
        assert "Migration r2" in told, (phase, who, told)
        assert "already exists" in told, (phase, who, told)
        assert recorded(database) == ["r1"]
        if not is_interrupted:
            return phase, "named"
        assert "DROP INDEX CONCURRENTLY public.slow_index;" in told, told
        return phase, "INVALID index named"

    in_phases(aims_of(make_tree, rounds(60)), round_of, watched_server, tree=make_tree.__name__)


def outlive_parent(tree: Project, database: Database, env: dict[str, str]) -> Result:
    """Kill a migrator whose deaf worker is in a statement, and let that go on only when a second one has come so far
    as it can; give how the second one ended."""
    env = {"DATABASE_URL": database.url, **env}
    with (
        closed_gate(database),
        started(tree.folder, "migrate", env=env, name="first") as first,
        ExitStack() as stack,
    ):
        wait_until(lambda: has_witness(database, "gate"), 60)
        second = stack.enter_context(started(tree.folder, "migrate", env=env, name="second"))
        wait_until(lambda: second.has("lock.waiting"), 60)
        kill(first, "parent")
        wait_until(lambda: len(workers_of(database)) > 1 or waits_for_fence(second), 60)
        left = stack.pop_all()
    with left:
        return second.end(60)


def waits_for_fence(run: Running) -> bool:
    """Tell whether a run that has the lock waits for a share of the fence that an earlier migrator's worker holds."""
    return any("migrating" in each.get("holder", "") for each in run.events if each["event"] == "lock.waiting")


def test_a_killed_migrators_worker_is_waited_for(tmp_path: Path, watched: Database) -> None:
    tree = witnessed(tmp_path, 3, env=PER_MIGRATION, gated=True)
    watched.execute(VERSION_TABLE)
    result = outlive_parent(tree, watched, off(tmp_path, "hearing", "patience"))
    assert result.code == 0, result.stderr
    assert recorded(watched) == ["r3"]
    assert len(workers_of(watched)) == 2
    assert violations(watched) == []


def test_without_its_share_a_killed_migrators_statement_is_seen_beside_the_next(
    tmp_path: Path, watched: Database
) -> None:
    tree = witnessed(tmp_path, 3, env=PER_MIGRATION, gated=True)
    watched.execute(VERSION_TABLE)
    outlive_parent(tree, watched, off(tmp_path, "share", "hearing", "patience"))
    assert violations(watched)


@pytest.mark.parametrize("major", [18, pytest.param(13, marks=pytest.mark.extra)])
def test_what_a_killed_migrator_had_sent_ends_with_it_or_is_waited_for(
    tmp_path: Path, request: pytest.FixtureRequest, major: int
) -> None:
    """From 14 on the server looks after the client of a statement that runs; before, the fence waits for its end."""
    seconds = {18: 60.0, 13: 12.0}[major]
    tree = witnessed(tmp_path, 1, seconds=seconds)
    quick = witnessed(tmp_path / "quick", 1, seconds=0)
    server: Server = request.getfixturevalue({18: "watched_server", 13: "watched13"}[major])
    with fresh_database(server) as database:
        prepare(database)
        env = {"DATABASE_URL": database.url}
        with started(tree.folder, "migrate", env=env) as first:
            wait_until(lambda: has_witness(database, "r1"), 60)
            with started(quick.folder, "migrate", env=env) as second:
                wait_until(lambda: second.has("lock.waiting"), 60)
                kill(first, "both")
                killed = time.monotonic()
                result = second.end(50)
                took = time.monotonic() - killed
        assert result.code == 0, result.stderr
        assert violations(database) == []
        assert major == 18 or waits_for_fence(second), "its statement ran on"
    measured("Killed in a statement", postgresql=major, statement=seconds, next_one_done=round(took, 1))
