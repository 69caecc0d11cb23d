"""SIGKILL at every phase, to the parent, to the worker and to both, while four others wait."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
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
    measured,
    off,
    recorded,
    rounds,
    violations,
    witnessed,
    workers_of,
)

from commands import Result, Running, started
from projects import ENV, Project
from servers import Database, Server, processes_of, wait_until

pytestmark = pytest.mark.faults


def in_one_transaction(folder: Path) -> Project:
    """Make three migrations that commit together."""
    return witnessed(folder, env=ENV)


def per_migration(folder: Path) -> Project:
    """Make three migrations that commit one by one."""
    return witnessed(folder, env=PER_MIGRATION)


def with_autocommit(folder: Path) -> Project:
    """Make a second migration that commits in its middle."""
    made = witnessed(folder, env=ENV)
    block = f"""
with op.get_context().autocommit_block():
    op.execute("CREATE TABLE half ()")
{WITNESS.format("r2", 0.2)}
op.execute("CREATE TABLE t2 ()")
"""
    made.add("r2", block, down="r1", head="import os")
    return made


def with_concurrently(folder: Path) -> Project:
    """Make a second migration that builds an index concurrently."""
    made = witnessed(folder, env=ENV)
    block = f"""
op.execute("CREATE TABLE t2 (id int)")
op.execute("INSERT INTO t2 SELECT generate_series(1, 15)")
{WITNESS.format("r2", 0)}
with op.get_context().autocommit_block():
    op.execute(f"CREATE INDEX CONCURRENTLY slow_index ON t2 (slow(id, {{os.getpid()}}))")
"""
    made.add("r2", block, down="r1", head="import os")
    return made


Phase = Callable[[Running, Database], bool]
PHASES: dict[str, Phase] = {
    "waiting": lambda run, _: run.process.poll() is None,
    "observing": lambda run, _: run.has("server.examined"),
    "locking": lambda run, _: run.has("schema.observed"),
    "in a statement": lambda run, database: has_witness(database, "r2"),
    "between migrations": lambda run, _: run.has("migration.finished"),
    "at commit": lambda run, database: has_witness(database, "commit"),
    "recording": lambda run, database: has_witness(database, "recording"),
    "launching": lambda run, _: run.has("app.launching"),
}
WHO = ("parent", "worker", "both")


def kill(run: Running, who: str) -> None:
    """Kill the command, its worker, or both."""
    parent, *workers = processes_of(run.pid)
    for pid in {"parent": [parent], "worker": workers, "both": [parent, *workers]}[who]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def one_round(tree: Project, database: Database, n: int, env: dict[str, str]) -> tuple[str, str, list[Result]]:
    """Kill the first of five at a phase; give the phase, who was killed, and how the four others ended."""
    phase, who = list(PHASES)[n % len(PHASES)], WHO[n // len(PHASES) % 3 if n >= len(PHASES) else n % 3]
    database.execute(SLOW_RECORDING)
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_LOCK_WAIT": "60", **env}
    with ExitStack() as stack:
        first = stack.enter_context(started(tree.folder, "run", "true", env=env, name=f"{database.name}-0"))
        if phase not in ("waiting", "observing", "locking"):
            wait_until(lambda: first.has("lock.acquired") or first.process.poll() is not None, 60)
        others = [
            stack.enter_context(started(tree.folder, "run", "true", env=env, name=f"{database.name}-{k}"))
            for k in range(1, 5)
        ]
        wait_until(lambda: PHASES[phase](first, database) or first.process.poll() is not None, 60, interval=0.005)
        moment = random.uniform(0.0, 0.1)
        with suppress(pytest.fail.Exception):
            wait_until(lambda: first.process.poll() is not None, moment, interval=0.01)
        kill(first, who)
        results = [other.end(120) for other in others]
        first.end(60)
    return phase, who, results


@pytest.mark.parametrize("make_tree", [in_one_transaction, per_migration], ids=lambda each: each.__name__)
def test_after_a_kill_another_brings_a_transactional_tree_to_head(
    tmp_path: Path, watched_server: Server, make_tree: Callable[[Path], Project]
) -> None:
    tree = make_tree(tmp_path)

    def round_of(database: Database, n: int) -> str:
        phase, who, results = one_round(tree, database, n, {})
        assert [each.code for each in results] == [0] * 4, (phase, who, results[0].stderr)
        assert recorded(database) == ["r3"]
        assert violations(database) == []
        return phase

    seen = Counter(in_rounds(rounds(60, len(PHASES)), round_of, watched_server, at_once=2))
    measured("Kill", tree=make_tree.__name__, at_head=seen.total(), histogram=dict(seen))
    assert set(seen) == set(PHASES)


@pytest.mark.parametrize("make_tree", [with_autocommit, with_concurrently], ids=lambda each: each.__name__)
def test_after_a_kill_what_other_trees_left_behind_is_named(
    tmp_path: Path, watched_server: Server, make_tree: Callable[[Path], Project]
) -> None:
    tree = make_tree(tmp_path)

    def round_of(database: Database, n: int) -> tuple[str, str]:
        phase, who, results = one_round(tree, database, n, {})
        assert violations(database) == []
        codes = {each.code for each in results}
        if codes == {0}:
            assert recorded(database) == ["r3"]
            return phase, "at head"
        assert codes <= {0, 1, 75}, (phase, who, [each.message for each in results])
        told = "\n".join(each.stderr for each in results if each.code == 1)
        # What was committed is not lost, and the failure says what of it is in the way.
        assert "Migration r2" in told, (phase, who, told)
        assert "already exists" in told, (phase, who, told)
        assert make_tree is not with_concurrently or "t2" in told
        return phase, "named"

    seen = Counter(in_rounds(rounds(60, len(PHASES)), round_of, watched_server, at_once=2))
    measured(
        "Kill", tree=make_tree.__name__, histogram={f"{phase}: {end}": count for (phase, end), count in seen.items()}
    )
    assert {phase for phase, _ in seen} == set(PHASES)


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


def test_without_the_fence_a_killed_migrators_statement_is_seen_beside_the_next(
    tmp_path: Path, watched: Database
) -> None:
    tree = witnessed(tmp_path, 3, env=PER_MIGRATION, gated=True)
    watched.execute(VERSION_TABLE)
    outlive_parent(tree, watched, off(tmp_path, "fence", "hearing", "patience"))
    assert violations(watched)
