-- https://www.postgresql.org/docs/current/catalog-pg-proc.html
-- The body of BEGIN ATOMIC (from 14 on) is not in prosrc: it is the end of pg_get_functiondef, and begins a line.
SELECT n.nspname AS schema, quote_ident(p.proname) || '(' || oidvectortypes(p.proargtypes) || ')' AS name, '' AS part,
       CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'w' THEN 'window function' ELSE 'function' END AS kind,
       pg_get_function_arguments(p.oid) AS arguments,
       pg_get_function_result(p.oid) AS returns,
       l.lanname AS language,
       CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END AS volatility,
       CASE WHEN p.prosecdef THEN 'definer' ELSE 'invoker' END AS security,
       CASE p.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END AS parallel,
       p.proisstrict AS strict, p.proleakproof AS leakproof, p.procost AS cost, p.prorows AS rows,
       CASE WHEN p.prosupport <> 0 THEN p.prosupport::regproc::text END AS support,
       ARRAY(SELECT unnest(p.proconfig) ORDER BY 1) AS settings,
       p.prosrc AS body,
       CASE WHEN p.prosrc = '' AND l.lanname = 'sql'
            THEN substring(pg_get_functiondef(p.oid) from '\n((BEGIN ATOMIC|RETURN ).*)$') END AS "sql body",
       p.probin AS library
FROM pg_proc p
JOIN pg_namespace n ON n.oid = p.pronamespace
JOIN pg_language l ON l.oid = p.prolang
WHERE p.prokind <> 'a'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i'))
