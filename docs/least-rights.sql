-- Two roles for one database: one migrates and owns what the migrations make, the other is the app's and changes rows only.
--
--   psql --set=ON_ERROR_STOP=1 --set=migrator=notes_migrator --set=app=notes_app --file=least-rights.sql "$ADMIN_URL"
--
-- ADMIN_URL leads to that database as its owner, who may create roles. Running it again changes nothing.
-- Passwords afterwards, in psql: \password notes_migrator

SELECT format('CREATE ROLE %I LOGIN', name)
  FROM unnest(ARRAY[:'migrator', :'app']) AS name
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

-- What follows acts for the migrator; until the end of this script only.
GRANT :"migrator" TO CURRENT_USER;
BEGIN;

-- CREATE on the database is for CREATE SCHEMA and for trusted extensions.
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT, CREATE, TEMPORARY ON DATABASE :"DBNAME" TO :"migrator";
GRANT CONNECT ON DATABASE :"DBNAME" TO :"app";

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO :"migrator";
GRANT USAGE ON SCHEMA public TO :"app";

-- What the migrations make, from now on and until now.
ALTER DEFAULT PRIVILEGES FOR ROLE :"migrator" IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"app";
ALTER DEFAULT PRIVILEGES FOR ROLE :"migrator" IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO :"app";

SET LOCAL ROLE :"migrator";
CREATE TABLE IF NOT EXISTS public.alembic_version (
    version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY
);
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO :"app";
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO :"app";
-- The app reads what is recorded, and never writes it.
REVOKE INSERT, UPDATE, DELETE ON public.alembic_version FROM :"app";

-- What alembic-entrypoint itself remembers: its history, and how it tells a newer database from a lost one.
CREATE SCHEMA IF NOT EXISTS alembic_entrypoint;
GRANT USAGE ON SCHEMA alembic_entrypoint TO :"app";
GRANT SELECT ON ALL TABLES IN SCHEMA alembic_entrypoint TO :"app";
ALTER DEFAULT PRIVILEGES IN SCHEMA alembic_entrypoint GRANT SELECT ON TABLES TO :"app";
RESET ROLE;

COMMIT;
REVOKE :"migrator" FROM CURRENT_USER;

-- Optional, by a superuser: a migration that is blocked can say by which statement, and not only by whom.
--   GRANT pg_read_all_stats TO notes_migrator;
