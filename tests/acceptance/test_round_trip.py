"""Whatever revision a database is at, it is proved there if and only if no other revision has its schema.

Who is right is told by `pg_dump` of what plain Alembic makes, not by anything of ours.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import entrypoint
from projects import Project, project
from servers import Server, fresh_database

SEEDS = range(max(3, int(30 * float(os.environ.get("FAULT_ROUNDS", "0")))))
LENGTH = 6


def tree_of(folder: Path, seed: int) -> tuple[Project, list[str]]:
    """Make a line of migrations: each makes a table or a column, brings rows, changes rows, or does nothing."""
    chance = random.Random(seed)
    made, kinds = project(folder), ["table"]
    kinds += [chance.choice(["table", "column", "column", "rows", "data", "nothing"]) for _ in range(LENGTH - 1)]
    tables = 0
    for n, kind in enumerate(kinds, 1):
        tables += kind == "table"
        one = chance.randrange(1, tables + 1)
        sql = {
            "table": f"CREATE TABLE t{tables} (id int PRIMARY KEY)",
            "column": f"ALTER TABLE t{one} ADD c{n} int DEFAULT {n}",
            "rows": f"INSERT INTO t{one} (id) VALUES ({n})",
            "data": f"UPDATE t{one} SET id = id + 1000",
            "nothing": "",
        }[kind]
        made.add(f"r{n}", f"op.execute({sql!r})" if sql else "pass", down=f"r{n - 1}" if n > 1 else None)
    return made, kinds


def upgrade(tree: Project, url: str, revision: str) -> None:
    plain = (tree.folder / "alembic.ini").read_text()
    url = url.replace("postgresql:", "postgresql+psycopg:")
    (tree.folder / "plain.ini").write_text(plain.replace("driver://user:pass@localhost/dbname", url))
    command = [sys.executable, "-m", "alembic", "-c", "plain.ini", "upgrade", revision]
    subprocess.run(command, cwd=tree.folder, check=True, capture_output=True)


@pytest.mark.extra
@pytest.mark.parametrize("seed", SEEDS)
def test_a_database_is_proved_where_it_is_if_no_other_revision_has_its_schema(
    tmp_path: Path, server: Server, seed: int
) -> None:
    tree, kinds = tree_of(tmp_path, seed)
    dumps, filled, answers = {}, {}, {}
    for n in range(1, LENGTH + 1):
        with fresh_database(server) as database:
            upgrade(tree, database.url, f"r{n}")
            database.execute("DROP TABLE alembic_version")
            dump = [str(server.binaries / "pg_dump"), "-s", "-d", database.url]
            text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
            dumps[n] = re.sub(r"(?m)^(--|\\(un)?restrict).*$", "", text)
            names = [name for (name,) in database.query("SELECT relname FROM pg_class WHERE relname ~ '^t[0-9]+$'")]
            filled[n] = {name for name in names if database.query(f"SELECT EXISTS (TABLE {name})") == [(True,)]}
            result = entrypoint("plan", "--prove", "--json", cwd=tree.folder, env={"DATABASE_URL": database.url})
            answers[n] = json.loads(result.stdout)["proof"]
    for n, proof in answers.items():
        # The same schema, and no table empty here that the replay fills; what executed nothing is one with its parent.
        same = [m for m in dumps if dumps[m] == dumps[n] and filled[m] <= filled[n]]
        told_apart = [m for m in same if not (m + 1 in same and kinds[m] == "nothing")]
        where = f"{kinds} at r{n}: {proof}"
        if len(told_apart) == 1:
            assert (proof["outcome"], proof["candidates"]) == ("one", [[f"r{told_apart[0]}"]]), where
        else:
            assert proof["outcome"] == "several", where
            assert sorted(proof["candidates"]) == sorted([f"r{m}"] for m in told_apart), where
