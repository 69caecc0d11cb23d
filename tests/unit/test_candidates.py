"""Every set of revisions that could be recorded is on the way of some replay, or is named."""

from __future__ import annotations

from itertools import combinations

import pytest

from alembic_entrypoint import candidates
from alembic_entrypoint.candidates import MOST_REPLAYS, route
from alembic_entrypoint.facts import Graph, Migration


def graph(*beneath: str) -> Graph:
    """Make a graph of lines such as `c: a b`."""
    pairs = (each.partition(":")[::2] for each in beneath)
    return Graph(tuple(Migration(name, tuple(parents.split())) for name, parents in pairs))


DIAMOND = graph("a:", "l:a", "r:a", "m:l r")


def visited(orders: tuple[tuple[str, ...], ...]) -> set[frozenset[str]]:
    return {frozenset(order[:n]) for order in orders for n in range(len(order) + 1)}


def downsets(tree: Graph) -> set[frozenset[str]]:
    """Find every set that has, with each migration, what lies beneath: slowly, and in another way."""
    names = sorted(tree.known)
    subsets = (frozenset(each) for n in range(len(names) + 1) for each in combinations(names, n))
    return {each for each in subsets if all(set(tree.by_revision[name].beneath) <= each for name in each)}


@pytest.mark.parametrize("tree", [graph(), graph("a:"), graph("a:", "b:a", "c:b"), graph("c:b", "a:", "b:a")])
def test_a_line_is_replayed_as_alembic_does(tree: Graph) -> None:
    found = route(tree)
    assert (found.orders, found.unvisited, found.is_complete) == (((),), (), True)


TREES = {
    "two heads": graph("a:", "b:a", "c:a"),
    "two roots": graph("a:", "b:"),
    "a diamond": DIAMOND,
    "a merge and more": graph("a:", "l:a", "l2:l", "r:a", "r2:r", "m:l2 r2", "z:m"),
    "two diamonds": graph("a:", "l:a", "r:a", "m:l r", "x:m", "y:m", "n:x y"),
    "depends_on": Graph((Migration("a"), Migration("b"), Migration("c", ("a",), depends_on=("b",)))),
    "three branches": graph("a:", "b:", "c:", "d:a b c"),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_every_set_is_visited(tree: Graph) -> None:
    found = route(tree)
    assert found.is_complete
    assert found.unvisited == ()
    for order in found.orders:
        assert sorted(order) == sorted(tree.known)
        assert all(set(tree.by_revision[each].beneath) <= set(order[:n]) for n, each in enumerate(order))
    assert visited(found.orders) == downsets(tree)


def test_two_diamonds_on_each_other_need_no_more_replays_than_one() -> None:
    assert len(route(DIAMOND).orders) == len(route(TREES["two diamonds"]).orders) == 2


def test_what_so_many_replays_do_not_visit_is_named() -> None:
    tree = graph(*(f"{name}:" for name in "abcdefgh"))
    found = route(tree)
    assert (len(found.orders), found.is_complete) == (MOST_REPLAYS, False)
    assert {frozenset(each) for each in found.unvisited} == downsets(tree) - visited(found.orders)


def test_more_sets_than_can_be_counted_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST_SETS", 5)
    found = route(DIAMOND)
    assert (found.orders, found.unvisited, found.is_complete) == (((),), (), False)
    monkeypatch.setattr(candidates, "MOST_SETS", 6)
    assert route(DIAMOND).is_complete
