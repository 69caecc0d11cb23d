"""What a role may do in a database, of what this program and its migrations need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from alembic_entrypoint.facts import VersionTable


@dataclass(frozen=True)
class Right:
    """One right: whether the role has it, what it is for, and the statement that gives it."""

    name: str
    has: bool
    #: without it migrations cannot run here; without the others we do less
    is_needed: bool
    why: str
    remedy: str

    def document(self) -> dict[str, Any]:
        """Write it as JSON has it."""
        return {
            "name": self.name,
            "has": self.has,
            "needed": self.is_needed,
            "why": self.why,
            "remedy": None if self.has else self.remedy,
        }


# Catalog pages: "System Information Functions", pg_class, pg_roles. The schema or table may not be there.
_RIGHTS = """
SELECT pg_catalog.quote_ident(current_user), pg_catalog.quote_ident(pg_catalog.current_database()),
       pg_catalog.quote_ident(%(schema)s), s.oid IS NOT NULL,
       coalesce(pg_catalog.has_schema_privilege(s.oid, 'USAGE'), false),
       coalesce(pg_catalog.has_schema_privilege(s.oid, 'CREATE'), false),
       v.oid::regclass::text,
       (SELECT pg_catalog.array_agg(p.name) FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (name)
         WHERE NOT pg_catalog.has_table_privilege(v.oid, p.name)),
       foreigners.tables, foreigners.owners, foreigners.of_superusers,
       (SELECT pg_catalog.array_agg(c.oid::regclass::text ORDER BY c.oid) FROM pg_catalog.pg_class AS c
          JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'm', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
           AND NOT CASE c.relkind WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                   ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END),
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
       r.rolcreatedb OR r.rolsuper, pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
  FROM pg_catalog.pg_roles AS r
  LEFT JOIN pg_catalog.pg_namespace AS s ON s.nspname = %(schema)s
  LEFT JOIN pg_catalog.pg_class AS v ON v.relnamespace = s.oid AND v.relname = %(table)s
  CROSS JOIN LATERAL (
       SELECT pg_catalog.array_agg(c.oid::regclass::text ORDER BY c.relname) AS tables,
              pg_catalog.array_agg(DISTINCT pg_catalog.quote_ident(o.rolname)) FILTER (WHERE NOT o.rolsuper) AS owners,
              pg_catalog.array_agg(c.oid::regclass::text ORDER BY c.relname) FILTER (WHERE o.rolsuper) AS of_superusers
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_roles AS o ON o.oid = c.relowner
        WHERE c.relnamespace = s.oid AND c.relkind IN ('r', 'p') AND c.oid IS DISTINCT FROM v.oid
          AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.classid = 'pg_catalog.pg_class'::regclass
                             AND d.objid = c.oid AND d.deptype = 'e')) AS foreigners
 WHERE r.rolname = current_user
"""


def rights(connection: psycopg.Connection[Any], table: VersionTable) -> list[Right]:
    """See what our role may do, in the schema of the version table."""
    row = connection.execute(_RIGHTS, {"schema": table.resolved_schema, "table": table.name}).fetchone()
    assert row is not None
    role, database, schema, exists, uses, creates, versions, lacking, foreign, owners, *others = row
    of_superusers, unread, makes_schemas, makes_databases, reads_all = others
    has_role = connection.info.server_version >= 140000
    reading = "pg_read_all_data" if has_role else f"SELECT ON {', '.join(unread or ())}"
    found = [
        Right(
            f"USAGE and CREATE on schema {schema}",
            uses and creates,
            True,
            "migrations make tables in it" if versions else "Alembic makes its version table in it, migrations theirs",
            f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};"
            if exists
            else f"CREATE SCHEMA {schema} AUTHORIZATION {role};",
        ),
        Right(
            "ownership of the tables",
            not foreign,
            False,
            "only the owner may change or drop a table" + (f": not ours are {_some(foreign)}" if foreign else ""),
            " ".join(
                # Who were given a superuser's role could do everything; a superuser misses nothing without the table.
                ([f"GRANT {', '.join(owners)} TO {role};"] if owners else [])
                + [f"ALTER TABLE {table} OWNER TO {role};" for table in of_superusers or ()]
            ),
        ),
        Right(
            "SELECT on every table and sequence",
            not unread,
            False,
            "a backup reads all of them" + (f": we may not read {_some(unread)}" if unread else ""),
            f"GRANT {reading} TO {role};",
        ),
        Right(
            f"CREATE on database {database}",
            makes_schemas,
            False,
            "the ledger, and migrations that make schemas or extensions",
            f"GRANT CREATE ON DATABASE {database} TO {role};",
        ),
        Right("CREATEDB", makes_databases, False, "scratch databases for a proof", f"ALTER ROLE {role} CREATEDB;"),
        Right(
            "pg_read_all_stats",
            reads_all,
            False,
            "to see what the sessions of other roles are doing",
            f"GRANT pg_read_all_stats TO {role};",
        ),
    ]
    if versions:
        words = ", ".join(lacking or ["SELECT", "INSERT", "UPDATE", "DELETE"])
        remedy = f"GRANT {words} ON {versions} TO {role};"
        found.insert(0, Right(f"{words} on {versions}", not lacking, True, "revisions are recorded in it", remedy))
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
