-- https://www.postgresql.org/docs/current/catalog-pg-trigger.html
-- Internal ones carry out constraints; clones on partitions (tgparentid) follow from the parent's.
SELECT n.nspname AS schema, c.relname AS name, g.tgname AS part,
       pg_get_triggerdef(g.oid) AS definition,
       CASE g.tgenabled WHEN 'O' THEN 'enabled' WHEN 'D' THEN 'disabled'
                        WHEN 'R' THEN 'enabled on a replica' WHEN 'A' THEN 'enabled always' END AS enabled
FROM pg_trigger g
JOIN pg_class c ON c.oid = g.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT g.tgisinternal AND g.tgparentid = 0
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
