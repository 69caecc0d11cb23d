"""Measure a snapshot of a large schema against `pg_dump -s` of the same database.

python bench/snapshot.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable

import psycopg

from alembic_entrypoint.postgres.embedded import embedded_server
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
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    rounds = arguments.parse_args().rounds
    with embedded_server() as server, psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(SCHEMA)
        connection.execute("ANALYZE")
        dump = [str(server.bin / "pg_dump"), "--schema-only", "--file", os.devnull, server.url]
        pairs = [
            (seconds(lambda: take(connection)), seconds(lambda: subprocess.run(dump, check=True)))
            for _ in range(rounds)
        ]
        facts = len(take(connection).facts)
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{facts} facts: snapshot {ours:.3f} s, pg_dump -s {theirs:.3f} s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
