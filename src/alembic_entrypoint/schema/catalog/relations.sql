-- https://www.postgresql.org/docs/current/catalog-pg-class.html
-- https://www.postgresql.org/docs/current/catalog-pg-inherits.html
-- https://www.postgresql.org/docs/current/catalog-pg-foreign-table.html
-- The text of a regclass, unlike what the catalogs hold, sorts as the database does.
-- Of the options only a view's are read: those of tables and materialized views are storage parameters.
SELECT n.nspname AS schema, c.relname AS name, '' AS part,
       CASE c.relkind WHEN 'r' THEN 'table'
                      WHEN 'p' THEN 'partitioned table'
                      WHEN 'f' THEN 'foreign table'
                      WHEN 'v' THEN 'view'
                      WHEN 'm' THEN 'materialized view' END AS kind,
       CASE c.relpersistence WHEN 'u' THEN 'unlogged' ELSE 'logged' END AS persistence,
       CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END AS "partition key",
       CASE WHEN c.relispartition THEN parents.names[1] END AS "partition of",
       CASE WHEN c.relispartition THEN pg_get_expr(c.relpartbound, c.oid) END AS bounds,
       CASE WHEN NOT c.relispartition THEN parents.names END AS inherits,
       CASE WHEN c.reloftype <> 0 THEN format_type(c.reloftype, NULL) END AS "of type",
       c.relrowsecurity AS "row security",
       c.relforcerowsecurity AS "forced row security",
       CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END AS definition,
       CASE WHEN c.relkind = 'v' THEN ARRAY(SELECT unnest(c.reloptions) ORDER BY 1) END AS options,
       s.srvname AS server,
       ARRAY(SELECT unnest(f.ftoptions) ORDER BY 1) AS "foreign options"
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN (SELECT i.inhrelid,
                  array_agg(i.inhparent::regclass::text ORDER BY i.inhparent::regclass::text COLLATE "C") AS names
           FROM pg_inherits i GROUP BY i.inhrelid) parents ON parents.inhrelid = c.oid
LEFT JOIN pg_foreign_table f ON f.ftrelid = c.oid
LEFT JOIN pg_foreign_server s ON s.oid = f.ftserver
WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
