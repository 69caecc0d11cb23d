-- https://www.postgresql.org/docs/current/catalog-pg-constraint.html
-- The definition tells deferrability, validity and enforcement; an index of the constraint can be invalid beside it.
-- Clones on partitions (conparentid) follow from the parent's; NOT NULL is in columns; constraint triggers
-- are in triggers; domains' constraints (conrelid = 0) are in domains.
SELECT n.nspname AS schema, c.relname AS name, k.conname AS part,
       pg_get_constraintdef(k.oid) AS definition,
       CASE WHEN k.contype IN ('p', 'u', 'x') THEN i.indisvalid ELSE true END AS valid
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = k.conindid
WHERE k.contype IN ('c', 'f', 'p', 'u', 'x') AND k.conparentid = 0
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
