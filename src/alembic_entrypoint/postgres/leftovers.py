"""What an interrupted migration leaves in a schema, and the statement that removes it."""

from __future__ import annotations

from typing import Any

import psycopg


def invalid_indexes(connection: psycopg.Connection[Any]) -> list[str]:
    """Name every INVALID index, as a killed or cancelled CREATE INDEX CONCURRENTLY leaves it. Catalog page: pg_index.

    One that is just being built by somebody else is not named. IF NOT EXISTS would take such an index for the
    real one [H14].
    """
    rows = connection.execute(
        """
        SELECT pg_catalog.format('INVALID index %I.%I on %s: DROP INDEX CONCURRENTLY %I.%I;',
                                 n.nspname, c.relname, i.indrelid::regclass, n.nspname, c.relname)
          FROM pg_catalog.pg_index AS i
          JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
          JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname !~ '^pg_'
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid)
         ORDER BY 1
        """
    )
    return [row[0] for row in rows]


def unvalidated_constraints(connection: psycopg.Connection[Any]) -> list[str]:
    """Name every constraint that is NOT VALID: rows from before it may break it. Catalog page: pg_constraint.

    One that is NOT ENFORCED (from 18 on) is so on purpose.
    """
    rows = connection.execute(
        """
        SELECT pg_catalog.format('NOT VALID constraint %I on %s: ALTER TABLE %s VALIDATE CONSTRAINT %I;',
                                 c.conname, c.conrelid::regclass, c.conrelid::regclass, c.conname)
          FROM pg_catalog.pg_constraint AS c
          JOIN pg_catalog.pg_class AS t ON t.oid = c.conrelid
          JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
         WHERE NOT c.convalidated AND c.conparentid = 0 AND n.nspname !~ '^pg_'
           AND pg_catalog.to_jsonb(c) ->> 'conenforced' IS DISTINCT FROM 'false'
         ORDER BY 1
        """
    )
    return [row[0] for row in rows]
