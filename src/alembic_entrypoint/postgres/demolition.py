"""Drop exactly what the migrations made, in one transaction that takes nothing else with it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.reading import Name

Connection = psycopg.Connection[Any]

#: An object by the oids of its catalog and of itself, and the number of its column; 0 is the object itself.
_Object = tuple[int, int, int]


class Entangled(Exception):
    """Dropping these would take others' objects with them; the message names those."""


class Changed(Exception):
    """Not the same is there any more as before; the message names what."""


@dataclass(frozen=True, order=True)
class Standing:
    """One thing that is there and can be dropped: what `DROP` calls its kind, its name, and which object it is."""

    word: str
    schema: str
    name: str
    catalog: int
    oid: int

    def __str__(self) -> str:
        word = "function" if self.word == "ROUTINE" else self.word.lower()
        return f"{word} {'.'.join(filter(None, (self.schema, self.name)))}"

    def statement(self) -> sql.Composed:
        """Write what drops it; nothing happens where another's CASCADE has taken it."""
        if self.word == "SCHEMA":
            # Without CASCADE: what is left in it is others'.
            return sql.SQL("DROP SCHEMA IF EXISTS {}").format(sql.Identifier(self.schema))
        if self.word == "ROUTINE":
            name: sql.Composable = sql.SQL("{}.{}").format(sql.Identifier(self.schema), sql.SQL(self.name))
        else:
            name = sql.Identifier(*filter(None, (self.schema, self.name)))
        return sql.SQL("DROP {} IF EXISTS {} CASCADE").format(sql.SQL(self.word), name)


#: In the order in which they are dropped. A routine is named with its arguments, as a snapshot has it. Catalog pages:
#: pg_class, pg_proc, pg_type, pg_extension, pg_namespace.
_STANDING = """
SELECT pg_catalog.json_agg(pg_catalog.json_build_array(kind, word, s, name, catalog, oid) ORDER BY place, s, name)::text
  FROM (SELECT 1 AS place, CASE relkind WHEN 'S' THEN 'sequence' ELSE 'relation' END AS kind,
               CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                            WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS word,
               n.nspname AS s, relname::text AS name, 'pg_class'::regclass::int8 AS catalog, c.oid::int8 AS oid
          FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
         WHERE relkind IN ('r', 'p', 'f', 'v', 'm') OR relkind = 'S' AND NOT EXISTS (  -- its column takes it along
               SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i'))
        UNION ALL
        SELECT 2, 'function', 'ROUTINE', n.nspname, quote_ident(proname) || '(' || oidvectortypes(proargtypes) || ')',
               'pg_proc'::regclass::int8, p.oid::int8
          FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace
        UNION ALL
        SELECT 3, 'type', 'TYPE', n.nspname, typname::text, 'pg_type'::regclass::int8, t.oid::int8
          FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = typnamespace
          LEFT JOIN pg_class AS c ON c.oid = typrelid
         WHERE typtype IN ('d', 'e', 'r') OR c.relkind = 'c'
        UNION ALL
        SELECT 4, 'extension', 'EXTENSION', '', extname::text, 'pg_extension'::regclass::int8, oid::int8
          FROM pg_extension
        UNION ALL
        SELECT 5, 'schema', 'SCHEMA', nspname, '', 'pg_namespace'::regclass::int8, oid::int8 FROM pg_namespace) AS all_
 WHERE oid >= 16384
"""
#: Every object that a CASCADE could take: it takes only what depends on something. Catalog page: pg_depend.
_DEPENDING = "SELECT DISTINCT classid::int8, objid::int8, objsubid FROM pg_catalog.pg_depend WHERE objid >= 16384"
#: What belongs to these objects and cannot be without them. A partition can be detached and holds rows, and what a
#: publication publishes is its owner's business: these do not belong to the table.
_BELONGING = """
WITH RECURSIVE belonging (catalog, oid) AS (
    SELECT * FROM unnest(%s::oid[], %s::oid[])
    UNION
    SELECT d.classid, d.objid
      FROM belonging AS b JOIN pg_depend AS d ON d.refclassid = b.catalog AND d.refobjid = b.oid
      LEFT JOIN pg_class AS c ON c.oid = d.objid AND d.classid = 'pg_class'::regclass
     WHERE d.deptype IN ('i', 'e', 'P', 'S')
        OR d.deptype = 'a' AND d.classid <> 'pg_publication_rel'::regclass
           AND coalesce(c.relkind NOT IN ('r', 'p', 'f', 'v', 'm'), true)
)
SELECT catalog::int8, oid::int8 FROM belonging
"""
#: Say what these objects are, without those that are there only because another of them is.
_DESCRIBED = """
WITH lost (catalog, oid, part) AS (SELECT * FROM unnest(%s::oid[], %s::oid[], %s::int[]))
SELECT pg_describe_object(catalog, oid, part) FROM lost
 WHERE NOT (part > 0 AND EXISTS (SELECT FROM lost AS w WHERE (w.catalog, w.oid, w.part) = (lost.catalog, lost.oid, 0)))
   AND NOT EXISTS (SELECT FROM pg_depend AS d JOIN lost AS o ON o.catalog = d.refclassid AND o.oid = d.refobjid
                                                            AND o.part IN (0, d.refobjsubid)
                    WHERE d.classid = lost.catalog AND d.objid = lost.oid AND d.deptype IN ('i', 'a', 'P', 'S'))
 ORDER BY 1
"""


def standing(connection: Connection, made: Collection[Name]) -> tuple[Standing, ...]:
    """Find what is there of what migrations made, in the order in which it can be dropped.

    In `made`, a function is named with its arguments, as a snapshot has it.
    """
    with connection.transaction():
        connection.execute(reading.setting_statement())
        # In binary form, in which a name that has no encoding stays what it is.
        row = connection.execute(_STANDING, binary=True).fetchone()
    found = json.loads(reading.text_of(row[0] if row else None, "surrogateescape") or "[]")
    return tuple(Standing(*each[1:]) for each in found if Name(each[0], each[2], each[3]) in made)


def drop(connection: Connection, shown: tuple[Standing, ...], made: Collection[Name]) -> None:
    """Drop what was shown with all that belongs to it, if it still is what is there of what migrations made.

    In the caller's transaction. Raises Changed, Entangled, psycopg.Error.
    """
    if other := {*shown} ^ {*standing(connection, made)}:
        raise Changed(", ".join(sorted(set(map(str, other)))))
    ours = frozenset(connection.execute(_BELONGING, [[e.catalog for e in shown], [e.oid for e in shown]]).fetchall())
    before = _depending(connection)
    try:
        with connection.transaction() as attempt:
            for each in shown:
                connection.execute(each.statement())
            lost = sorted(each for each in before - _depending(connection) if each[:2] not in ours)
            if lost:
                raise psycopg.Rollback(attempt)
    except psycopg.errors.DependentObjectsStillExist as error:
        raise Entangled(" ".join((error.diag.message_detail or str(error)).split())) from None
    if lost:
        described = connection.execute(_DESCRIBED, [list(each) for each in zip(*lost, strict=True)]).fetchall()
        raise Entangled(", ".join(reading.text_of(each[0]) for each in described))


def _depending(connection: Connection) -> frozenset[_Object]:
    return frozenset(connection.execute(_DEPENDING).fetchall())
