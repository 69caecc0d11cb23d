-- https://www.postgresql.org/docs/current/catalog-pg-index.html
-- An index that a constraint made is told by the constraint; one attached to a partitioned index
-- (relispartition) follows from that.
SELECT n.nspname AS schema, c.relname AS name, x.relname AS part,
       pg_get_indexdef(i.indexrelid) AS definition,
       i.indisvalid AS valid
FROM pg_index i
JOIN pg_class x ON x.oid = i.indexrelid
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT x.relispartition
  AND c.relkind IN ('r', 'p', 'm')
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_constraint k
                  WHERE k.contype IN ('p', 'u', 'x') AND k.conindid = i.indexrelid)
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
