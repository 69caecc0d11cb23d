"""The questions about a schema that any driver can ask, in the middle of a transaction. No I/O here.

`snapshot` reads with psycopg, which is not there in every app; a worker asks the same questions of whatever driver
`env.py` uses, and has the server write the answers as JSON, so that all drivers give the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from alembic_entrypoint.schema.catalog import FILES, questions
from alembic_entrypoint.schema.facts import Kind, Pattern, Snapshot, Thing, Value, ignoring
from alembic_entrypoint.schema.texts import normal

#: Everything in a session, role or database that changes what the server prints [R15]. pg_temp is last, so that no
#: temporary object hides another.
SETTINGS: Mapping[str, str] = {
    "search_path": "pg_catalog, pg_temp",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "bytea_output": "hex",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "xmlbinary": "base64",
    "statement_timeout": "0",
    "jit": "off",  # compiling these queries takes longer than running them
}
#: Attributes that are float4: as JSON 100 would be another number than 100.0.
_FLOATS = ("cost", "rows")


class Name(NamedTuple):
    """One name that a schema holds: of a schema, extension, relation, sequence, type, or function without arguments."""

    kind: str
    schema: str
    name: str


#: The oids of pg_namespace and pg_extension.
_NAMESPACES, _EXTENSIONS = 2615, 3079
#: What belongs to an extension, by the oid of its catalog.
_MEMBERS = (
    f"SELECT objid FROM pg_catalog.pg_depend WHERE refclassid = {_EXTENSIONS} AND classid = {{}} AND deptype = 'e'"
)


class _Catalog(NamedTuple):
    """Where names of objects are: the server's own have lower oids."""

    name: str
    #: the catalog's own oid
    oid: int
    #: one letter for what it is, and the oid of its schema, as SQL
    kind: str
    column: str
    where: str


#: Whether a column owns a sequence is not asked, which would take longer than all the rest. Pages: pg_class, pg_type,
#: pg_proc, pg_depend.
_CATALOGS = (
    _Catalog(
        "pg_class",
        1259,
        "CASE relkind WHEN 'c' THEN 't' WHEN 'S' THEN 's' ELSE 'r' END || relnamespace",
        "relname",
        "relkind IN ('r', 'p', 'f', 'v', 'm', 'c', 'S')",
    ),
    _Catalog("pg_type", 1247, "'t' || typnamespace", "typname", "typtype IN ('d', 'e', 'r')"),
    _Catalog("pg_proc", 1255, "'f' || pronamespace", "proname", "true"),
)
#: Schemas and extensions, which are few, as lines. Pages: pg_namespace, pg_extension.
_PLACES = f"""
    SELECT CASE WHEN oid IN ({_MEMBERS.format(_NAMESPACES)}) THEN 'm' ELSE 'n' END || oid
           || pg_catalog.chr(31) || nspname
      FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    UNION ALL
    SELECT 'e' || pg_catalog.chr(31) || extname FROM pg_catalog.pg_extension
"""
#: Every name, in one row and one text. A line is a kind, the oid of its schema, and a name; schemas are lines of their
#: own.
NAMES = (
    "SELECT pg_catalog.string_agg(line, pg_catalog.chr(30)) FROM ("
    + " UNION ALL ".join(
        f"SELECT {each.kind} || pg_catalog.chr(31) || {each.column} AS line FROM pg_catalog.{each.name} "
        f"WHERE oid >= 16384 AND {each.where} AND oid NOT IN ({_MEMBERS.format(each.oid)})"
        for each in _CATALOGS
    )
    + f" UNION ALL {_PLACES}) AS lines"
)


def _counted(what: str, catalogs: Iterable[int]) -> str:
    return " + ".join(f"pg_catalog.pg_stat_get_xact_tuples_{what}({each})" for each in catalogs)


def _newest(each: _Catalog) -> str:
    return f"""
    SELECT line, oid FROM (
        SELECT oid, CASE WHEN {each.where} THEN {each.kind} || pg_catalog.chr(31) || {each.column} END AS line
          FROM pg_catalog.{each.name} ORDER BY oid DESC LIMIT (SELECT GREATEST(1 + now.came, 1) FROM now)
    ) AS {each.name}"""


_OBJECTS = tuple(each.oid for each in _CATALOGS)
_ALL = (*_OBJECTS, _NAMESPACES, _EXTENSIONS)

#: What has come since the last answer in the same session, asked after each migration, of which each adds a few. Gives
#: names as lines, and whether that is all: nothing else came, changed or went, and no schema or extension.
#:
#: New rows have the highest oids, and the server counts for each transaction how many came, changed and went. It may
#: also count what was rolled back again, and not what other sessions do. As long as extensions have as many members as
#: before, nothing new is theirs. What was seen last is kept as a setting of the session, which a rollback takes back.
#: Pages: "Statistics Functions", pg_depend.
NEW_NAMES = f"""
WITH seen AS MATERIALIZED (
    SELECT s[1]::oid AS oid, s[2]::bigint AS came, s[3] AS others
      FROM pg_catalog.string_to_array(pg_catalog.current_setting('alembic_entrypoint.seen', true), ' ') AS s
), now AS MATERIALIZED (
    SELECT {_counted("inserted", _OBJECTS)} - seen.came AS came, seen.oid, seen.others AS others_seen,
           pg_catalog.concat_ws(':', pg_catalog.current_setting('track_counts'), pg_catalog.pg_current_xact_id(),
               {_counted("updated", _ALL)}, {_counted("deleted", _ALL)},
               {_counted("inserted", (_NAMESPACES, _EXTENSIONS))},
               (SELECT pg_catalog.count(*) FROM pg_catalog.pg_depend
                 WHERE refclassid = {_EXTENSIONS} AND deptype = 'e')) AS others
      FROM seen
), newest AS MATERIALIZED ({" UNION ALL ".join(map(_newest, _CATALOGS))})
SELECT pg_catalog.string_agg(line, pg_catalog.chr(30)) FILTER (WHERE newest.oid > now.oid),
       (min(now.others) = min(now.others_seen) AND min(now.others) LIKE 'on:%'
           AND min(now.came) = pg_catalog.count(*) FILTER (WHERE newest.oid > now.oid))::text,
       pg_catalog.set_config('alembic_entrypoint.seen', pg_catalog.concat_ws(' ',
           max(newest.oid), {_counted("inserted", _OBJECTS)}, min(now.others)), false)
  FROM now, newest
"""
_KINDS = {"r": "relation", "s": "sequence", "t": "type", "f": "function"}


def text_of(answer: str | bytes | None, errors: str = "backslashreplace") -> str:
    """Read a text; that of an SQL_ASCII database has no encoding, and psycopg gives its bytes."""
    return answer.decode("utf-8", errors) if isinstance(answer, bytes) else answer or ""


def lines_of(answer: str | bytes | None) -> frozenset[str]:
    """Cut the answer to `NAMES` into its lines."""
    return frozenset(text_of(answer).split("\x1e"))


def is_schema_line(line: str) -> bool:
    """Tell whether a line names a schema, with which others are read."""
    return line[:1] in ("n", "m")


def names_of(answer: str | bytes | None, ignore: Collection[Pattern]) -> frozenset[Name]:
    """Read the answer to `NAMES`, without what is ignored."""
    return names_in(lines_of(answer), ignore)


def names_in(lines: Collection[str], ignore: Collection[Pattern]) -> frozenset[Name]:
    """Read lines of the answer to `NAMES`, those of the schemas among them, without what is ignored."""
    is_ignored = ignoring(ignore)
    parts = [(line[:1], *line[1:].split("\x1f")) for line in lines if line]
    schemas = {oid: name for kind, oid, name in parts if kind in ("n", "m")}
    found = [Name("schema", name, "") for kind, _, name in parts if kind == "n"]
    found += [Name("extension", "", name) for kind, _, name in parts if kind == "e"]
    found += [Name(_KINDS[kind], schemas[oid], name) for kind, oid, name in parts if kind in _KINDS and oid in schemas]
    return frozenset(each for each in found if not is_ignored(each.schema, each.name))


def setting_statement() -> str:
    """Set what the answers depend on until the end of the transaction, or of a savepoint that is rolled back."""
    return "SELECT " + ", ".join(
        f"pg_catalog.set_config('{name}', '{value}', true)" for name, value in SETTINGS.items()
    )


def snapshot_statement() -> str:
    """Ask everything that a snapshot holds, in one statement, which sees the schema as it is at one moment."""
    columns = (f"(SELECT pg_catalog.json_agg(q) FROM ({each}\n) AS q)" for each in questions())
    return f"SELECT pg_catalog.json_build_array({', '.join(columns)})::text"


def snapshot_of(answer: str | bytes, major: int) -> Snapshot:
    """Read the answer to `snapshot_statement`."""
    facts: dict[Thing, Mapping[str, Value]] = {}
    for (kind, _), rows in zip(FILES, json.loads(text_of(answer, "surrogateescape")), strict=True):
        for row in rows or ():
            thing = Thing(kind, row.pop("schema"), row.pop("name"), row.pop("part"))
            facts[thing] = normal(kind, {name: _value(name, value) for name, value in row.items()})
    return Snapshot(major, facts)


def _value(name: str, value: Any) -> Value:
    if isinstance(value, list):
        return tuple(value)
    return float(value) if name in _FLOATS and value is not None else value


#: Tables with pages, which may hold rows: an empty one has none, so that few are looked into.
_TABLES_WITH_PAGES = """
SELECT pg_catalog.json_agg(pg_catalog.json_build_array(n.nspname, c.relname,
                                                       pg_catalog.format('%I.%I', n.nspname, c.relname)))::text
  FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.oid >= 16384 AND c.relkind = 'r' AND n.nspname !~ '^pg_' AND pg_catalog.pg_relation_size(c.oid) > 0
"""
#: Tables in one question, so that its text does not grow without end.
_TABLES_AT_ONCE = 200


def with_rows(ask: Callable[[str], str | bytes | None], ignore: Collection[Pattern]) -> list[tuple[str, str]]:
    """Name the tables, as (schema, name), that hold at least one row; `ask` gives the one value of an answer."""
    is_ignored = ignoring(ignore)
    tables = [each for each in json.loads(text_of(ask(_TABLES_WITH_PAGES)) or "[]") if not is_ignored(each[0], each[1])]
    found: list[tuple[str, str]] = []
    for at in range(0, len(tables), _TABLES_AT_ONCE):
        part = tables[at : at + _TABLES_AT_ONCE]
        each = (f"SELECT {n} AS n WHERE EXISTS (SELECT FROM ONLY {table[2]})" for n, table in enumerate(part))
        answer = ask(f"SELECT pg_catalog.string_agg(n::text, ' ') FROM ({' UNION ALL '.join(each)}) AS t")
        found += [(part[int(n)][0], part[int(n)][1]) for n in text_of(answer).split()]
    return sorted(found)


def encoded(snapshot: Snapshot) -> dict[str, Any]:
    """Write a snapshot as JSON can hold it."""
    return {"major": snapshot.major, "facts": [[*thing, dict(told)] for thing, told in snapshot.facts.items()]}


def decoded(document: Mapping[str, Any]) -> Snapshot:
    """Read it back."""
    facts = {
        Thing(Kind(kind), *identity): {name: _value(name, _tuples(value)) for name, value in told.items()}
        for kind, *identity, told in document["facts"]
    }
    return Snapshot(document["major"], facts)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
