"""Migrations as a drawing: what is where is seen at a glance, and a long history takes little room."""

from __future__ import annotations

from alembic_entrypoint.diagnosis.drawing import MOST_ROWS, counts, draw, in_ascii
from alembic_entrypoint.facts import Facts, Graph, Migration


def facts(*migrations: Migration, recorded: tuple[str, ...] = ()) -> Facts:
    graph = Graph(migrations)
    return Facts(graph=graph, target_revisions=graph.heads, recorded=recorded)


def line(count: int, first: int = 1, upon: str | None = None) -> list[Migration]:
    """Make a straight run of migrations r1, r2, …"""
    names = [f"r{n}" for n in range(first, first + count)]
    return [Migration(name, (below,) if below else ()) for name, below in zip(names, [upon, *names[:-1]], strict=True)]


def drawn(*migrations: Migration, recorded: tuple[str, ...] = ()) -> str:
    return "\n".join(draw(facts(*migrations, recorded=recorded)))


def test_a_straight_run_is_folded_around_where_the_database_is() -> None:
    assert drawn(*line(20), recorded=("r10",)) == (
        "○ r20  pending\n⋮ 9 pending, down to r11\n● r10  ← the database is here\n⋮ 8 applied, down to r2\n● r1"
    )


def test_a_short_run_is_not_folded() -> None:
    assert drawn(*line(4), recorded=("r4",)).splitlines() == ["● r4  ← the database is here", "● r3", "● r2", "● r1"]


def test_branches_part_and_come_together() -> None:
    migrations = [Migration("a"), Migration("b", ("a",)), Migration("c", ("a",)), Migration("m", ("b", "c"))]
    assert drawn(*migrations, recorded=("b",)) == (
        "○ m  pending\n├─╮\n│ ○ c  pending\n● │ b  ← the database is here\n├─╯\n● a"
    )


def test_a_merge_of_three_and_lanes_that_are_crossed() -> None:
    migrations = [Migration("a"), *(Migration(name, ("a",)) for name in "bcd"), Migration("m", ("b", "c", "d"))]
    assert drawn(*migrations, recorded=("m",)) == (
        "● m  ← the database is here\n├─┼─╮\n│ │ ● d\n│ ● │ c\n● │ │ b\n├─┼─╯\n● a"
    )


def test_two_heads_without_a_common_root() -> None:
    migrations = [Migration("a"), Migration("b", ("a",)), Migration("x"), Migration("y", ("x",), ("b",))]
    assert drawn(*migrations, recorded=("b",)) == (
        "● b  ← the database is here\n● a\n○ y  (needs b)  pending\n○ x  pending"
    )


def test_what_is_lost_stands_on_top() -> None:
    rows = drawn(*line(2), recorded=("gone",)).splitlines()
    assert rows[0] == "✗ gone  recorded, and no file has it  ← the database is here"
    assert rows[1:] == ["○ r2  pending", "○ r1  pending"]


def test_broken_graphs_are_drawn_all_the_same() -> None:
    assert drawn(Migration("a", ("gone",))) == "○ a  (follows gone, which no file has)  pending"
    circle = drawn(Migration("a", ("b",)), Migration("b", ("a",)), Migration("c"))
    assert circle == "○ c  pending\n○ a  beyond the target  (in a circle)\n○ b  beyond the target  (in a circle)"
    assert draw(facts()) == []


def test_without_a_look_at_the_database_nothing_is_called_pending() -> None:
    graph = Graph(tuple(line(9)))
    assert draw(Facts(graph=graph), is_observed=False) == ["○ r9", "⋮ 7 more, down to r2", "○ r1"]


def test_what_there_is_is_counted() -> None:
    migrations = [Migration("a"), Migration("b", ("a",)), Migration("c", ("a",)), Migration("m", ("b", "c"))]
    assert counts(Graph(tuple(migrations))) == {"migrations": 4, "heads": 1, "merges": 1, "branch_points": 1}


def test_what_lies_beyond_the_target_is_said() -> None:
    graph = Graph(tuple(line(2)))
    assert draw(Facts(graph=graph, target_revisions=("r1",), recorded=("r1",)))[0] == "○ r2  beyond the target"


def test_in_ascii_every_sign_has_its_like() -> None:
    migrations = [Migration("a"), Migration("b", ("a",)), Migration("c", ("a",)), Migration("m", ("b", "c"))]
    rows = [in_ascii(row) for row in draw(facts(*migrations, recorded=("b",)))]
    assert rows == ["o m  pending", "|-\\", "| o c  pending", "* | b  <- the database is here", "|-/", "* a"]
    assert in_ascii("✗ ⋮ ü") == "x : ?"


def with_merges(count: int, merges: int) -> list[Migration]:
    """Make a history as teams have it: now and then somebody's two or three migrations are merged in."""
    made = [Migration("0")]
    last = "0"
    for n in range(1, merges + 1):
        for step in range(count // merges - 4):
            made.append(Migration(f"{n}.{step}", (last,)))
            last = made[-1].revision
        side = [Migration(f"{n}.a", (last,)), Migration(f"{n}.b", (f"{n}.a",)), Migration(f"{n}.main", (last,))]
        made += [*side, Migration(f"{n}.merge", (f"{n}.main", f"{n}.b"))]
        last = made[-1].revision
    return made


def test_five_hundred_revisions_with_thirty_merges_fit_a_screen_wherever_the_database_is() -> None:
    migrations = with_merges(500, 30)
    assert len(migrations) > 450
    for recorded in ((), ("0",), ("15.a",), ("15.merge",), ("30.3",), ("30.merge",), ("15.a", "15.main"), ("gone",)):
        rows = draw(facts(*migrations, recorded=recorded))
        assert len(rows) <= MOST_ROWS, recorded
        assert max(map(len, rows)) <= 80, recorded
        assert sum("the database is here" in row for row in rows) == len(recorded)
    assert draw(facts(*migrations, recorded=("30.merge",))) == [
        "● 30.merge  ← the database is here",
        "├─╮",
        "│ ● 30.b",
        "│ ● 30.a",
        "● │ 30.main",
        "├─╯",
        f"⋮ {len(migrations) - 4} applied, down to 0; 29 of them merges",
    ]


def test_every_migration_is_in_the_drawing_once() -> None:
    """Also where many lines are open at once: what is folded is counted."""
    import random
    import re

    chance = random.Random(6)
    for _ in range(50):
        migrations: list[Migration] = []
        for n in range(chance.randrange(1, 80)):
            below = chance.sample(migrations, min(len(migrations), chance.choice([0, 1, 1, 1, 1, 2, 3])))
            migrations.append(Migration(f"n{n}", tuple(each.revision for each in below)))
        graph = Graph(tuple(migrations))
        recorded = tuple(each.revision for each in chance.sample(migrations, 1))
        rows = draw(Facts(graph=graph, target_revisions=graph.heads, recorded=recorded))
        folded = sum(int(found[1]) for row in rows if (found := re.search(r"⋮[ │]* (\d+) ", row)))
        single = sum(bool(re.search(r"[●○][ │]* n\d+", row)) for row in rows)
        assert folded + single == len(migrations), rows
