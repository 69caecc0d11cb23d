-- Expressions of every form that an app is likely to use, and the names that history leaves behind: all of them
-- must read the same after a dump and restore.

CREATE TYPE mood AS ENUM ('a','b');
CREATE DOMAIN dv AS varchar(10);
CREATE DOMAIN di AS bigint;
CREATE TYPE comp AS (x int, y varchar(3));
CREATE TABLE t (id int primary key, i2 smallint, i8 bigint, n numeric(8,2), f4 real, f8 float8, v
    varchar(20), c char(3), t text, nm name, b boolean, m mood, d dv, e di, ts timestamp, tz timestamptz(3),
    dt date, tm time, ttz timetz, iv interval day to second(2), js json, jb jsonb, va varchar(5)[], ia
    int[], ta text[], bt bit(4), vb varbit(9), u uuid, by bytea, ip inet, ch "char", cc comp, r int4range,
    mo money, o oid, rc regclass);
ALTER TABLE t  ADD CONSTRAINT c1 CHECK (v IN ('a'));
ALTER TABLE t ADD CONSTRAINT c2 CHECK (v NOT IN ('a','b'));
ALTER TABLE t ADD CONSTRAINT c3 CHECK (c IN ('a','b'));
ALTER TABLE t ADD CONSTRAINT c4 CHECK (d IN ('a','b'));
ALTER TABLE t ADD CONSTRAINT c5 CHECK (e IN (1,2));
ALTER TABLE t ADD CONSTRAINT c6 CHECK (i2 IN (1,2,-3));
ALTER TABLE t ADD CONSTRAINT c7 CHECK (n IN (1, 2.5));
ALTER TABLE t ADD CONSTRAINT c8 CHECK (m IN ('a','b'));
ALTER TABLE t ADD CONSTRAINT c9 CHECK (v = ANY('{a,b}'::varchar[]));
ALTER TABLE t ADD CONSTRAINT c10 CHECK (v = ANY('{a,b}'));
ALTER TABLE t ADD CONSTRAINT c11 CHECK (v = ANY(ARRAY['a','b']));
ALTER TABLE t ADD CONSTRAINT c12 CHECK (v = ANY(ARRAY['a','b']::varchar(5)[]));
ALTER TABLE t ADD CONSTRAINT c13 CHECK (v IN ('a','b') AND (b OR (i2 > 1 AND (i8 > 2 AND n < 3))));
ALTER TABLE t ADD CONSTRAINT c14 CHECK (NOT (b AND NOT b) OR b IS NOT TRUE);
ALTER TABLE t ADD CONSTRAINT c15 CHECK (i2 BETWEEN -1 AND +5);
ALTER TABLE t ADD CONSTRAINT c16 CHECK (v LIKE 'a%' OR v ILIKE 'b\%' ESCAPE '\' OR v NOT LIKE 'x' OR v
    SIMILAR TO 'a|b' OR v ~ '^a');
ALTER TABLE t ADD CONSTRAINT c17 CHECK (coalesce(v, t, c) IS DISTINCT FROM nullif(v,'x'));
ALTER TABLE t ADD CONSTRAINT c18 CHECK (f8 > 1e10 AND f4 > 0.1 AND f8 <> 'NaN' AND n > 1e-3 AND i8 >
    3000000000);
ALTER TABLE t ADD CONSTRAINT c19 CHECK (v::int > 3 AND cast(t as varchar(3)) = v AND (v::varchar(2))::text =
    'a');
ALTER TABLE t ADD CONSTRAINT c20 CHECK (CASE v WHEN 'a' THEN 1 WHEN 'b' THEN 2 ELSE 3 END > 1 AND CASE WHEN
    v IN ('a','b') THEN true END);
ALTER TABLE t ADD CONSTRAINT c21 CHECK ((id, i2) < (1, 2) AND ROW(id,i2) = ROW(1,2) AND (id,i8) IN
    ((1,2),(3,4)));
ALTER TABLE t ADD CONSTRAINT c22 CHECK (ts > 'now' AND ts < 'infinity' AND tz >= '2020-01-01' AND dt = date
    '2020-02-03' AND tm < '10:00' AND iv > interval '1 day' AND tz AT TIME ZONE 'UTC' > ts AND extract(year
    from ts) > 2000 AND date_part('year', ts) > 2000 AND (ts, ts) OVERLAPS (ts, iv));
ALTER TABLE t ADD CONSTRAINT c23 CHECK (jb ? 'a' AND jb ->> 'x' IN ('a','b') AND jb @> '{"a":1}' AND
    (js->>'x')::int IN (1,2) AND jb #>> '{a,b}' = 'x');
ALTER TABLE t ADD CONSTRAINT c24 CHECK (va[1] = 'a' AND 'a' = ANY(va) AND va::text[] <@
    ARRAY['a','b']::varchar[]::text[] AND va::text[] && ARRAY['a'::varchar]::text[] AND array_length(ia,1) =
    3 AND ia[1:2] = '{1,2}');
ALTER TABLE t ADD CONSTRAINT c25 CHECK (bt = B'1010' AND vb = X'1F'::varbit AND u =
    '00000000-0000-0000-0000-000000000000' AND by = '\x00' AND ch IN ('a','b') AND nm IN ('a','b'));
ALTER TABLE t ADD CONSTRAINT c26 CHECK ((cc).x > 1 AND (cc).y IN ('a','b') AND r @> 5 AND mo > '1' AND o IN
    (1,2));
ALTER TABLE t ADD CONSTRAINT c27 CHECK (length(trim(both from v)) > 0 AND substring(v from 1 for 2) = 'a'
    AND position('a' in v) > 0 AND overlay(v placing 'x' from 1) = 'y' AND upper(v) IN ('A','B') AND
    lower(t) = ANY(ARRAY['a','b']) AND greatest(i2,i8,n) > least(1,2) AND v || t || 'x' <> 'y' || v AND
    trim(v) = 'x' AND ltrim(t,'x') = '');
ALTER TABLE t ADD CONSTRAINT c28 CHECK (v IN ('a', t, c, nm));
ALTER TABLE t ADD CONSTRAINT c29 CHECK (v IN (t, 'x'));
ALTER TABLE t ADD CONSTRAINT c30 CHECK (i2 + i8 * -n - (- f8) / 2 > 0);
ALTER TABLE t ADD CONSTRAINT c31 CHECK ((v COLLATE "C") IN ('a','b') AND v COLLATE "POSIX" < 'x');
ALTER TABLE t ADD CONSTRAINT c32 CHECK (ip << '10.0.0.0/8' AND rc = 't'::regclass AND current_date > dt AND
    CURRENT_TIMESTAMP > tz AND LOCALTIMESTAMP(2) > ts AND current_user = nm AND session_user <> 'x');
ALTER TABLE t ADD CONSTRAINT c33 CHECK (v = SOME (string_to_array('a,b', ',')));
ALTER TABLE t ADD CONSTRAINT c34 CHECK (v IN ('a''b', 'c"d', E'e\\f\n', 'g),h]', 'i::text[]'));
ALTER TABLE t ADD CONSTRAINT c35 CHECK (v <> ALL (ARRAY['a'::varchar, NULL]) AND (ARRAY['a','b'])[1] = v AND
    v = ANY((ARRAY['a','b'] || ARRAY['c'])::text[]) AND v = ANY(ARRAY[ARRAY['a','b'],ARRAY['c','d']]));
ALTER TABLE t ADD CONSTRAINT c40 CHECK (v = ANY (ARRAY['a','b']::varchar(3)[]::text[]));
ALTER TABLE t ADD CONSTRAINT c41 CHECK (va::text[] @> ARRAY['x'] AND va::text[] =
    ARRAY['a','b']::varchar[]::text[] AND ia::bigint[] = ARRAY[1,2]::bigint[] AND ARRAY[v, 'x']::text[] = ta
    AND ARRAY[d,'y']::text[] = ta AND ta = ARRAY[v,v]::text[] AND ARRAY[id,i2]::bigint[] = '{1}'::bigint[]);
ALTER TABLE t ADD CONSTRAINT c42 CHECK (array_position(ARRAY['a','b']::varchar[], v) > 0 AND concat(v,'x',1)
    = t AND format('%s', v) = t AND v IN (upper('a'), 'b') AND ARRAY[[v,'b'],['c',v]]::text[] = ta AND
    (ARRAY[v,v])::text[] = ta AND (ARRAY[[v,v],[v,v]])::text[] = ta);
ALTER TABLE t ADD CONSTRAINT c43 CHECK (v IN ('x'::varchar(3), 'y'::text));
ALTER TABLE t ADD CONSTRAINT c44 CHECK (c IN ('a', v));
ALTER TABLE t ADD CONSTRAINT c45 CHECK (d IN ('a'::dv, 'b'));
ALTER TABLE t ADD CONSTRAINT c46 CHECK (va::text[] IN (ARRAY['a'], ARRAY['b'], ta));
ALTER TABLE t ALTER i2 SET DEFAULT -1;
ALTER TABLE t ALTER n SET DEFAULT -1.50;
ALTER TABLE t ALTER v SET DEFAULT 'a'::text || 'b';
ALTER TABLE t ALTER c SET DEFAULT 'ab';
ALTER TABLE t ALTER t SET DEFAULT 'x'::varchar(3);
ALTER TABLE t ALTER b SET DEFAULT 't';
ALTER TABLE t ALTER m SET DEFAULT 'a';
ALTER TABLE t ALTER d SET DEFAULT 'x';
ALTER TABLE t ALTER ts SET DEFAULT now();
ALTER TABLE t ALTER tz SET DEFAULT CURRENT_TIMESTAMP;
ALTER TABLE t ALTER iv SET DEFAULT '1 day';
ALTER TABLE t ALTER va SET DEFAULT '{}';
ALTER TABLE t ALTER ia SET DEFAULT ARRAY[]::int[];
ALTER TABLE t ALTER ta SET DEFAULT ARRAY['a','b']::varchar[]::text[];
ALTER TABLE t ALTER cc SET DEFAULT ROW(1,'x');
ALTER TABLE t ALTER f8 SET DEFAULT 1;
ALTER TABLE t ALTER f4 SET DEFAULT '1.1';
ALTER TABLE t ALTER i8 SET DEFAULT 3000000000;
ALTER TABLE t ALTER bt SET DEFAULT B'1';
ALTER TABLE t ALTER jb SET DEFAULT '{}'::json::jsonb;
ALTER TABLE t ALTER dt SET DEFAULT (now() AT TIME ZONE 'utc')::date;
ALTER TABLE t ALTER tm SET DEFAULT '1:2';
ALTER TABLE t ALTER ttz SET DEFAULT '01:02+03';
ALTER TABLE t ALTER r SET DEFAULT '[1,2]';
ALTER TABLE t ALTER mo SET DEFAULT 1;
ALTER TABLE t ALTER nm SET DEFAULT 'x';
ALTER TABLE t ALTER ch SET DEFAULT 'x';
ALTER TABLE t ALTER vb SET DEFAULT B'1'::bit(4);
ALTER TABLE t ALTER e SET DEFAULT 1;
ALTER TABLE t ALTER o SET DEFAULT 5;
ALTER TABLE t ADD CONSTRAINT c50 CHECK (ta = ARRAY[[v,v],[v,'x']]::varchar[]::text[] AND (id,i8) NOT IN
    ((1,2),(3,4),(5,6)) AND id NOT IN (i2,i8,3) AND v = ANY(ARRAY[v,t,c]) AND v = ANY(ARRAY[v,nm]) AND ta =
    (ARRAY[v,v]::varchar[])::text[] AND v IN ('a,b', 'c, d', '[e', v || 'x, y'));
ALTER TABLE t ADD CONSTRAINT c51 CHECK (v::numeric(10,2)::text IN ('a') AND ARRAY[n,
    n]::numeric(8,2)[]::numeric(4,1)[] = ARRAY[n]::numeric(4,1)[] AND
    (ARRAY[v]::varchar(3)[]::varchar(2)[])::text[] = va::text[] AND ARRAY[ts]::timestamp[]::timestamptz[] =
    ARRAY[tz] AND (ta::varchar(3)[])::text[] = ta AND ARRAY['a','b']::varchar[]::mood[] = ARRAY[m] AND
    ARRAY['2020-01-01','2020-01-01']::text[]::timestamp(3) without time zone[] = ARRAY[ts] AND ((b OR b) OR
    (b OR b)) AND (b AND (b AND b)) AND ((b AND b) OR b OR b));
CREATE TABLE u (id int, v varchar(20), w text);
CREATE VIEW v1 AS SELECT * FROM t JOIN u USING (id, v);
CREATE VIEW v2 AS SELECT a.*, b.w AS ww, (SELECT max(v) FROM u WHERE u.id = a.id AND u.v IN ('a','b')) FROM
    t a LEFT JOIN LATERAL (SELECT * FROM u WHERE u.id = a.id LIMIT 1) b ON true WHERE EXISTS (SELECT 1 FROM
    u x WHERE x.v = a.v) AND a.v NOT IN (SELECT v FROM u) ORDER BY 1, a.v DESC NULLS LAST OFFSET 2;
CREATE VIEW v3 AS WITH RECURSIVE q(n) AS (VALUES (1) UNION ALL SELECT n+1 FROM q WHERE n < 5) SELECT n,
    row_number() OVER w, sum(n) FILTER (WHERE n > 1) OVER (PARTITION BY n ORDER BY n ROWS BETWEEN 1
    PRECEDING AND CURRENT ROW) FROM q WINDOW w AS (ORDER BY n);
CREATE VIEW v4 AS SELECT 'x' AS a, NULL AS b, 1 UNION SELECT v, w, id FROM u INTERSECT SELECT 'a', 'b', 3
    EXCEPT SELECT 'c', 'd', 4 ORDER BY 1;
CREATE VIEW v5 AS SELECT v, count(*), string_agg(DISTINCT w, ',' ORDER BY w), array_agg(id ORDER BY id
    DESC), percentile_cont(0.5) WITHIN GROUP (ORDER BY id), grouping(v) FROM u GROUP BY ROLLUP (v), CUBE(w)
    HAVING count(*) > 1;
CREATE VIEW v6 AS SELECT DISTINCT ON (u.v) u.*, u AS whole FROM u TABLESAMPLE bernoulli (10) NATURAL JOIN t
    AS tt(id) CROSS JOIN generate_series(1,3) WITH ORDINALITY g(a,b), unnest(ARRAY['a','b']::varchar[]) un,
    ROWS FROM (generate_series(1,2), json_to_recordset('[]') AS (x int, y varchar(3))) rf;
CREATE VIEW v7 AS VALUES (1,'a'),(2,'b');
CREATE VIEW v8 AS SELECT * FROM v1 WHERE v IN ('a','b');
CREATE VIEW v9 AS SELECT t.v = u.v AS "?x", CASE WHEN t.v IN ('a','b') THEN 'x' ELSE u.v END, coalesce(t.v,
    'x'), t.v || 'x' AS c1, interval '1' day, timestamp '2020-01-01', '2020-01-01'::timestamptz, -1 as mm, -
    1 as m1, +1 as p1, 5 as five, 1.0 a1, 1e3 a2, 'a'::char a3, x'ff' a4, NOT true a5,
    t.id::text::varchar(3) a6, (t.id)::numeric(3,1) a7, array[1,2]::bigint[] a8, u.id IN (1,2,3) a9,
    array['a','b']::varchar[]::text[] aa FROM t, u WHERE t.id = u.id;
ALTER TABLE u RENAME v TO v_new;
ALTER TABLE t RENAME TO t_new;
ALTER TABLE u ADD z int;
ALTER TABLE t_new RENAME id TO ident;
CREATE RULE r1 AS ON INSERT TO v7 DO INSTEAD (INSERT INTO u(id, v_new) SELECT NEW.column1, 'x' WHERE
    NEW.column2 IN ('a','b'); UPDATE u SET v_new = 'y', (id, w) = (1, 'x') WHERE v_new IN ('a','b'); DELETE
    FROM u USING t_new WHERE t_new.v = u.v_new; NOTIFY foo);
CREATE INDEX i1 ON t_new ((v IN ('a','b')), (v::text || 'x') COLLATE "C" DESC, (lower(v)) text_pattern_ops)
    WHERE v IN ('a','b') OR d IN ('a','b');
CREATE INDEX i2 ON t_new USING gin (to_tsvector('english', t), jb jsonb_path_ops) WITH (fastupdate=off);
CREATE INDEX i3 ON t_new USING brin (ident) WITH (pages_per_range=4);
CREATE INDEX i4 ON t_new (ident) TABLESPACE pg_default;
CREATE FUNCTION f1(a varchar DEFAULT 'x', b varchar[] DEFAULT ARRAY['a','b'], c text DEFAULT CASE WHEN
    'a'::varchar IN ('a','b') THEN 'y' END, d timestamptz DEFAULT now()) RETURNS TABLE (x int, y varchar(3))
    LANGUAGE sql AS 'select 1, $1';
