-- https://www.postgresql.org/docs/current/catalog-pg-namespace.html
SELECT n.nspname AS schema, '' AS name, '' AS part
FROM pg_namespace n
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
