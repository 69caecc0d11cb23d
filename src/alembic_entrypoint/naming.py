"""Whether a name that says no schema means the same in scratch as on the target. No I/O here.

Where it does not, the replay makes its tables in one schema, and the target has them in another: then there is nothing
on the target of what the replay has made, and yet everything.
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic_entrypoint.comparison import Live, Replayed, Visited
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.schema.reading import Name


def searched(facts: Facts) -> frozenset[Name]:
    """Name the schemas that scratch needs before the first migration, so that the search path leads there too.

    Those before the one that has the version table were not there when it was made; a migration may have made them.
    """
    path, table = facts.search_path, facts.version_table
    if table.exists and table.schema is None and table.resolved_schema in path:
        path = path[path.index(table.resolved_schema) :]
    return frozenset(Name("schema", each, "") for each in path if each != "public" and not each.startswith("pg_"))


def misled(replay: Sequence[Visited], facts: Facts) -> str | None:
    """Say how a name means something else in a replay than on the target; None where it does not.

    A schema that the migrations make comes onto the path with them, in a replay as on the target.
    """
    made = {name.schema for visit in replay[1:] for name in visit.added if name.kind == "schema"}
    first, table = replay[0], facts.version_table
    path = tuple(each for each in facts.search_path if each not in made)
    if _counting(replay, facts) != path:
        return _misleads(path, first.search_path)
    if first.version_schema != table.resolved_schema and table.resolved_schema not in made:
        return (
            f"the version table {table} of the target would be made in {first.version_schema} now, where the search "
            f"path {_written(facts.search_path)} leads first: so the tables may be in either. Say which is "
            f"meant, with version_table_schema={table.resolved_schema!r} in env.py, or a search_path that begins there"
        )
    return None


def doubt_of_base(replayed: Replayed, live: Live, facts: Facts) -> str | None:
    """Say why what no revision has made may be theirs all the same; None where it cannot be."""
    path, replay = facts.search_path, replayed.replays[0]
    if _counting(replay, facts) != path:
        return _misleads(path, replay[0].search_path)
    ours = {(each.kind, each.name) for each in replayed.made if each.schema in path}
    namesakes = sorted(each for each in live.names if each.schema in path and (each.kind, each.name) in ours)
    if namesakes:
        named = ", ".join(f"{each.schema}.{each.name}" for each in namesakes)
        return (
            f"the migrations would make what is named like {named} in another schema of the search path "
            f"{_written(path)}. If it is this app's: mend the search_path; if it is another app's: name it in "
            "ALEMBIC_ENTRYPOINT_IGNORE"
        )
    return None


def _counting(replay: Sequence[Visited], facts: Facts) -> tuple[str, ...]:
    """Leave out of scratch's path what is not on the target's, and where the replay has made nothing.

    That is `public`, where the target has none, or none for this role, and all is said with its schema.
    """
    used = {each.schema for visit in replay[1:] for each in visit.added if each.kind not in ("schema", "extension")}
    return tuple(each for each in replay[0].search_path if each in used or each in facts.search_path)


def _misleads(here: Sequence[str], scratch: Sequence[str]) -> str:
    return (
        f"a name without a schema is looked up in {_written(here)} on the target, and in {_written(scratch)} in "
        "scratch, so that tables would be compared with others of the same name. Give the role the same search_path "
        "and the same schemas on both servers, or say the schema in the migrations and in env.py"
    )


def _written(path: Sequence[str]) -> str:
    return ", ".join(path) or "no schema"
