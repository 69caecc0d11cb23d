"""Whatever revision a database is at, what it lost is recorded again if and only if no other revision has its schema.

Who is right is told by `pg_dump` of what plain Alembic makes, not by anything of ours.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from oracle import LOSSES, Oracle, Tree, lose_and_migrate, oracle
from projects import project
from servers import Server

EXAMPLE = Path(__file__).parents[2] / "entrypoint" / "example"
NOTES = ("3f1c8a5e9b20", "b7d20e64c1fa", "58e9af03d7c4", "c46b1d9e20f8")
OPTUNA = ("v0.9.0.a", "v1.2.0.a", "v1.3.0.a", "v2.4.0.a", "v2.6.0.a")
OPTUNA += ("v3.0.0.a", "v3.0.0.b", "v3.0.0.c", "v3.0.0.d", "v3.2.0.a")
#: Those between which only rows change, or nothing on PostgreSQL.
ALIKE = {"v0.9.0.a", "v1.2.0.a", "v2.6.0.a", "v3.0.0.a"}

ROUNDS = float(os.environ.get("FAULT_ROUNDS", "0"))
#: With all rounds 30; in these two there is all that can be in a tree.
SEEDS = sorted({8, 11, *range(int(30 * ROUNDS))})
LENGTH = 6


def line(folder: Path, revisions: tuple[str, ...]) -> Tree:
    return Tree(folder, {each: revisions[max(n - 1, 0) : n] for n, each in enumerate(revisions)})


@pytest.fixture(scope="module")
def notes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    folder = tmp_path_factory.mktemp("notes") / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert {each.name[:12] for each in (folder / "migrations/versions").glob("*.py")} == set(NOTES)
    with oracle(line(folder, NOTES), server) as known:
        yield known


@pytest.mark.parametrize(
    ("revision", "loss"),
    [
        pytest.param(revision, loss, marks=[] if (revision, loss) == (NOTES[1], "dropped") else [pytest.mark.wide])
        for revision in NOTES
        for loss in LOSSES
    ],
)
def test_the_example_is_recorded_again_at_every_revision(notes: Oracle, revision: str, loss: str) -> None:
    assert lose_and_migrate(notes, notes.all[notes.tree.applied(revision)], loss)


@pytest.fixture(scope="module")
def studies(server: Server) -> Iterator[Oracle]:
    with oracle(line(Path(optuna.__file__).parent / "storages" / "_rdb", OPTUNA), server) as known:
        yield known


EACH = [(revision, loss) for revision in OPTUNA for loss in LOSSES]
SOME = [(revision, list(LOSSES)[n % len(LOSSES)]) for n, revision in enumerate(OPTUNA[::2])]


@pytest.mark.wide
@pytest.mark.parametrize(("revision", "loss"), EACH if ROUNDS >= 1 else SOME)
def test_optuna_is_recorded_again_where_no_other_revision_has_its_schema(
    studies: Oracle, revision: str, loss: str
) -> None:
    assert lose_and_migrate(studies, studies.all[studies.tree.applied(revision)], loss) is (revision not in ALIKE)


def random_tree(folder: Path, seed: int) -> Tree:
    """Make migrations that follow, branch, merge, begin anew and depend on others.

    Each makes a table, a column or an index, takes a column away, brings rows, changes rows, or does nothing.
    """
    chance = random.Random(seed)
    made, tree = project(folder), Tree(folder, {}, set())
    tables: dict[str, str] = {}
    columns: dict[str, str] = {}
    for n in range(1, LENGTH + 1):
        revision, heads = f"r{n}", tree.newest(tree.beneath)
        downs: list[list[str]] = [[]]
        if heads:
            downs += [[chance.choice(heads)]] * 4 + [[chance.choice([*tree.beneath])]] * 3
        if len(heads) > 1:
            downs += [chance.sample(heads, 2)] * 4
        down = chance.choice(downs)
        others = sorted(tree.beneath.keys() - tree.applied(*down))
        needs = chance.sample(others, 1) if others and chance.random() < 0.3 else []
        # Only what is there whatever else was applied, and each column is taken away once.
        there = sorted(tree.applied(*down, *needs))
        kinds = ["column", "column", "index", "rows", "data", "nothing", "table"] if there else ["table"]
        kind = chance.choice([*kinds, *(["undo"] * 2 if columns.keys() & there else [])])
        table = chance.choice([tables[each] for each in there if each in tables] or [""])
        if kind == "table":
            table = tables[revision] = f"t{n}"
        elif kind == "column":
            columns[revision] = f"{table} DROP c{n}"
        undone = columns.pop(chance.choice(sorted(columns.keys() & there))) if kind == "undo" else ""
        sql = {
            "table": f"CREATE TABLE {table} (id int PRIMARY KEY)",
            "column": f"ALTER TABLE {table} ADD c{n} int DEFAULT {n}",
            "index": f"CREATE INDEX i{n} ON {table} (id)",
            "undo": f"ALTER TABLE {undone}",
            "rows": f"INSERT INTO {table} (id) VALUES ({n})",
            "data": f"UPDATE {table} SET id = id + 1000",
            "nothing": "",
        }[kind]
        tree.beneath[revision] = (*down, *needs)
        if kind == "nothing":
            tree.silent.add(revision)
        body = f"op.execute({sql!r})" if sql else "pass"
        made.add(revision, body, down=tuple(down) or None, depends_on=needs or None)
    return tree


@pytest.mark.wide
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_tree_is_recorded_again_where_its_schema_is_that_of_one_set(
    tmp_path: Path, server: Server, seed: int
) -> None:
    tree = random_tree(tmp_path, seed)
    with oracle(tree, server) as known:
        sets = {tree.applied(each) for each in tree.beneath} | set(random.Random(seed).sample(tree.sets[1:], 1))
        losses = list(LOSSES)
        told = [
            lose_and_migrate(known, known.all[each], losses[(n + seed) % len(losses)])
            for n, each in enumerate(sorted(sets, key=sorted))
        ]
    assert any(told), "nothing was recorded again"
