"""The four scenarios in which a second lock, checked once, let a dead migrator's worker go on [R7], and a fifth.

A worker whose parent is killed, or whose lock session is terminated, goes on for a moment, here on purpose: it is made
deaf. It connects late, or anew for each migration, while its successor is already waiting. In the fifth it is left
without a session, so that no share of the fence keeps the successor out: only the check stops what connects then.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from witness import (
    has_witness,
    in_rounds,
    lines_of,
    measured,
    off,
    recorded,
    rounds,
    until_seen,
    violations,
    witnessed,
    workers_of,
)

from commands import Running, started
from projects import PER_MIGRATION, Project
from servers import Database, Server, wait_until

pytestmark = pytest.mark.faults

LATE = """
import time
time.sleep(0.2)
engine = sa.create_engine(op.get_bind().engine.url, poolclass=sa.pool.NullPool)
with engine.begin() as connection:
    connection.exec_driver_sql(f"SELECT witness({os.getpid()}, 'late', 0.05)")
"""
MakeTree = Callable[..., Project]
End = Callable[[Running, Database], None]


def late_connect(folder: Path, count: int = 7) -> Project:
    """Make migrations that open an engine of their own after a while."""
    made = witnessed(folder, 1, seconds=0.05, env=PER_MIGRATION)
    for n in range(2, count + 1):
        made.add(f"r{n}", LATE, down=f"r{n - 1}", head="import os")
    return made


def null_pool(folder: Path, count: int = 7) -> Project:
    """Make migrations that run on a connection of their own each, with none between them."""
    made = witnessed(folder, 1, seconds=0.05, env=PER_MIGRATION)
    for n in range(2, count + 1):
        made.add(f"r{n}", anew(3), down=f"r{n - 1}", head=f"import os\n{OPEN_ONE}")
    return made


def idle_in_transaction(folder: Path, count: int = 7) -> Project:
    """Make one migration that connects anew as often, while Alembic's own connection is idle in its transaction."""
    made = witnessed(folder, 1, seconds=0.05)
    made.add("r2", anew(3 * count), down="r1", head=f"import os\n{OPEN_ONE}")
    return made


def anew(count: int) -> str:
    """Write the body of a migration that opens a connection of its own, so often."""
    return f"import time\nfor _ in range({count}):\n    time.sleep(0.1)\n    with open_one() as own:\n{NOTED}"


NOTED = "        own.execute(f\"SELECT witness({os.getpid()}, 'anew', 0.05)\")"
OPEN_ONE = """
import psycopg
def open_one():
    url = op.get_bind().engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(url, autocommit=True)
"""


def kill_parent(run: Running, database: Database) -> None:
    run.signal(signal.SIGKILL)


def terminate_lock_session(run: Running, database: Database) -> None:
    database.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE '%% locking %%'",
    )


def kill_parent_and_main_session(run: Running, database: Database) -> None:
    """Kill the parent, and end the session on which its worker migrates; as after a restart, none holds a share."""
    wait_until(lambda: has_witness(database, "anew"), 60)
    run.signal(signal.SIGKILL)
    database.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name LIKE '%% migrating %%' AND state LIKE 'idle in%%'"
    )


@contextmanager
def taking_over(
    tree: Project, database: Database, end: End, env: dict[str, str], latest: int = 20
) -> Iterator[Running]:
    """End the first migrator after some statements, while a second one waits to take over; give the second one."""
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_LOCK_WAIT": "30", **env}
    with (
        started(tree.folder, "migrate", env=env, name=f"{database.name}-first") as first,
        started(tree.folder, "migrate", env=env, name=f"{database.name}-second") as second,
    ):
        runs = [first, second]
        wait_until(lambda: any(run.has("lock.acquired") for run in runs), 60)
        holder, successor = sorted(runs, key=lambda run: not run.has("lock.acquired"))
        moment = random.randrange(latest)
        wait_until(lambda: len(lines_of(database)) > moment or not is_going(holder), 60)
        end(holder, database)
        holder.end(60)
        yield successor


def is_going(run: Running) -> bool:
    return run.process.poll() is None


FOUR = [(tree, end) for tree in (late_connect, null_pool) for end in (kill_parent, terminate_lock_session)]
FIFTH = (idle_in_transaction, kill_parent_and_main_session)


def scenarios(for_each_of_four: object, for_the_fifth: object) -> list[tuple[MakeTree, End, object]]:
    """Give every scenario, each with something that goes with it."""
    return [*((tree, end, for_each_of_four) for tree, end in FOUR), (*FIFTH, for_the_fifth)]


def named(make_tree: MakeTree, end: End) -> str:
    return f"{make_tree.__name__}, {end.__name__}"


def begins_anew(tree: Project, end: End, server: Server, total: int, folder: Path, scenario: str) -> None:
    """See in so many rounds, every other one with a deaf worker, that a successor never works beside the old worker."""
    deaf = off(folder, "hearing", "watching", "patience")
    head = f"r{len(list(tree.versions.glob('r*.py')))}"

    def round_of(database: Database, n: int) -> tuple[int, int]:
        with taking_over(tree, database, end, deaf if n % 2 else {}) as successor:
            code = successor.end(60).code
        assert violations(database) == []
        # 75: the session that was terminated was the successor's own, which had just taken the lock.
        assert code in (0, 75)
        assert code == 75 or recorded(database) == [head]
        return len(lines_of(database)), len(workers_of(database))

    seen = in_rounds(total, round_of, server, at_once=6)
    taken_over = sum(workers > 1 for _, workers in seen)
    statements = sum(count for count, _ in seen)
    measured("R7", scenario=scenario, rounds=total, taken_over=taken_over, statements=statements, violations=0)
    assert taken_over


@pytest.mark.parametrize(("make_tree", "end", "full"), scenarios(200, 50))
def test_no_statement_of_the_old_worker_after_its_successor_began(
    tmp_path: Path, watched_server: Server, make_tree: MakeTree, end: End, full: int
) -> None:
    tree = make_tree(tmp_path)
    begins_anew(tree, end, watched_server, rounds(full, 2), tmp_path, named(make_tree, end))


@pytest.mark.extra
@pytest.mark.parametrize("end", [kill_parent, terminate_lock_session])
def test_nor_on_postgresql_13(tmp_path: Path, watched13: Server, end: End) -> None:
    begins_anew(null_pool(tmp_path), end, watched13, rounds(30), tmp_path, f"PostgreSQL 13, {named(null_pool, end)}")


@pytest.mark.parametrize(("make_tree", "end", "missing"), scenarios(("share", "check"), ("check",)))
def test_without_the_fence_or_its_check_alone_it_is_seen(
    tmp_path: Path, watched_server: Server, make_tree: MakeTree, end: End, missing: tuple[str, ...]
) -> None:
    tree = make_tree(tmp_path, 30)  # long enough that the old worker is not yet done when the new one has started
    bare = off(tmp_path, *missing, "hearing", "watching", "patience")

    def is_seen(database: Database) -> bool:
        with taking_over(tree, database, end, bare, latest=2) as successor:
            wait_until(lambda: violations(database) or not is_going(successor), 60)
        return bool(violations(database))

    took = until_seen(is_seen, watched_server)
    measured("R7, taken away", scenario=named(make_tree, end), missing=" and ".join(missing), seen_in_round=took)
