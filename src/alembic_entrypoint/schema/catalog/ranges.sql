-- https://www.postgresql.org/docs/current/catalog-pg-range.html
-- A range's multirange (from 14 on) depends on it internally; rngmultitypid is not there on 13.
SELECT n.nspname AS schema, t.typname AS name, '' AS part, 'range type' AS kind,
       format_type(r.rngsubtype, NULL) AS subtype,
       quote_ident(pn.nspname) || '.' || quote_ident(o.opcname) AS "operator class",
       CASE WHEN r.rngcollation <> s.typcollation THEN r.rngcollation::regcollation::text END AS "collation",
       CASE WHEN r.rngcanonical <> 0 THEN r.rngcanonical::regproc::text END AS canonical,
       CASE WHEN r.rngsubdiff <> 0 THEN r.rngsubdiff::regproc::text END AS "subtype difference",
       (SELECT format_type(m.oid, NULL) FROM pg_depend d JOIN pg_type m ON m.oid = d.objid AND m.typtype = 'm'
        WHERE d.classid = 'pg_type'::regclass AND d.refclassid = 'pg_type'::regclass
          AND d.refobjid = t.oid AND d.deptype = 'i') AS multirange
FROM pg_range r
JOIN pg_type t ON t.oid = r.rngtypid
JOIN pg_type s ON s.oid = r.rngsubtype
JOIN pg_opclass o ON o.oid = r.rngsubopc
JOIN pg_namespace pn ON pn.oid = o.opcnamespace
JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
