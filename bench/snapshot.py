"""What a snapshot of a large schema costs, against `pg_dump -s` of the same database, paired in one run.

    python bench/snapshot.py [--rounds 9]

Both begin with a connection of their own. Each figure is a median with its quartiles, the ratio the median of those of
the rounds. Ends with 1 where a bar of bench/bars.py is not kept.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Callable
from functools import partial

import psycopg
from bars import DUMP, Figures, Spread, heading, line
from measured import paired
from subject import execute, quiet_server

from alembic_entrypoint.schema.snapshot import take

TABLES = 1000
# Two indexes and three constraints for each table.
SCHEMA = f"""
DO $$ BEGIN
FOR n IN 1..{TABLES} LOOP
    EXECUTE format('CREATE TABLE t%1$s (id serial PRIMARY KEY, parent integer, name varchar(50) NOT NULL DEFAULT %2$L,
        at timestamptz DEFAULT now(), CONSTRAINT t%1$s_name CHECK (length(name) > 0))', n, 'x');
    EXECUTE format('ALTER TABLE t%s ADD FOREIGN KEY (parent) REFERENCES t%s (id)', n, greatest(n - 1, 1));
    EXECUTE format('CREATE INDEX ON t%s (parent)', n);
    EXECUTE format('CREATE INDEX ON t%s (lower(name)) WHERE at IS NOT NULL', n);
    IF n % 100 = 0 THEN COMMIT; END IF;
END LOOP;
END $$
"""


def seconds(action: Callable[[], object]) -> float:
    """Measure seconds on the clock."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def snapshot(url: str) -> int:
    """Take a snapshot, and count its facts."""
    with psycopg.connect(url, autocommit=True) as connection:
        return len(take(connection).facts)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with quiet_server() as server:
        execute(server.url, SCHEMA, "VACUUM ANALYZE", "CHECKPOINT")
        command = [str(server.bin / "pg_dump"), "--schema-only", "--file", os.devnull, server.url]
        actions: dict[str, Callable[[], object]] = {
            "snapshot": lambda: snapshot(server.url),
            DUMP: lambda: subprocess.run(command, check=True),
        }
        taken = paired({name: partial(seconds, each) for name, each in actions.items()}, rounds)
        facts = snapshot(server.url)
    figures = Figures()
    print(heading("tables", "facts", *(f"{each}, s" for each in taken), f"÷ {DUMP}"))
    ratio = figures.ratio("snapshot", TABLES, "wall", DUMP, taken["snapshot"], taken[DUMP])
    print(line(TABLES, facts, *(Spread.of(each).text(3) for each in taken.values()), ratio))
    figures.end()


if __name__ == "__main__":
    main()
