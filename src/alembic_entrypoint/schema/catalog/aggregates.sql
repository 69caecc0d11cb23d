-- https://www.postgresql.org/docs/current/catalog-pg-aggregate.html
SELECT n.nspname AS schema, quote_ident(p.proname) || '(' || oidvectortypes(p.proargtypes) || ')' AS name, '' AS part,
       CASE g.aggkind WHEN 'n' THEN 'aggregate' WHEN 'o' THEN 'ordered-set aggregate'
                      ELSE 'hypothetical-set aggregate' END AS kind,
       pg_get_function_arguments(p.oid) AS arguments,
       pg_get_function_result(p.oid) AS returns,
       CASE p.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END AS parallel,
       ARRAY[format_type(g.aggtranstype, NULL), format_type(NULLIF(g.aggmtranstype, 0), NULL)] AS "state types",
       ARRAY[g.aggtransfn, g.aggfinalfn, g.aggcombinefn, g.aggserialfn, g.aggdeserialfn,
             g.aggmtransfn, g.aggminvtransfn, g.aggmfinalfn]::text[] AS functions,
       ARRAY[g.agginitval, g.aggminitval] AS "initial values",
       ARRAY[g.aggtransspace, g.aggmtransspace] AS "state sizes",
       ARRAY[g.aggfinalextra::text, g.aggmfinalextra::text, g.aggfinalmodify::text, g.aggmfinalmodify::text]
         AS "final functions",
       CASE WHEN g.aggsortop <> 0 THEN g.aggsortop::regoperator::text END AS "sort operator"
FROM pg_aggregate g
JOIN pg_proc p ON p.oid = g.aggfnoid
JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
