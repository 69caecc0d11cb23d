"""What many replicas at once cost, on an embedded PostgreSQL with room for 25 sessions; prints a Markdown table.

    python bench/stampede.py [--replicas 20 50 100] [--rounds 1]

Ready means: the app was launched. One replica alone is the measure: N of them need at least N times its CPU time,
shared by the machine's cores. After a kill, the next migrator is one that was waiting for the lock already.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from subject import BIN, database, tree

from alembic_entrypoint.postgres.embedded import Embedded, embedded_server

SLOWLY = "def upgrade():\n    __import__('time').sleep(1)"
KILLS = 5


@dataclass
class Replica:
    """One run and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def has(self, event: str) -> bool:
        return any(each["event"] == event for each in self.events())

    def at(self, event: str) -> float:
        """Give the time of an event, as seconds since the epoch."""
        stamp = next(each["timestamp"] for each in self.events() if each["event"] == event)
        return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def start(stack: ExitStack, folder: Path, url: str) -> Replica:
    log = folder / f"{secrets.token_hex(4)}.log"
    environment = {**os.environ, "DATABASE_URL": url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "600"}
    command = [str(BIN / "alembic-entrypoint"), "run", "--", "true"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=stderr, stdin=subprocess.DEVNULL)
    stack.callback(process.kill)
    return Replica(process, log)


class Sessions:
    """The most sessions on the server at one time, the counting one left out."""

    def __init__(self, url: str) -> None:
        self.peak = 0
        self._over = threading.Event()
        self._connection = psycopg.connect(url, autocommit=True)
        self._thread = threading.Thread(target=self._count)

    def _count(self) -> None:
        query = "SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()"
        while not self._over.wait(0.02):
            self.peak = max(self.peak, self._connection.execute(query).fetchall()[0][0])

    def __enter__(self) -> Sessions:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._connection.close()


@dataclass(frozen=True)
class Stampede:
    """Seconds until all were ready, seconds of CPU, sessions, and seconds from the holder's end to the last start."""

    ready: float
    cpu: float
    peak: int
    after_unlock: float


def stampede(folder: Path, url: str, replicas: int) -> Stampede:
    """Start so many at once on an empty database."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    with ExitStack() as stack:
        with Sessions(url) as sessions:
            runs = [start(stack, folder, url) for _ in range(replicas)]
            codes = {run.process.wait() for run in runs}
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if codes != {0}:
            raise SystemExit(f"ended with {codes}: {next(run.events()[-1:] for run in runs if run.process.returncode)}")
        unlocked = next(run for run in runs if run.has("schema.upgraded")).at("schema.upgraded")
        last = max(run.at("app.launching") for run in runs)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Stampede(last - began, cpu, sessions.peak, last - unlocked)


def from_kill_to_next(folder: Path, url: str) -> float:
    """Kill a migrator while another waits; give the seconds until that one begins its first migration."""
    with ExitStack() as stack:
        first = start(stack, folder, url)
        while not first.has("migration.started"):
            time.sleep(0.01)
        second = start(stack, folder, url)
        while not second.has("lock.waiting"):
            time.sleep(0.01)
        killed = time.time()
        first.process.send_signal(signal.SIGKILL)
        while not second.has("migration.started"):
            time.sleep(0.01)
        return second.at("migration.started") - killed


def measure(server: Embedded, counts: list[int], rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "quick"
        tree(folder, 10)
        with database(server) as url:
            alone = stampede(folder, url, 1)
        cores = os.cpu_count() or 1
        print(f"One replica alone: ready after {alone.ready:.2f} s, {alone.cpu:.2f} s of CPU; {cores} cores.\n")
        print("| replicas | all ready | N times the CPU of one | CPU used | peak sessions | unlock to last start |")
        print("|---:|---:|---:|---:|---:|---:|")
        for count in counts:
            floor = count * alone.cpu / cores
            for _ in range(rounds):
                with database(server) as url:
                    seen = stampede(folder, url, count)
                numbers = (
                    f"{seen.ready:.1f} s | {floor:.1f} s | {seen.cpu:.1f} s | {seen.peak} | {seen.after_unlock:.1f} s"
                )
                print(f"| {count} | {numbers} |", flush=True)
        slow = Path(temporary) / "slow"
        tree(slow, 30)
        for file in (slow / "migrations" / "versions").glob("*.py"):
            file.write_text(file.read_text().replace("def upgrade():", SLOWLY))
        waits = []
        for _ in range(KILLS):
            with database(server) as url:
                waits.append(from_kill_to_next(slow, url))
        print(
            f"\nFrom SIGKILL to the next migrator's first migration: {statistics.median(waits):.2f} s "
            f"(median of {KILLS}; {min(waits):.2f} to {max(waits):.2f})."
        )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    with embedded_server(settings={"max_connections": "25"}) as server:
        measure(server, arguments.replicas, arguments.rounds)


if __name__ == "__main__":
    sys.exit(main())
