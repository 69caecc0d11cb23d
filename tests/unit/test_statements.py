"""Which statements reach beyond one database, and which only look so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alembic_entrypoint.worker import statements
from alembic_entrypoint.worker.statements import beyond, commits

BEYOND = [
    ("CREATE ROLE app", "CREATE ROLE"),
    ("alter  user app\nPASSWORD 'x'", "ALTER USER"),
    ("DROP GROUP g", "DROP GROUP"),
    ("CREATE TABLE t (id int); CREATE DATABASE x", "CREATE DATABASE"),
    ("ALTER DATABASE app SET search_path = x", "ALTER DATABASE"),
    ("CREATE TABLESPACE t LOCATION '/x'", "CREATE TABLESPACE"),
    ("ALTER SYSTEM SET work_mem = '1GB'", "ALTER SYSTEM"),
    ("DROP SUBSCRIPTION s", "DROP SUBSCRIPTION"),
    ("REASSIGN OWNED BY a TO b", "REASSIGN OWNED"),
    ("DROP OWNED BY a", "DROP OWNED"),
    ("COMMENT ON DATABASE app IS 'x'", "COMMENT ON DATABASE"),
    ("GRANT CONNECT ON DATABASE app TO x", "GRANT CONNECT ON DATABASE"),
    ("GRANT admin TO app", "GRANT ADMIN TO"),
    ("REVOKE admin FROM app", "REVOKE ADMIN FROM"),
    ("/* '*/ ALTER /* x */ ROLE a", "ALTER ROLE"),
    ("SELECT '--'; DROP ROLE a", "DROP ROLE"),
    ("SELECT E'\\''; DROP ROLE a --'", "DROP ROLE"),
    ("DO $$ BEGIN ALTER ROLE a SUPERUSER; END $$", "ALTER ROLE"),
    ("DO $x$ BEGIN EXECUTE 'ALTER ROLE a'; END $x$", "ALTER ROLE"),
    ("DO $x$ BEGIN EXECUTE format('GRANT %I TO b', 'a'); END $x$", "GRANT %I TO"),
    ("DO 'BEGIN EXECUTE ''CREATE DATABASE x''; END'", "CREATE DATABASE"),
    ("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE ROLE x; END $$", "CREATE ROLE"),
    ("COPY t FROM PROGRAM 'id'", "COPY T FROM PROGRAM"),
    ("COPY (SELECT 1 FROM t) TO '/tmp/x'", "COPY (SELECT 1 FROM T) TO"),
    ("DO $$ BEGIN EXECUTE format('COPY t TO %L', '/x'); END $$", "COPY T TO %L"),
    ("SELECT dblink_exec('dbname=prod', 'DROP TABLE t')", "DBLINK_EXEC"),
    ("SELECT * FROM dblink ('x', 'y') AS t(a int)", "DBLINK"),
    ("CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw", "CREATE SERVER"),
    ("IMPORT FOREIGN SCHEMA s FROM SERVER x INTO y", "IMPORT FOREIGN SCHEMA"),
    ("SELECT pg_terminate_backend(pid) FROM pg_stat_activity", "PG_TERMINATE_BACKEND"),
    ("SELECT pg_catalog.pg_reload_conf()", "PG_RELOAD_CONF"),
    ("ALTER TABLE t ADD x text DEFAULT pg_read_file('/etc/passwd')", "PG_READ_FILE"),
    ("SELECT pg_create_physical_replication_slot('x')", "PG_CREATE_PHYSICAL_REPLICATION_SLOT"),
    ("SELECT 1 -- a comment ends here\r; ALTER ROLE a", "ALTER ROLE"),
    ("-- what follows is a body\nDO $$ BEGIN ALTER ROLE a; END $$", "ALTER ROLE"),
    (r"DO E'BEGIN EXECUTE ''\x41LTER\tROLE a''; END'", "ALTER ROLE"),
    (r"DO $$ BEGIN EXECUTE E'\101\u004cTER ROLE a'; END $$", "ALTER ROLE"),
    (r"DO U&'BEGIN EXECUTE ''\0041LTER ROLE a''; END'", "ALTER ROLE"),
    (r"DO $$ BEGIN EXECUTE U&'!+000041LTER ROLE a' UESCAPE '!'; END $$", "ALTER ROLE"),
    ("SELECT \"dblink_exec\"('dbname=prod', 'DROP TABLE t')", "DBLINK_EXEC"),
    ('SELECT pg_catalog."pg_terminate_backend" (1)', "PG_TERMINATE_BACKEND"),
    (r'SELECT U&"\0064blink_exec"(1)', "DBLINK_EXEC"),
    ("CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'x', 'y'", "LANGUAGE C"),
    ("CREATE FUNCTION f() RETURNS int AS 'int4um' LANGUAGE 'internal'", "LANGUAGE INTERNAL"),
    ('DO LANGUAGE "plpython3u" $$ import os $$', "LANGUAGE PLPYTHON3U"),
    ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
    ("INSERT INTO pg_catalog.pg_authid VALUES (1)", "INSERT INTO PG_CATALOG.PG_AUTHID"),
    ('UPDATE ONLY "pg_authid" SET rolsuper = true', "UPDATE ONLY PG_AUTHID"),
    ("DELETE FROM pg_db_role_setting", "DELETE FROM PG_DB_ROLE_SETTING"),
]
WITHIN = [
    "ALTER TABLE t DROP role",
    "ALTER TABLE t ALTER COLUMN role TYPE text",
    'ALTER TABLE t DROP COLUMN "user"',
    "CREATE USER MAPPING FOR a SERVER s",
    "ALTER DEFAULT PRIVILEGES FOR ROLE a GRANT SELECT ON TABLES TO b",
    "GRANT SELECT ON t TO app",
    "REVOKE ALL ON SCHEMA public FROM public",
    "INSERT INTO t VALUES ('ALTER ROLE a; DROP DATABASE b')",
    "INSERT INTO t VALUES ('it''s; ALTER ROLE a') ON CONFLICT DO NOTHING",
    "INSERT INTO t VALUES ($$ALTER ROLE a$$)",
    'CREATE TABLE "alter role" (id int)',
    "SELECT 1 -- ALTER ROLE a",
    "COMMENT ON COLUMN users.role IS 'the role of a user on a database'",
    "COPY t (a, b) FROM STDIN",
    "COPY (SELECT a FROM b) TO STDOUT",
    "UPDATE t SET copy = trim(BOTH FROM 'x')",
    "DO $$ BEGIN IF true THEN CREATE TABLE t (id int); END IF; END $$",
    "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.role = 'user'; RETURN NEW; END $$",
    "CREATE TRIGGER t BEFORE UPDATE ON x FOR EACH ROW EXECUTE FUNCTION f()",
    "CREATE EXTENSION citext",
    "CREATE POLICY p ON t TO app USING (true)",
    "CREATE TABLE book (language menu)",
    "CREATE FUNCTION f(menu int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN menu; END $$",
    "SELECT oid FROM pg_database WHERE datname = current_database()",
    "PREPARE p AS SELECT 1",
    'SELECT "dblink" FROM t',
]


@pytest.mark.parametrize(("statement", "what"), BEYOND, ids=[each[0][:40] for each in BEYOND])
def test_what_reaches_beyond_one_database_is_named(statement: str, what: str) -> None:
    assert beyond(statement) == what


@pytest.mark.parametrize("statement", ["COMMIT", "/* now */ end;", "-- now\ncommit AND CHAIN", "Commit; SELECT 1"])
def test_what_commits_is_told(statement: str) -> None:
    assert commits(statement)


@pytest.mark.parametrize("statement", ["SELECT 'commit'", "ENDING", 'SELECT "end"', "DO $$ BEGIN COMMIT; END $$"])
def test_what_commits_nothing_of_ours_is_not(statement: str) -> None:
    assert not commits(statement)


@pytest.mark.parametrize("statement", WITHIN)
def test_what_stays_within_it_is_let_through(statement: str) -> None:
    assert beyond(statement) is None


@pytest.mark.parametrize("name", ["_OBJECTS", "_FUNCTIONS", "_COPY", "_UNTRUSTED"])
def test_no_text_is_done_with_early_in_which_a_pattern_might_find_something(name: str) -> None:
    @given(st.from_regex(getattr(statements, name), alphabet=st.characters(codec="ascii")))
    def has_a_word(found: str) -> None:
        assert any(word in found.lower() for word in statements._WORDS)

    has_a_word()
