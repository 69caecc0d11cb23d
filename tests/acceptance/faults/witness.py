"""What the fault tests watch from outside: a server's log, in which every statement of a migration notes its worker.

A log line is written at once and stays when the transaction is rolled back, so it also shows what a dead worker's
statement still did. `off` switches a protection off, in the processes of one test, to show that it would be missed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from projects import ENV, Project, project
from servers import Database, Server, fresh_database

T = TypeVar("T")

#: Also for servers: an idle session must not end the lock's, and every line of the log counts.
SETTINGS = {
    "log_line_prefix": "",
    "log_error_verbosity": "terse",
    "log_min_messages": "warning",
    "max_connections": "200",
}

# LOG lines are not transactional. Each slice of the sleep is a line, so that a statement that runs on is seen.
FUNCTIONS = """
CREATE FUNCTION witness(worker int, label text, seconds float8 DEFAULT 0) RETURNS void LANGUAGE plpgsql AS $$
DECLARE ends timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
  RAISE LOG 'witness % % % %', current_database(), worker, pg_backend_pid(), label;
  WHILE clock_timestamp() < ends LOOP
    PERFORM pg_sleep(0.01);
    RAISE LOG 'witness % % % %', current_database(), worker, pg_backend_pid(), label;
  END LOOP;
END $$;
CREATE FUNCTION gate(worker int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  RAISE LOG 'witness % % % gate', current_database(), worker, pg_backend_pid();
  WHILE NOT pg_try_advisory_xact_lock_shared(999) LOOP PERFORM pg_sleep(0.01); END LOOP;
END $$;
CREATE FUNCTION slow(value int, worker int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
  RAISE LOG 'witness % % % concurrently', current_database(), worker, pg_backend_pid();
  PERFORM pg_sleep(0.01);
  RETURN value;
END $$;
"""
# It exists before the first migration: of two migrators at once the second would otherwise fail where Alembic makes it,
# by the luck of a primary key, before its first statement could be seen.
VERSION_TABLE = "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"
# Recording and commit can be slow and seen.
SLOW_RECORDING = """
CREATE FUNCTION recording() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM witness(coalesce(nullif(current_setting('test.worker', true), ''), '0')::int, TG_ARGV[0], 0.2);
  RETURN NEW;
END $$;
CREATE TRIGGER recording BEFORE INSERT OR UPDATE ON alembic_version
  FOR EACH ROW EXECUTE FUNCTION recording('recording');
CREATE CONSTRAINT TRIGGER commit AFTER INSERT OR UPDATE ON alembic_version
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION recording('commit');
"""

WITNESS = (
    "op.execute(f\"SELECT set_config('test.worker', '{{os.getpid()}}', false), witness({{os.getpid()}}, '{}', {})\")"
)


#: The part of all rounds that is run, a tenth unless told.
PART = float(os.environ.get("FAULT_ROUNDS") or 0.1)
HAS_ALL_ROUNDS = PART >= 1


def rounds(full: int, least: int = 1) -> int:
    """Give that part of a number of rounds."""
    return max(least, math.ceil(full * PART))


def witnessed(
    folder: Path,
    count: int = 3,
    *,
    env: str = ENV,
    seconds: float = 0.15,
    gated: bool = False,
    pause: str = "",
) -> Project:
    """Make a project whose migrations note what they do.

    `gated`: the first waits at the gate; `pause` is what the others begin with.
    """
    made = project(folder, env=env)
    for n in range(1, count + 1):
        lines = ['op.execute(f"SELECT gate({os.getpid()})")'] if gated and n == 1 else []
        lines += [pause] if pause and n > 1 else []
        lines += [WITNESS.format(f"r{n}", seconds), f"op.execute('CREATE TABLE t{n} (id int PRIMARY KEY)')"]
        made.add(f"r{n}", "\n".join(lines), down=f"r{n - 1}" if n > 1 else None, head="import os")
    return made


#: Where in the log of a server a database's first line can be, so that a thousand rounds need not read all of it.
_BEGINS: dict[tuple[Path, str], int] = {}


def prepare(database: Database) -> None:
    """Make what migrations need to note what they do."""
    log = log_of(database)
    _BEGINS[log, database.name] = log.stat().st_size
    database.execute(FUNCTIONS)


def log_of(database: Database) -> Path:
    assert isinstance(database.server, Server)
    return database.server.data.parent / "log"


def lines_of(database: Database) -> list[tuple[int, int, str]]:
    """Read what was noted in one database, in the order in which it happened: worker, backend, label."""
    log = log_of(database)
    with log.open() as file:
        file.seek(_BEGINS.get((log, database.name), 0))
        text = file.read()
    pattern = rf"witness {re.escape(database.name)} (\d+) (\d+) (\w+)$"
    found = re.findall(pattern, text, re.MULTILINE)
    return [(int(worker), int(backend), label) for worker, backend, label in found]


def has_witness(database: Database, label: str) -> bool:
    return any(line[2] == label for line in lines_of(database))


def violations(database: Database) -> list[int]:
    """Name the workers that did something after another one had begun; none may."""
    blocks = [worker for worker, _ in groupby(line[0] for line in lines_of(database) if line[0])]
    return sorted({worker for worker in blocks if blocks.count(worker) > 1})


def workers_of(database: Database) -> set[int]:
    """Name the workers that have noted anything."""
    return {worker for worker, _, _ in lines_of(database) if worker}


@contextmanager
def closed_gate(database: Database) -> Iterator[None]:
    """Keep every `gate` of a database closed within the block."""
    connection = database.connect()
    connection.execute("SELECT pg_advisory_lock(999)")
    try:
        yield
    finally:
        connection.close()


def recorded(database: Database) -> list[str]:
    return sorted(row[0] for row in database.query("SELECT version_num FROM alembic_version"))


def sessions(database: Database) -> list[str]:
    """Name our sessions that are open in a database."""
    rows = database.query(
        "SELECT application_name FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'alembic-entry%%'",
        database.name,
    )
    return [row[0] for row in rows]


#: What each protection is, and how it is taken away. The fence is share and check together.
OFF: Mapping[str, str] = {
    # Shares are taken, but not of what a successor waits for.
    "share": """
from alembic_entrypoint.worker import connections, transactions
connections.LOCK_B = transactions.LOCK_B = 3
""",
    "check": """
from alembic_entrypoint import lock
from alembic_entrypoint.worker import connections, transactions
lock.HOLDER_CHECK = connections.HOLDER_CHECK = transactions.HOLDER_CHECK = (
    "SELECT true, current_setting('application_name') FROM pg_backend_pid() AS l(pid) WHERE %(token)s <> 0"
)
transactions.Fence.check_migration = lambda self, connection: None
""",
    "lock": """
from alembic_entrypoint import lock
lock.LOCK_A = __import__("os").getpid()
lock._await_fence = lambda *_: None
""",
    # What tells shared sessions before anything is locked; under load it cannot always [R8].
    "probe": """
from alembic_entrypoint import lock
lock._refuse_shared = lambda *_: None
""",
    # Not a protection but its absence at the worst moment: a worker that does not notice that its parent is gone.
    "hearing": """
from alembic_entrypoint.worker import main
tell = main.Parent.tell
def tell_nobody(self, said, **keys):
    try:
        tell(self, said, **keys)
    except OSError:
        pass
main.Parent.tell = tell_nobody
def stop_listening(self):
    raise SystemExit
main.Parent._end = stop_listening
""",
    "watching": """
from alembic_entrypoint.lock import Lock
Lock.check_alive = lambda self: None
""",
    "standby": """
from alembic_entrypoint.postgres import login
login._is_standby = lambda connection, deadline: False
""",
    "keepalives": """
from alembic_entrypoint.postgres import login, session
login.KEEPALIVES = {"keepalives": "0", "tcp_user_timeout": "0"}
session.ALIVE = {name: value for name, value in session.ALIVE.items() if "tcp" not in name}
session.SESSION = {name: value for name, value in session.SESSION.items() if "tcp" not in name}
""",
    # Nor is this: successors that try at every moment.
    "patience": """
from alembic_entrypoint import lock
lock.LONGEST = 0.05
""",
    "polling": """
from alembic_entrypoint import lock
for name in ("_TAKE", "_TAKE_AND_FREE"):
    waiting = "(SELECT true FROM pg_catalog.pg_advisory_lock(%s, %s))"
    setattr(lock, name, getattr(lock, name).replace("pg_catalog.pg_try_advisory_lock(%s, %s)", waiting))
""",
    "timeouts": """
from alembic_entrypoint import act, lock
lock.SESSION = {"lock_timeout": "0"}
act.ALIVE = {}
""",
    "connecting again": """
from alembic_entrypoint.worker import drivers
drivers._may_pass = lambda error: False
""",
    "renewal": """
from alembic_entrypoint.worker import transactions
transactions.Fence.hold = transactions.Fence.check_migration = lambda self, connection: None
""",
    "clearing": """
from alembic_entrypoint import lock
lock._await_fence = lambda *_: None
""",
    "exemption": """
import re
from alembic_entrypoint.worker import transactions
transactions._CONCURRENTLY = re.compile("(?!)")
""",
}


def off(folder: Path, *protections: str) -> dict[str, str]:
    """Give the environment in which these protections are missing."""
    place = folder / ("without_" + "_".join(protections)).replace(" ", "_")
    place.mkdir(exist_ok=True)
    guarded = "try:\n{}\nexcept ImportError:\n    pass\n"
    texts: Iterable[str] = (guarded.format(_indented(OFF[each])) for each in protections)
    (place / "sitecustomize.py").write_text("\n".join(texts))
    return {"PYTHONPATH": str(place)}


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.strip().splitlines())


#: What the test under way has counted, each with its name; told at the end of a run.
FIGURES: list[tuple[str, str]] = []


def measured(name: str, **numbers: object) -> None:
    """Keep what a fault test has counted, for the end of the run."""
    FIGURES.append((name, "  ".join(f"{key} {_shown(value)}" for key, value in numbers.items())))


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {count}" for key, count in value.items()) + "}"
    return str(value)


def until_seen(one_round: Callable[[Database], bool], server: Server, most: int = 12) -> int:
    """Run rounds until one shows what it is about; give how many it took, or fail."""
    for n in range(1, most + 1):
        with fresh_database(server) as database:
            prepare(database)
            database.execute(VERSION_TABLE)
            if one_round(database):
                return n
    raise AssertionError(f"not seen in {most} rounds")


def in_rounds(total: int, one_round: Callable[[Database, int], T], server: Server, at_once: int = 4) -> list[T]:
    """Run rounds, some at a time, each in a database of its own; the first that fails fails the test."""

    def in_a_database(n: int) -> T:
        with fresh_database(server) as database:
            prepare(database)
            database.execute(VERSION_TABLE)
            return one_round(database, n)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(in_a_database, range(total)))
