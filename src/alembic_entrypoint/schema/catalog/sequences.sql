-- https://www.postgresql.org/docs/current/catalog-pg-sequence.html
-- https://www.postgresql.org/docs/current/catalog-pg-depend.html
-- The owner is the column whose end is the sequence's: OWNED BY (a), or identity (i).
SELECT n.nspname AS schema, c.relname AS name, '' AS part,
       format_type(s.seqtypid, NULL) AS type,
       s.seqincrement AS step, s.seqmin AS minimum, s.seqmax AS maximum, s.seqstart AS start,
       s.seqcache AS "cache", s.seqcycle AS cycle,
       CASE c.relpersistence WHEN 'u' THEN 'unlogged' ELSE 'logged' END AS persistence,
       CASE WHEN a.attname IS NOT NULL THEN ARRAY[tn.nspname, t.relname, a.attname]::text[] END AS "owned by"
FROM pg_sequence s
JOIN pg_class c ON c.oid = s.seqrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_depend o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid AND o.objsubid = 0
     AND o.refclassid = 'pg_class'::regclass AND o.refobjsubid > 0 AND o.deptype IN ('a', 'i')
LEFT JOIN pg_class t ON t.oid = o.refobjid
LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = o.refobjid AND a.attnum = o.refobjsubid
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
