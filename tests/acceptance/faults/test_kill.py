"""SIGKILL in every phase, to each that is there, the parent, the worker or both, while four others wait."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from witness import (
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
from projects import ENV, PER_MIGRATION, Project
from servers import Database, Server, fresh_database, processes_of, wait_until

pytestmark = pytest.mark.faults


MakeTree = Callable[[Path], Project]
#: Between two migrations: the next one has done nothing yet but say so.
PAUSE = "import time\nop.execute(f\"SELECT witness({os.getpid()}, 'pause')\")\ntime.sleep(0.15)"


# As long as an `env.py` takes that has much to import. Only who looks is read-only; as worker 0 it is no migrator.
LOOK = """
    with engine.connect() as looking:
        looking.exec_driver_sql(
            "SELECT witness(0, 'look', 0.2), witness(0, 'looked') WHERE current_setting('transaction_read_only') = 'on'"
        )
    with engine"""


def looking_slowly(env: str) -> str:
    """Make an `env.py` of another, in which a look takes a while."""
    return env.replace("\n    with engine", LOOK)


def in_one_transaction(folder: Path) -> Project:
    """Make three migrations that commit together."""
    return witnessed(folder, env=looking_slowly(ENV), pause=PAUSE)


def per_migration(folder: Path) -> Project:
    """Make three migrations that commit one by one."""
    return witnessed(folder, env=looking_slowly(PER_MIGRATION), pause=PAUSE)


def with_autocommit(folder: Path) -> Project:
    """Make a second migration that commits in its middle."""
    made = in_one_transaction(folder)
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
    made = in_one_transaction(folder)
    block = f"""
{PAUSE}
op.execute("CREATE TABLE t2 (id int)")
op.execute("INSERT INTO t2 SELECT generate_series(1, 80)")
{WITNESS.format("r2", 0.2)}
with op.get_context().autocommit_block():
    op.execute(f"CREATE INDEX CONCURRENTLY slow_index ON t2 (slow(id, {{os.getpid()}}))")
"""
    made.add("r2", block, down="r1", head="import os")
    return made


Phase = Callable[[Running, Database], bool]
#: A phase, and who is killed in it.
Cell = tuple[str, str]
#: How each phase is recognised, the latest first: what holds of it and of no earlier one.
PHASES: dict[str, Phase] = {
    "launching": lambda run, _: run.has("app.launching"),
    "at commit": lambda run, database: last_label(database) == "commit",
    "recording": lambda run, database: last_label(database) == "recording",
    "building concurrently": lambda run, database: last_label(database) == "concurrently" and has_invalid(database),
    "in a statement": lambda run, database: last_label(database) in ("r2", "r3", "concurrently"),
    "between migrations": lambda run, database: last_label(database) == "pause",
    "in the first migration": lambda run, database: has_witness(database, "r1"),
    "looking": lambda run, database: last_label(database) == "look",
    "preparing": lambda run, _: run.has("lock.acquired"),
    "locking": lambda run, _: run.has("lock.waiting"),
    "waiting": lambda run, _: True,
}
WHO = ("parent", "worker", "both")
#: Of the phases, those that any moment may come upon, but that no round aims at.
IN_PASSING = ("in the first migration", "preparing")
#: Those in which there is no worker: the lock comes before the look, and the app after all.
ALONE = ("waiting", "locking", "launching")
TREES = (in_one_transaction, per_migration, with_autocommit, with_concurrently)
#: How often a cell that was missed is aimed at again: a phase may be over before a busy machine has killed in it.
AGAIN = 6
#: Where the first tree begins among its cells; the next one goes on from there, and the next run elsewhere.
BEGINNING = random.randrange(1000)


def last_label(database: Database) -> str:
    lines = lines_of(database)
    return lines[-1][2] if lines else ""


def has_invalid(database: Database) -> bool:
    """Tell whether an index is there that is being built, or whose build was interrupted."""
    return bool(database.query("SELECT FROM pg_index WHERE NOT indisvalid"))


def phase_of(run: Running, database: Database) -> str:
    """Tell where a run is."""
    return next(name for name, is_there in PHASES.items() if is_there(run, database))


def cells_of(make_tree: MakeTree) -> list[Cell]:
    """Give every phase with everybody who can be killed in it."""
    names = [name for name in PHASES if name not in IN_PASSING]
    if make_tree is not with_concurrently:
        names.remove("building concurrently")
    return [(name, who) for who in WHO for name in names if who == "parent" or name not in ALONE]


def aims_of(make_tree: MakeTree, total: int) -> list[Cell]:
    """Give the cell that each round aims at: each in turn."""
    cells, first = cells_of(make_tree), BEGINNING + TREES.index(make_tree) * total
    return [cells[n % len(cells)] for n in range(first, first + total)]


def kill(run: Running, who: str) -> str:
    """Kill the command, its worker, or both; tell who of them was there to be killed."""
    parent = [] if who == "worker" or has_ended(run) else [run.pid]
    workers = [] if who == "parent" else processes_of(run.pid)[1:]
    for pid in parent + workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if parent and workers:
        return "both"
    return "parent" if parent else "worker" if workers else "nobody"


@contextmanager
def lock_held(database: Database) -> Iterator[None]:
    """Hold what all wait for, so that nobody gets past it within the block."""
    with database.connect() as connection:
        connection.execute(f"SELECT pg_advisory_lock({LOCK_CLASS}, {LOCK_A})")
        yield


def one_round(tree: Project, database: Database, aim: Cell) -> tuple[Cell, list[Result]]:
    """Kill the first of five in a phase; give the phase in which it was, who was hit, and how the four others ended."""
    database.execute(SLOW_RECORDING)
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_LOCK_WAIT": "60"}
    moment = random.uniform(0.0, 0.05)
    wanted, who = aim
    with ExitStack() as stack:
        is_early = wanted in ("waiting", "locking")
        with lock_held(database) if is_early else nullcontext():
            first = stack.enter_context(started(tree.folder, "run", "sleep", "1", env=env, name=f"{database.name}-0"))
            if not is_early:
                wait_until(lambda: first.has("lock.acquired"), 60)
            others = [
                stack.enter_context(started(tree.folder, "run", "true", env=env, name=f"{database.name}-{k}"))
                for k in range(1, 5)
            ]
            wait_until(lambda: PHASES[wanted](first, database) or has_ended(first), 60, interval=0.002)
            reached = time.monotonic()
            wait_until(lambda: time.monotonic() - reached > moment, interval=0.005)
            phase = phase_of(first, database)
            hit = kill(first, who)
        results = [other.end(120) for other in others]
        first.end(60)
    return (phase, hit), results


def has_ended(run: Running) -> bool:
    return run.process.poll() is not None


def in_cells(
    aims: list[Cell], round_of: Callable[[Database, Cell], tuple[Cell, str]], server: Server, **what: object
) -> None:
    """Run a round for each cell that is aimed at, and again for those that no kill has hit; an empty one fails."""

    def run(aimed: list[Cell]) -> list[tuple[Cell, str]]:
        ends = in_rounds(len(aimed), lambda database, n: round_of(database, aimed[n]), server, at_once=3)
        return [(cell, end) for cell, end in ends if cell[1] != "nobody"]

    ends = run(aims)
    for _ in range(AGAIN):
        ends += run(sorted(set(aims) - {cell for cell, _ in ends}))
    cells, outcomes = Counter(cell for cell, _ in ends), Counter(end for _, end in ends)
    numbers = {"postgresql": server.major, "rounds": len(ends), "violations": 0}
    measured("Kill", **what, **numbers, ends=outcomes, histogram=histogram(cells))
    assert set(aims) <= set(cells), sorted(set(aims) - set(cells))


def histogram(cells: Mapping[Cell, int]) -> dict[str, str]:
    """Count for each phase the kills of parent, worker and both; where there is no worker, those of the parent."""
    phases = [name for name in reversed(PHASES) if any(cells.get((name, who)) for who in WHO)]
    return {
        name: "+".join(str(cells.get((name, who), 0)) for who in (WHO[:1] if name in ALONE else WHO)) for name in phases
    }


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

    def round_of(database: Database, aim: Cell) -> tuple[Cell, str]:
        cell, results = one_round(tree, database, aim)
        assert [each.code for each in results] == [0] * 4, (cell, [each.stderr for each in results if each.code])
        assert recorded(database) == ["r3"]
        assert violations(database) == []
        return cell, "at head"

    in_cells(aims_of(make_tree, total), round_of, server, tree=make_tree.__name__)


@pytest.mark.parametrize("make_tree", [with_autocommit, with_concurrently], ids=lambda each: each.__name__)
def test_after_a_kill_what_other_trees_left_behind_is_named(
    tmp_path: Path, watched_server: Server, make_tree: MakeTree
) -> None:
    tree = make_tree(tmp_path)

    def round_of(database: Database, aim: Cell) -> tuple[Cell, str]:
        cell, results = one_round(tree, database, aim)
        assert violations(database) == []
        codes = {each.code for each in results}
        if codes == {0}:
            assert recorded(database) == ["r3"]
            return cell, "at head"
        assert codes <= {0, 1, 75}, (cell, [each.message for each in results])
        told = "\n".join(each.stderr for each in results if each.code == 1)
        # What was committed is not lost, and the failure says what of it is in the way.
        assert "Migration r2" in told, (cell, told)
        assert "already exists" in told, (cell, told)
        assert recorded(database) == ["r1"]
        if not has_invalid(database):
            return cell, "named"
        assert "DROP INDEX CONCURRENTLY public.slow_index;" in told, told
        return cell, "INVALID index named"

    in_cells(aims_of(make_tree, rounds(60)), round_of, watched_server, tree=make_tree.__name__)


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
