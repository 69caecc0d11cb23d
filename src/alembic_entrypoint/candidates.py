"""Which sets of revisions Alembic could have recorded, and in which orders a replay visits them. No I/O here.

A set is written as a number, one bit for each migration that is applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from alembic_entrypoint.facts import Graph

#: Replays are the cost: each visits one set of every size.
MOST_REPLAYS = 16
#: Sets grow with the product of the branches' lengths; beyond this nobody waits for a proof.
MOST_SETS = 4096


@dataclass(frozen=True)
class Route:
    """The orders in which to replay, and what they do not visit."""

    #: each has every revision; an empty one is Alembic's own
    orders: tuple[tuple[str, ...], ...]
    #: sets that no order visits, each by its newest revisions; where there are too many to count, none is named
    unvisited: tuple[tuple[str, ...], ...] = ()
    is_complete: bool = True


def route(graph: Graph) -> Route:
    """Find orders that visit every set, or as many as so many replays can. A line needs one, which is Alembic's."""
    if _is_line(graph):
        return Route(((),))
    names = [each.revision for each in graph.migrations]
    sets = _sets(graph, names)
    if sets is None:
        return Route(((),), is_complete=False)
    left = set(sets)
    orders: list[tuple[str, ...]] = []
    while left and len(orders) < MOST_REPLAYS:
        order, visited = _longest(sets, left, len(names))
        orders.append(tuple(names[bit] for bit in order))
        left -= visited
    unvisited = tuple(_newest(graph, names, each) for each in sorted(left))
    return Route(tuple(orders), unvisited, is_complete=not left)


def _is_line(graph: Graph) -> bool:
    """Tell whether each migration follows the one before it: then every set is visited on the way."""
    follows = [each.beneath for each in graph.migrations]
    beneath = [parents[0] for parents in follows if parents]
    return all(len(parents) <= 1 for parents in follows) and len(beneath) == len(set(beneath)) == len(follows) - 1


def _sets(graph: Graph, names: list[str]) -> dict[int, list[int]] | None:
    """Find every set with the migrations that can be applied next; None where there are too many. Small ones first."""
    bit = {name: n for n, name in enumerate(names)}
    needs = [sum(1 << bit[parent] for parent in set(each.beneath)) for each in graph.migrations]
    found: dict[int, list[int]] = {}
    waiting = [0]
    seen = {0}
    while waiting:
        following: list[int] = []
        for each in waiting:
            nexts = [n for n, need in enumerate(needs) if not each >> n & 1 and need & each == need]
            found[each] = nexts
            for larger in (each | 1 << n for n in nexts):
                if larger not in seen:
                    seen.add(larger)
                    following.append(larger)
        if len(seen) > MOST_SETS:
            return None
        waiting = following
    return found


def _longest(sets: dict[int, list[int]], left: set[int], length: int) -> tuple[list[int], set[int]]:
    """Find the order that visits most of what is left, and what it visits."""
    best: dict[int, tuple[int, int]] = {}
    for each in reversed(sets):
        ways = [(best[each | 1 << n][0], -n) for n in sets[each]]
        gain, way = max(ways, default=(0, 0))
        best[each] = (gain + (each in left), -way)
    order: list[int] = []
    here, visited = 0, {0}
    while len(order) < length:
        order.append(best[here][1])
        here |= 1 << order[-1]
        visited.add(here)
    return order, visited


def _newest(graph: Graph, names: list[str], which: int) -> tuple[str, ...]:
    """Write a set as a version table would."""
    return tuple(newest(graph, [name for n, name in enumerate(names) if which >> n & 1]))


def newest(graph: Graph, revisions: list[str]) -> Iterator[str]:
    """Give those of these revisions that lie beneath none of the others."""
    beneath = {parent for each in revisions for parent in graph.by_revision[each].beneath}
    return (each for each in revisions if each not in beneath)
