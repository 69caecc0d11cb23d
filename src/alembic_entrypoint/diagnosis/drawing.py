"""Draw migrations as a graph of text, newest first, long straight runs folded. Pure: values in, lines out.

A row for each migration, a lane for each line of them that is still open, as `git log --graph` has it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from alembic_entrypoint.facts import Facts, Graph

#: Straight runs of at least so many are folded into one row.
FOLDED_FROM = 4
#: A drawing of more rows is folded further: whole stretches between two migrations that everything leads through.
MOST_ROWS = 40


class Mark(Enum):
    """What a row is, by the sign that stands for it."""

    APPLIED = "●"
    PENDING = "○"
    LOST = "✗"


FOLD = "⋮"
LANE, JOINS, ENDS, BEGINS, ALONG, CROSS = "│├╯╮─┼"
HERE = "← the database is here"
_ASCII = str.maketrans(
    {"●": "*", "○": "o", "✗": "x", "⋮": ":", "✓": " ", "←": "<-"} | dict(zip("│├╯╮─┼", "||/\\-+", strict=True))
)


def in_ascii(line: str) -> str:
    """Write a row for a terminal that has no Unicode."""
    return line.translate(_ASCII).encode("ascii", "replace").decode()


@dataclass(frozen=True)
class Node:
    """One row: a migration, or a folded run of them."""

    name: str
    mark: Mark
    text: str
    parents: tuple[str, ...]
    #: what several of them are called
    word: str
    #: how many migrations it stands for, and how many of them are merges
    count: int = 1
    merges: int = 0
    oldest: str = ""


def draw(facts: Facts, *, is_observed: bool = True) -> list[str]:
    """Draw the image's migrations, where the database is, what is pending and what is lost.

    Where no database was observed, what is pending cannot be told.
    """
    keep = {*facts.recorded, *facts.graph.heads, *facts.target_revisions}
    nodes = _in_order(_folded(_nodes(facts, is_observed), keep))
    if len(nodes) > MOST_ROWS:
        nodes = _folded_between_waists(nodes, keep)
    nodes = [replace(n, text=f"{n.text}  {HERE}") if n.name in facts.recorded else n for n in nodes]
    lost = [f"{Mark.LOST.value} {each}  recorded, and no file has it  {HERE}" for each in facts.unknown]
    return lost + _rows(nodes)


def _nodes(facts: Facts, is_observed: bool) -> list[Node]:
    pending = set(facts.pending)
    nodes = []
    for each in facts.graph.migrations:
        mark = Mark.APPLIED if each.revision in facts.applied else Mark.PENDING
        notes = [each.revision, each.doc]
        if each.depends_on:
            notes.append(f"(needs {', '.join(each.depends_on)})")
        if absent := [parent for parent in each.parents if parent not in facts.graph.known]:
            notes.append(f"(follows {', '.join(absent)}, which no file has)")
        if mark is Mark.PENDING and is_observed:
            notes.append("pending" if each.revision in pending else "beyond the target")
        parents = tuple(dict.fromkeys(parent for parent in each.parents if parent in facts.graph.known))
        text = "  ".join(note for note in notes if note)
        word = "applied" if mark is Mark.APPLIED else "pending" if is_observed else "more"
        nodes.append(Node(each.revision, mark, text, parents, word, merges=len(parents) > 1))
    return nodes


def _folded(nodes: Sequence[Node], keep: Collection[str]) -> list[Node]:
    """Replace each long run of nodes that say no more than their neighbours by one."""
    by_name = {each.name: each for each in nodes}
    children = _children(nodes)

    def is_plain(node: Node) -> bool:
        return len(node.parents) == 1 and len(children.get(node.name, ())) == 1 and node.name not in keep

    folds: dict[str, Node] = {}
    gone: set[str] = set()
    for node in nodes:
        if not is_plain(node) or node.name in gone:
            continue
        child = by_name[children[node.name][0]]
        if is_plain(child) and child.mark is node.mark:
            continue  # not the first of its run
        run = [node]
        while is_plain(below := by_name[run[-1].parents[0]]) and below.mark is node.mark and below is not node:
            run.append(below)
        if len(run) >= FOLDED_FROM:
            folds[node.name] = _fold(run, run[-1].parents)
            gone.update(each.name for each in run)
    return [folds.get(each.name, each) for each in nodes if each.name in folds or each.name not in gone]


def _fold(run: Sequence[Node], parents: tuple[str, ...]) -> Node:
    """Make one node of several, of which the first is the newest."""
    count, merges = sum(each.count for each in run), sum(each.merges for each in run)
    text = f"{count} {run[0].word}, down to {run[-1].oldest or run[-1].name}"
    if merges:
        text += f"; {merges} of them {'merges' if merges > 1 else 'is a merge'}"
    return Node(
        run[0].name, run[0].mark, text, parents, run[0].word, count, merges, oldest=run[-1].oldest or run[-1].name
    )


def _folded_between_waists(ordered: Sequence[Node], keep: Collection[str]) -> list[Node]:
    """Replace what lies between two waists by one node: a waist is a node that alone is awaited when its turn comes."""
    awaited: set[str] = set()
    stretches: list[list[Node]] = [[]]
    for node in ordered:
        awaited.discard(node.name)
        if not awaited:
            stretches.append([])
        stretches[-1].append(node)
        awaited.update(node.parents)
    rows: list[Node] = []
    run: list[Node] = []
    for stretch in filter(None, stretches):
        is_plain = not any(each.name in keep for each in stretch) and len({each.mark for each in stretch}) == 1
        if not is_plain or (run and run[0].mark is not stretch[0].mark):
            rows += _one(run)
            run = []
        if is_plain:
            run += stretch
        else:
            rows += stretch
    return rows + _one(run)


def _one(run: Sequence[Node]) -> list[Node]:
    """Fold a run, should that make it shorter."""
    return [_fold(run, run[-1].parents)] if len(run) > 1 else list(run)


def _children(nodes: Iterable[Node]) -> dict[str, list[str]]:
    children: dict[str, list[str]] = {}
    for each in nodes:
        for parent in each.parents:
            children.setdefault(parent, []).append(each.name)
    return children


def _in_order(nodes: Sequence[Node]) -> list[Node]:
    """Put children before their parents, one line to its end before the next, so that few lanes are open at once."""
    by_name = {each.name: each for each in nodes}
    waits = {name: len(children) for name, children in _children(nodes).items()}
    stack = [each.name for each in reversed(nodes) if not waits.get(each.name)]
    ordered = []
    while stack:
        node = by_name[stack.pop()]
        ordered.append(node)
        for parent in node.parents:
            waits[parent] -= 1
            if waits[parent] == 0:
                stack.append(parent)
    circle = {each.name for each in nodes} - {each.name for each in ordered}
    return ordered + [replace(n, text=f"{n.text}  (in a circle)", parents=()) for n in nodes if n.name in circle]


def _rows(nodes: Sequence[Node]) -> list[str]:
    rows: list[str] = []
    lanes: list[str | None] = []
    for node in nodes:
        mine = [n for n, awaited in enumerate(lanes) if awaited == node.name]
        if not mine:
            mine = [_free(lanes)]
        here, *others = mine
        if others:
            rows.append(_joint(lanes, here, others, ENDS))
        for each in others:
            lanes[each] = None
        lanes[here] = node.name
        _trim(lanes)
        cells = [_sign(node) if n == here else LANE if lane else " " for n, lane in enumerate(lanes)]
        rows.append(f"{' '.join(cells)} {node.text}")
        lanes[here] = node.parents[0] if node.parents else None
        added = []
        for parent in node.parents[1:]:
            free = _free(lanes, after=here)
            lanes[free] = parent
            added.append(free)
        if added:
            rows.append(_joint(lanes, here, added, BEGINS))
        _trim(lanes)
    return rows


def _sign(node: Node) -> str:
    return FOLD if node.count > 1 else node.mark.value


def _free(lanes: list[str | None], after: int = -1) -> int:
    """Find a lane that nothing is drawn in, or open one."""
    for n, lane in enumerate(lanes):
        if n > after and lane is None:
            return n
    lanes.append(None)
    return len(lanes) - 1


def _trim(lanes: list[str | None]) -> None:
    while lanes and lanes[-1] is None:
        lanes.pop()


def _joint(lanes: Sequence[str | None], here: int, others: Collection[int], end: str) -> str:
    """Draw the row on which lanes come together, or part."""
    last = max(others)
    row = ""
    for n, lane in enumerate(lanes):
        if n == here:
            sign = JOINS
        elif n in others:
            sign = end if n == last else CROSS
        elif lane is not None:
            sign = CROSS if here < n < last else LANE
        else:
            sign = ALONG if here < n < last else " "
        row += sign + (ALONG if here <= n < last else " ")
    return row.rstrip()


def counts(graph: Graph) -> Mapping[str, int]:
    """Count what there is: migrations, heads, merges, and where branches part."""
    parents = [parent for each in graph.migrations for parent in each.parents]
    return {
        "migrations": len(graph.migrations),
        "heads": len(graph.heads),
        "merges": sum(len(each.parents) > 1 for each in graph.migrations),
        "branch_points": sum(parents.count(each) > 1 for each in graph.known),
    }
