"""What a worker says of image and database, as facts. No I/O here."""

from __future__ import annotations

import fnmatch

from alembic_entrypoint.errors import Misconfigured
from alembic_entrypoint.facts import Facts, Graph, Inputs, Migration, VersionTable
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.worker.messages import Message


def facts_of(observed: Message, settings: Settings, known: Graph | None = None) -> Facts:
    """Build the facts from what the worker said, with the migrations that are `known` where it does not repeat them.

    Raises Misconfigured where the target means nothing.
    """
    graph = known if known is not None and observed["migrations"] is None else graph_of(observed)
    return Facts(
        graph=graph,
        unloadable=tuple(observed["unloadable"]),
        target=settings.target,
        target_revisions=_target_revisions(settings.target, graph, observed),
        recorded=tuple(sorted(observed["recorded"])),
        version_table=VersionTable(**observed["version_table"]),
        search_path=tuple(observed["search_path"]),
        tables=tuple(each for each in observed["tables"] if not is_ignored(each, settings.ignore)),
        inputs=_inputs(observed["inputs"]),
    )


def graph_of(message: Message) -> Graph:
    """Build the graph from what the worker said."""
    return Graph(
        tuple(
            Migration(
                each["revision"],
                tuple(each["parents"]),
                tuple(each["depends_on"]),
                tuple(each["replaces"]),
                each["oldest_compatible"],
                each["path"],
                each["doc"],
            )
            for each in message["migrations"]
        )
    )


def _inputs(told: Message) -> Inputs:
    return Inputs(tuple(told["folders"]), tuple(told["variables"]), told["is_fixed"])


def _target_revisions(target: str, graph: Graph, observed: Message) -> tuple[str, ...]:
    if target in ("head", "heads"):
        return graph.heads
    if observed["target_revisions"] is not None:
        return tuple(observed["target_revisions"])
    if graph.migrations and target not in graph.known:
        raise Misconfigured(
            f"ALEMBIC_ENTRYPOINT_TARGET is {target!r}, which no migration in this image has. "
            "It must be head, heads, <branch>@head or one exact revision."
        )
    return (target,)


def is_ignored(table: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a table, as `schema.name`, belongs to others."""
    return any(fnmatch.fnmatchcase(table, pattern) for pattern in patterns)
