-- https://www.postgresql.org/docs/current/catalog-pg-attribute.html
-- https://www.postgresql.org/docs/current/catalog-pg-attrdef.html
-- PostgreSQL 18 keeps NOT NULL as constraints (contype n), whose names depend on the table's history [R15]:
-- only what they mean is read here.
SELECT n.nspname AS schema, c.relname AS name, a.attname AS part,
       format_type(a.atttypid, a.atttypmod) AS type,
       CASE WHEN NOT a.attnotnull THEN 'nullable'
            WHEN NOT nn.convalidated THEN 'not null not valid'
            WHEN nn.connoinherit THEN 'not null no inherit'
            ELSE 'not null' END AS "null",
       CASE WHEN a.attgenerated = '' THEN pg_get_expr(ad.adbin, ad.adrelid) END AS "default",
       CASE a.attidentity WHEN 'a' THEN 'always' WHEN 'd' THEN 'by default' END AS identity,
       CASE WHEN a.attgenerated <> '' THEN pg_get_expr(ad.adbin, ad.adrelid)
            || CASE a.attgenerated WHEN 's' THEN ' stored' ELSE ' virtual' END END AS generated,
       CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END AS "collation",
       CASE WHEN a.attfdwoptions IS NOT NULL
            THEN ARRAY(SELECT unnest(a.attfdwoptions) ORDER BY 1) END AS "foreign options"
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
LEFT JOIN pg_constraint nn ON nn.contype = 'n' AND nn.conrelid = a.attrelid AND nn.conkey[1] = a.attnum
WHERE a.attnum > 0 AND NOT a.attisdropped
  AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
