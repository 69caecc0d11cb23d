-- Functions whose bodies are parsed when they are made, from PostgreSQL 14 on. After expressions.sql.
CREATE TABLE w (id int, v varchar(20), w text);
CREATE FUNCTION g(a varchar, b int) RETURNS boolean LANGUAGE sql RETURN a IN ('a', 'b') AND b = ANY (ARRAY[1, 2]);
CREATE FUNCTION h(a varchar) RETURNS SETOF w LANGUAGE sql BEGIN ATOMIC
    SELECT * FROM w WHERE v IN ('a', 'b');
    INSERT INTO w (v) VALUES ('x') RETURNING *;
END;
CREATE PROCEDURE p(a varchar) LANGUAGE sql BEGIN ATOMIC UPDATE w SET v = a WHERE v IN ('a', 'b'); END;
