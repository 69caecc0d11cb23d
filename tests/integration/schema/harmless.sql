-- Changes to the schema of rich.sql that do not count. Each begins with a line that says what changes,
-- the oldest PostgreSQL that can do it, where that is not 13, and why pg_dump tells otherwise, where it does.

--: column order
DROP TABLE app.by_list;
CREATE TABLE app.by_list (n integer, region text COLLATE "C") PARTITION BY LIST (lower(region) COLLATE "C");
CREATE TABLE app.by_list_eu PARTITION OF app.by_list FOR VALUES IN ('de', 'fr');
--: column order after a column was dropped and added again
ALTER TABLE users DROP price;
ALTER TABLE users ADD price money DEFAULT '1.5'::money;
--: a column that was there for a while
ALTER TABLE users ADD extra text DEFAULT 'x';
ALTER TABLE users DROP extra;
--: owner of a table
ALTER TABLE users OWNER TO pg_monitor;
--: owner of a schema
ALTER SCHEMA app OWNER TO pg_monitor;
--: owner of a function
ALTER FUNCTION doubled(integer) OWNER TO pg_monitor;
--: owner of a type
ALTER TYPE mood OWNER TO pg_monitor;
--: grants on a table
GRANT SELECT ON users TO pg_monitor;
--: grants on a column
GRANT UPDATE (email) ON users TO PUBLIC;
--: grants on a schema
GRANT ALL ON SCHEMA app TO pg_monitor;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
--: grants on a function
REVOKE ALL ON FUNCTION doubled(integer) FROM PUBLIC;
--: grants on a sequence and on a type
GRANT USAGE ON SEQUENCE app.ticket TO pg_monitor;
REVOKE USAGE ON TYPE mood FROM PUBLIC;
--: default privileges
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO PUBLIC;
--: comments
COMMENT ON TABLE users IS 'x';
COMMENT ON COLUMN users.email IS 'x';
COMMENT ON CONSTRAINT users_born ON users IS 'x';
COMMENT ON INDEX users_name_idx IS 'x';
COMMENT ON FUNCTION doubled(integer) IS 'x';
COMMENT ON SCHEMA public IS 'x';
COMMENT ON EXTENSION plpgsql IS 'x';
--: data
INSERT INTO users (email) VALUES ('a@example.org');
INSERT INTO app.log VALUES ('x');
--: a materialized view's data
REFRESH MATERIALIZED VIEW app.totals;
--: a large object
SELECT lo_create(0);
--: a sequence's position
SELECT setval('app.ticket', 100);
--: a sequence that was restarted
ALTER SEQUENCE users_id_seq RESTART WITH 1000;
--: a sequence that was used
SELECT nextval('users_id_seq');
--: statistics
INSERT INTO app.log SELECT n, now() FROM generate_series(1, 100) n;
ANALYZE app.log;
--: a column's statistics target
ALTER TABLE users ALTER email SET STATISTICS 500;
ALTER TABLE users ALTER email SET (n_distinct = 5);
--: extended statistics
CREATE STATISTICS app.more ON id, kind FROM users;
--: a tablespace, here named where it is the default one
UPDATE pg_class SET reltablespace = (SELECT oid FROM pg_tablespace WHERE spcname = 'pg_default')
WHERE oid IN ('app.log'::regclass, 'users_name_idx'::regclass);
--: storage parameters of a table
ALTER TABLE users SET (fillfactor = 50, autovacuum_enabled = false, toast.autovacuum_enabled = false);
--: storage parameters of an index
ALTER INDEX users_name_idx SET (fillfactor = 50);
ALTER INDEX users_tags_idx SET (fastupdate = off);
ALTER INDEX users_nickname_idx RESET (fillfactor);
--: storage parameters of a constraint's index
ALTER INDEX app.orders_during_excl RESET (fillfactor);
ALTER INDEX users_pkey SET (fillfactor = 50);
--: storage parameters of a materialized view
ALTER MATERIALIZED VIEW app.totals SET (fillfactor = 50);
--: a column's storage
ALTER TABLE users ALTER name SET STORAGE EXTERNAL;
--: a column's compression (since 14)
ALTER TABLE users ALTER name SET COMPRESSION pglz;
--: clustering
ALTER TABLE users CLUSTER ON users_pkey;
--: replica identity, full
ALTER TABLE users REPLICA IDENTITY FULL;
--: replica identity, by an index
ALTER TABLE app.orders REPLICA IDENTITY USING INDEX orders_pkey;
--: a function that an extension has
CREATE FUNCTION extra() RETURNS integer LANGUAGE sql AS 'SELECT 1';
ALTER EXTENSION plpgsql ADD FUNCTION extra();
--: a table that an extension has, with all its parts
CREATE TABLE extra (a integer PRIMARY KEY, b text DEFAULT 'x' CHECK (b <> ''));
CREATE INDEX ON extra (b);
CREATE TRIGGER same BEFORE UPDATE ON extra FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
CREATE RULE nothing AS ON DELETE TO extra DO INSTEAD NOTHING;
CREATE POLICY everybody ON extra;
ALTER EXTENSION plpgsql ADD TABLE extra;
--: types, a view, a sequence, an aggregate and a schema that an extension has
CREATE SCHEMA extra;
CREATE TYPE extra.label AS ENUM ('x');
CREATE TYPE extra.pair AS (a integer);
CREATE TYPE extra.span AS RANGE (subtype = integer);
CREATE DOMAIN extra.positive AS integer CHECK (VALUE > 0);
CREATE VIEW extra.one AS SELECT 1;
CREATE SEQUENCE extra.ticket;
CREATE AGGREGATE extra.glue(text) (SFUNC = textcat, STYPE = text);
ALTER EXTENSION plpgsql ADD TYPE extra.label;
ALTER EXTENSION plpgsql ADD TYPE extra.pair;
ALTER EXTENSION plpgsql ADD TYPE extra.span;
ALTER EXTENSION plpgsql ADD DOMAIN extra.positive;
ALTER EXTENSION plpgsql ADD VIEW extra.one;
ALTER EXTENSION plpgsql ADD SEQUENCE extra.ticket;
ALTER EXTENSION plpgsql ADD AGGREGATE extra.glue(text);
ALTER EXTENSION plpgsql ADD SCHEMA extra;
--: an extension's version
UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'plpgsql';
--: temporary objects
CREATE TEMPORARY TABLE users (id serial PRIMARY KEY, x text CHECK (x <> ''));
CREATE TEMPORARY VIEW kinds AS SELECT 1;
CREATE TEMPORARY SEQUENCE ticket;
CREATE TYPE pg_temp.mood AS ENUM ('x');
CREATE DOMAIN pg_temp.text AS varchar;
CREATE FUNCTION pg_temp.doubled(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
--: the ledger
CREATE SCHEMA alembic_entrypoint;
CREATE TABLE alembic_entrypoint.settlings (id bigserial PRIMARY KEY, at timestamptz DEFAULT now());
CREATE INDEX ON alembic_entrypoint.settlings (at);
--: the version table and its rows
CREATE TABLE alembic_version (version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num));
INSERT INTO alembic_version VALUES ('b891cb8863b5');
--: a partition that was detached and attached again (exception: it has an index more)
ALTER TABLE app.events DETACH PARTITION app.events_2020;
ALTER TABLE app.events ATTACH PARTITION app.events_2020
    FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2021-01-01 00:00:00+00');
--: a partition that was made by itself, with other names (exception: a clone's name does not count)
DROP TABLE app.events_2020;
CREATE TABLE app.events_2020 (
    user_id integer CONSTRAINT other_fk REFERENCES users (id),
    kind varchar(10) NOT NULL DEFAULT 'x' CONSTRAINT events_kind CHECK (kind IN ('x', 'y')),
    id bigint NOT NULL, at timestamptz NOT NULL,
    CONSTRAINT other_pkey PRIMARY KEY (id, at)
);
CREATE INDEX other_idx ON app.events_2020 (kind);
ALTER TABLE app.events ATTACH PARTITION app.events_2020
    FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2021-01-01 00:00:00+00');
--: an expression that was read back (exception: pg_dump has no normal form)
ALTER TABLE users DROP CONSTRAINT users_kind, ADD CONSTRAINT users_kind CHECK (((kind)::text =
    ANY (ARRAY[('user'::varchar)::text, ('admin'::varchar)::text, ('it''s (ARRAY['::varchar)::text])));
--: an index that was built again
REINDEX TABLE users;
--: constraints and indexes that were there for a while
ALTER TABLE users ADD CONSTRAINT extra UNIQUE (name), ADD CONSTRAINT extra2 CHECK (id > 5);
ALTER TABLE users DROP CONSTRAINT extra, DROP CONSTRAINT extra2;
--: names that came by another way
ALTER TABLE users RENAME TO people;
ALTER TABLE people RENAME email TO mail;
ALTER TABLE people RENAME mail TO email;
ALTER TABLE people RENAME TO users;
--: a clone's trigger that was disabled (exception: clones are left out)
ALTER TABLE app.events_rest DISABLE TRIGGER events_same;
--: an index on a partition that has another name (exception: clones are left out)
ALTER INDEX app.events_rest_kind_idx RENAME TO other_idx;
--: a constraint on a partition that has another name (exception: clones are left out)
ALTER TABLE app.events_rest RENAME CONSTRAINT events_rest_pkey TO other_pkey;
--: an inherited column that was made local too (exception: it is the same column)
ALTER TABLE app.derived NO INHERIT app.base;
ALTER TABLE app.derived INHERIT app.base;
--: where an extension is
UPDATE pg_extension SET extnamespace = 'app'::regnamespace WHERE extname = 'plpgsql';
--: kinds of objects that the snapshot leaves out (exception: they are none of those that count)
CREATE COLLATION app.french FROM "C";
CREATE OPERATOR app.@+@ (FUNCTION = app.joined, LEFTARG = text, RIGHTARG = text);
CREATE CAST (mood AS size) WITH INOUT;
CREATE TEXT SEARCH CONFIGURATION app.words (COPY = simple);
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE FOREIGN DATA WRAPPER extra;
CREATE SERVER extra FOREIGN DATA WRAPPER extra;
--: operator families and classes (exception: they are none of those that count)
CREATE OPERATOR FAMILY app.alike USING hash;
CREATE OPERATOR CLASS app.same FOR TYPE integer USING hash FAMILY app.alike AS OPERATOR 1 =, FUNCTION 1 hashint4(integer);
--: user mappings (exception: they are none of those that count)
CREATE USER MAPPING FOR PUBLIC SERVER elsewhere OPTIONS ("user" 'x');
--: event triggers (exception: they are none of those that count)
CREATE FUNCTION extra() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
ALTER EXTENSION plpgsql ADD FUNCTION extra();
CREATE EVENT TRIGGER extra ON ddl_command_start EXECUTE FUNCTION extra();
--: text search (exception: its objects are none of those that count)
CREATE TEXT SEARCH TEMPLATE app.extra (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH DICTIONARY app.extra (TEMPLATE = app.extra);
CREATE TEXT SEARCH PARSER app.extra (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end,
    LEXTYPES = prsd_lextype);
--: languages (exception: they are none of those that count)
CREATE TRUSTED LANGUAGE extra HANDLER plpgsql_call_handler INLINE plpgsql_inline_handler VALIDATOR plpgsql_validator;
--: access methods, and that of a table (exception: they are none of those that count)
CREATE ACCESS METHOD extra TYPE TABLE HANDLER heap_tableam_handler;
DROP TABLE app.by_hash_0;
SET default_table_access_method = extra;
CREATE TABLE app.by_hash_0 PARTITION OF app.by_hash FOR VALUES WITH (MODULUS 2, REMAINDER 0);
--: names of NOT NULL constraints (since 18)
ALTER TABLE users RENAME CONSTRAINT users_email_not_null TO other;
ALTER TABLE users ALTER tags DROP NOT NULL, ADD CONSTRAINT another NOT NULL tags;
ALTER DOMAIN app.email RENAME CONSTRAINT email_not_null TO other;
