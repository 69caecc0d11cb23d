-- https://www.postgresql.org/docs/current/catalog-pg-extension.html
-- By name only: version and schema are the administrator's.
SELECT '' AS schema, e.extname AS name, '' AS part
FROM pg_extension e
