"""A backup before a change: written, readable, restorable; and when it cannot be, nothing changes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from alembic_entrypoint.schema import snapshot
from alembic_entrypoint.schema.difference import difference
from commands import Result, Running, entrypoint, started
from projects import Project, project
from servers import Database, Server, fresh_database, own_server, pgbouncer, wait_until

#: Two seconds are promised; the machine may be busy with others.
LIMIT = 4.0
SESSIONS = "SELECT application_name FROM pg_stat_activity WHERE datname = %s"


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path / "service")
    made.add("r1", "op.execute('CREATE TABLE t1 (id int PRIMARY KEY, name text NOT NULL)')")
    made.add("r2", "op.execute('DROP TABLE t1')\nop.execute('CREATE TABLE t2 ()')", down="r1")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "backups"
    made.mkdir()
    return made


def tools(server: Server) -> str:
    """Give a PATH with the server's pg_dump."""
    return f"{server.programs}:{os.environ['PATH']}"


def settings(database: Database, folder: Path, **env: str) -> dict[str, str]:
    assert isinstance(database.server, Server)
    return {
        "DATABASE_URL": database.url,
        "PATH": tools(database.server),
        "ALEMBIC_ENTRYPOINT_BACKUP": str(folder),
        **env,
    }


def migrate(tree: Project, database: Database, folder: Path, *arguments: str, **env: str) -> Result:
    return entrypoint("migrate", *arguments, cwd=tree.folder, env=settings(database, folder, **env))


def filled(tree: Project, database: Database) -> Database:
    """Bring a database to r1, with rows."""
    assert entrypoint("migrate", "--target", "r1", cwd=tree.folder, env={"DATABASE_URL": database.url}).code == 0
    database.execute("INSERT INTO t1 SELECT n, 'name ' || n FROM generate_series(1, 1000) AS n")
    return database


def schema_of(database: Database) -> snapshot.Snapshot:
    with database.connect() as connection:
        return snapshot.take(connection)


def recorded(database: Database) -> list[tuple[Any, ...]]:
    return database.query("TABLE alembic_version")


def see_that_nothing_changed(database: Database, folder: Path, result: Result) -> None:
    assert result.code == 73, result.stderr
    assert "The backup failed, so nothing was changed." in result.message
    assert recorded(database) == [("r1",)]
    assert database.query("SELECT count(*) FROM t1") == [(1000,)]
    if folder.is_dir():
        assert list(folder.iterdir()) == []


# --- what is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*(pytest.param(each, marks=pytest.mark.extra) for each in ("pg13", "pg15", "pg16")), "pg18"]
)
def test_the_command_that_is_shown_restores_the_schema_and_the_rows_from_before(
    name: str, tree: Project, folder: Path, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(name)
    with fresh_database(server, name='it\'s @ "home"') as database:
        before = schema_of(filled(tree, database))
        began = datetime.now(timezone.utc)
        result = migrate(tree, database, folder)
        assert result.code == 0, result.stderr
        assert recorded(database) == [("r2",)]
        [written] = result.named("backup.written")
        [file] = folder.iterdir()
        assert (str(file), file.stat().st_size) == (written["path"], written["bytes"])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        named = re.fullmatch(r"it%27s%20%40%20%22home%22@r1@(\w+\.\w+)@[0-9a-f]{8}\.dump", file.name)
        assert named
        made = datetime.strptime(named[1], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=timezone.utc)
        assert began <= made <= datetime.now(timezone.utc)
        events = [each["event"] for each in result.events]
        assert events.index("lock.acquired") < events.index("backup.written") < events.index("migration.started")
        subprocess.run(["sh", "-c", written["restore"]], check=True, env={**os.environ, "PATH": tools(server)})
        restored = Database(server, 'it\'s @ "home"_restored')
        try:
            assert difference(schema_of(restored), before) == ()
            assert recorded(restored) == [("r1",)]
            assert restored.query("SELECT count(*), min(name), max(id) FROM t1") == [(1000, "name 1", 1000)]
        finally:
            server.execute('DROP DATABASE "it\'s @ ""home""_restored"')


def test_there_is_no_backup_where_nothing_changes(tree: Project, folder: Path, database: Database) -> None:
    assert migrate(tree, database, folder).code == 0
    [file] = folder.iterdir()
    assert "@base@" in file.name
    assert migrate(tree, database, folder).code == 0
    tree.add("fork", down="r1")
    assert migrate(tree, database, folder).code == 78
    assert list(folder.iterdir()) == [file]


@pytest.mark.extra
def test_of_three_replicas_only_the_one_that_migrates_makes_a_backup(
    tree: Project, folder: Path, database: Database
) -> None:
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: migrate(tree, database, folder), range(3)))
    assert [each.code for each in results] == [0, 0, 0]
    assert len(list(folder.iterdir())) == 1


def test_a_failed_migration_says_again_how_to_restore(tree: Project, folder: Path, database: Database) -> None:
    tree.add("r3", "op.execute('SELECT 1 / 0')", down="r2")
    result = migrate(tree, database, folder)
    assert result.code == 1
    [written] = result.named("backup.written")
    assert f"The backup from before: {written['path']}\n" in result.message
    assert f"To restore it into a new database beside: {written['restore']}" in result.message


@pytest.mark.extra
def test_a_migration_that_is_tried_again_has_one_backup(tree: Project, folder: Path, database: Database) -> None:
    filled(tree, database)
    env = settings(database, folder, ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT="0.2")
    with database.connect(autocommit=False) as other:
        other.execute("LOCK TABLE t1 IN ACCESS SHARE MODE")
        with started(tree.folder, "migrate", env=env) as running:
            wait_until(lambda: running.has("migration.retried"), 30, what="a second try")
            other.rollback()
            result = running.end()
    assert result.code == 0, result.stderr
    assert len(list(folder.iterdir())) == 1


@pytest.mark.extra
def test_only_backups_of_this_database_are_pruned_and_the_newest_stay(
    tree: Project, folder: Path, database: Database, server: Server
) -> None:
    foreign = [folder / name for name in ("note.txt", f"{database.name}@r1@20200101T000000.000000Z@00000000.dump")]
    with fresh_database(server) as other:
        assert migrate(tree, other, folder).code == 0
        foreign += list(folder.iterdir())
    for each in foreign[:2]:
        each.write_text("somebody's")
    made = []
    for n in range(3, 6):
        tree.add(f"r{n}", "pass", down=f"r{n - 1}")
        result = migrate(tree, database, folder, ALEMBIC_ENTRYPOINT_BACKUP_KEEP="2")
        assert result.code == 0, result.stderr
        made.append(Path(result.named("backup.written")[0]["path"]))
    assert sorted(folder.iterdir()) == sorted([*foreign, *made[1:]])
    # The clock was set back since.
    made[-1].rename(re.sub("@2[0-9]{3}", "@2999", str(made[-1])))
    tree.add("r6", "pass", down="r5")
    result = migrate(tree, database, folder, ALEMBIC_ENTRYPOINT_BACKUP_KEEP="1")
    assert sorted(folder.iterdir()) == sorted([*foreign, Path(result.named("backup.written")[0]["path"])])


def test_the_name_of_a_file_is_never_too_long(tree: Project, folder: Path, server: Server) -> None:
    tree.add("r" * 32, "pass", down="r2")
    tree.add("s3", "pass", down="r" * 32)
    with fresh_database(server, name="数据库" * 7) as database:
        first = ("migrate", "--target", "r" * 32)
        assert entrypoint(*first, cwd=tree.folder, env={"DATABASE_URL": database.url}).code == 0
        result = migrate(tree, database, folder, ALEMBIC_ENTRYPOINT_BACKUP_KEEP="1")
        assert result.code == 0, result.message
        [file] = folder.iterdir()
        assert f"@{'r' * 32}@" in file.name
        [written] = result.named("backup.written")
        assert f"'{'数据库' * 4}数_restored'" in written["restore"]


@pytest.mark.extra
@pytest.mark.parametrize(
    ("platform", "variable"), [("Heroku", "DYNO"), ("Fly", "FLY_APP_NAME"), ("Railway", "RAILWAY_ENVIRONMENT")]
)
def test_a_platform_whose_disk_does_not_last_is_warned_of(
    platform: str, variable: str, tree: Project, folder: Path, database: Database
) -> None:
    [written] = migrate(tree, database, folder, **{variable: "release.1"}).named("backup.written")
    assert written["level"] == "warning"
    assert f"{platform} throws away what a release command writes" in written["note"]


@pytest.mark.extra
def test_a_pg_dump_in_one_of_the_usual_places_is_found(tree: Project, folder: Path, pg15: Server) -> None:
    with fresh_database(pg15) as database:
        result = migrate(tree, database, folder, PATH="/usr/bin:/bin")
    assert result.code == 0, result.message
    assert len(list(folder.iterdir())) == 1


# --- when it cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("absent", "is no folder that is there"),
        ("/sys", "Permission denied"),
        pytest.param("file", "is no folder that is there", marks=pytest.mark.extra),
    ],
)
def test_a_place_that_cannot_be_written_to(
    place: str, reason: str, tree: Project, tmp_path: Path, database: Database
) -> None:
    filled(tree, database)
    (tmp_path / "file").touch()
    result = migrate(tree, database, tmp_path / place)
    see_that_nothing_changed(database, tmp_path / "absent", result)
    assert reason in result.message


def test_no_pg_dump_that_is_new_enough(tree: Project, folder: Path, database: Database) -> None:
    """A PATH without the server's own leaves those in the usual places, if any, which are older."""
    result = migrate(tree, filled(tree, database), folder, PATH="/usr/bin:/bin")
    see_that_nothing_changed(database, folder, result)
    assert "there is no pg_dump of 18 or newer" in result.message
    assert "apt-get install postgresql-client-18" in result.message


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ('truncate -s -100 "$file"', "What pg_dump wrote cannot be read"),
        pytest.param(': > "$file"', "pg_dump wrote nothing", marks=pytest.mark.extra),
    ],
)
def test_a_backup_that_cannot_be_read_is_none(
    ending: str, reason: str, tree: Project, folder: Path, database: Database, server: Server, tmp_path: Path
) -> None:
    filled(tree, database)
    faulty = tmp_path / "bin"
    faulty.mkdir()
    find = 'for each in "$@"; do case "$each" in --file=*) file="${each#--file=}";; esac; done'
    text = f'#!/bin/sh\n{server.binaries}/pg_dump "$@" || exit\n[ "$1" = --version ] && exit\n{find}\n{ending}\n'
    (faulty / "pg_dump").write_text(text)
    (faulty / "pg_restore").write_text(f'#!/bin/sh\nexec {server.binaries}/pg_restore "$@"\n')
    for each in faulty.iterdir():
        each.chmod(0o755)
    result = migrate(tree, database, folder, PATH=f"{faulty}:{os.environ['PATH']}")
    see_that_nothing_changed(database, folder, result)
    assert reason in result.message


def test_a_role_that_may_not_read_everything(tree: Project, folder: Path, database: Database) -> None:
    filled(tree, database)
    role = f"weak_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role}; CREATE TABLE others ()")
    database.execute(f"GRANT ALL ON alembic_version TO {role}")
    try:
        result = migrate(tree, database, folder, DATABASE_URL=database.url.replace("postgres@", f"{role}@"))
        see_that_nothing_changed(database, folder, result)
        assert "permission denied for" in result.message
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_ledger_that_another_role_made_is_not_in_the_way(tree: Project, folder: Path, database: Database) -> None:
    assert entrypoint("migrate", "--target", "r1", cwd=tree.folder, env={"DATABASE_URL": database.url}).code == 0
    role = f"weak_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role}")
    database.execute(f"ALTER TABLE t1 OWNER TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        result = migrate(tree, database, folder, DATABASE_URL=database.url.replace("postgres@", f"{role}@"))
        assert result.code == 0, result.message
        assert len(list(folder.iterdir())) == 1
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.extra
def test_a_full_disk(tree: Project, tmp_path: Path, database: Database) -> None:
    filled(tree, database)
    database.execute("CREATE TABLE big AS SELECT gen_random_uuid() FROM generate_series(1, 100000)")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    seen = 'mount -t tmpfs -o size=200k none {0} && cd {1} && "$@"; code=$?; ls -A {0}; exit $code'
    within = ["unshare", "--mount", "sh", "-c", seen.format(mounted, tree.folder), "sh"]
    with started(tree.folder, "migrate", env=settings(database, mounted), within=within) as running:
        result = running.end()
    see_that_nothing_changed(database, mounted, result)
    assert "No space left on device" in result.message
    assert result.stdout == "", "a half file is left"


# --- while it is written -------------------------------------------------------------------------------------------


@contextmanager
def dumping(tree: Project, database: Database, folder: Path, **env: str) -> Iterator[tuple[Running, psutil.Process]]:
    """Start a run whose pg_dump waits for a table that somebody has locked."""
    filled(tree, database)
    with database.connect(autocommit=False) as other:
        other.execute("LOCK TABLE t1")
        with started(tree.folder, "migrate", env=settings(database, folder, **env)) as running:
            process = psutil.Process(running.pid)

            def dump() -> psutil.Process | None:
                children = process.children(recursive=True) if process.is_running() else []
                waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE%'"
                return next((each for each in children if each.name() == "pg_dump" and database.query(waits)), None)

            yield running, wait_until(dump, 30, what="pg_dump waits")  # type: ignore[misc]


def command_of_dump(process: psutil.Process) -> str:
    """Give the command line of the pg_dump that this process runs, and of nothing that asks for its version."""
    with suppress(psutil.Error):
        commands = [shlex.join(each.cmdline()) for each in process.children(recursive=True)]
        return next((each for each in commands if "pg_dump --format" in each), "")
    return ""


def see_that_no_dump_is_left(dump: psutil.Process, database: Database) -> None:
    wait_until(lambda: not dump.is_running() or dump.status() == psutil.STATUS_ZOMBIE, LIMIT, what="no pg_dump is left")
    waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'alembic-entrypoint backing up%'"
    wait_until(lambda: not database.query(waiting), LIMIT, what="nor its session")


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.extra)])
def test_a_signal_ends_it_and_leaves_nothing(signum: int, tree: Project, folder: Path, database: Database) -> None:
    with dumping(tree, database, folder) as (running, dump):
        assert len(list(folder.iterdir())) == 1
        began = time.monotonic()
        running.signal(signum)
        assert running.end().code == 128 + signum
        assert time.monotonic() - began < LIMIT
        see_that_no_dump_is_left(dump, database)
    assert list(folder.iterdir()) == []
    assert recorded(database) == [("r1",)]


@pytest.mark.extra
def test_a_signal_ends_it_when_the_server_does_not_answer(tree: Project, folder: Path) -> None:
    with own_server() as server, fresh_database(server) as database:
        with dumping(tree, database, folder) as (running, dump):
            server.freeze()
            began = time.monotonic()
            running.signal(signal.SIGTERM)
            assert running.end().code == 143
            assert time.monotonic() - began < LIMIT
            wait_until(lambda: not dump.is_running(), what="no pg_dump is left")
            server.thaw()
        assert list(folder.iterdir()) == []


def test_a_kill_leaves_no_pg_dump_and_the_next_run_sweeps_its_half_file_and_no_other(
    tree: Project, folder: Path, database: Database
) -> None:
    with dumping(tree, database, folder) as (running, dump):
        running.signal(signal.SIGKILL)
        running.end()
        see_that_no_dump_is_left(dump, database)
    [half] = folder.iterdir()
    foreign = folder / half.name.replace(database.name, "another")
    foreign.touch()
    assert migrate(tree, database, folder).code == 0
    assert not half.exists()
    assert foreign.exists()


@pytest.mark.extra
def test_a_lost_lock_ends_it(tree: Project, folder: Path, database: Database) -> None:
    with dumping(tree, database, folder) as (running, dump):
        database.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name LIKE 'alembic-entrypoint locking%%' AND datname = %s",
            database.name,
        )
        result = running.end()
        assert result.code == 75, result.stderr
        see_that_no_dump_is_left(dump, database)
    assert list(folder.iterdir()) == []
    assert recorded(database) == [("r1",)]


@pytest.mark.extra
def test_a_pg_dump_that_is_killed_changes_nothing(tree: Project, folder: Path, database: Database) -> None:
    with dumping(tree, database, folder) as (running, dump):
        dump.kill()
        result = running.end()
    see_that_nothing_changed(database, folder, result)
    assert "pg_dump was killed by signal 9" in result.message


@pytest.mark.extra
def test_while_it_takes_long_it_says_so(tree: Project, folder: Path, database: Database) -> None:
    with dumping(tree, database, folder) as (running, _):
        wait_until(lambda: running.has("backup.running"), 30, what="the heartbeat")
        running.signal(signal.SIGTERM)
        running.end()


# --- how it logs in ------------------------------------------------------------------------------------------------


@pytest.mark.extra
def test_it_logs_in_as_we_do_with_tls_and_several_hosts_and_shows_no_password(tree: Project, folder: Path) -> None:
    hba = "local all all trust\nhostssl all all all scram-sha-256\n"
    with own_server(15, hba=hba, tls=True) as server:
        local = f"host={server.sockets} port={server.port} user=postgres"
        with psycopg.connect(local, autocommit=True) as admin:
            admin.execute("ALTER ROLE postgres PASSWORD 'p@ss w0rd/%'")
        url = (
            f"postgresql://postgres:p%40ss%20w0rd%2F%25@127.0.0.1:1,127.0.0.1:{server.port}/postgres"
            f"?sslmode=verify-ca&sslrootcert={server.data.parent / 'server.crt'}&options=-c%20work_mem%3D8MB"
        )
        env = {"DATABASE_URL": url, "PATH": tools(server), "ALEMBIC_ENTRYPOINT_BACKUP": str(folder)}
        service = {"PGSERVICE": "another", "PGHOST": "nowhere", "PGPASSWORD": "wrong"}
        with psycopg.connect(local) as other:
            other.execute("CREATE TABLE busy ()")
            other.commit()
            other.execute("LOCK TABLE busy")
            env["ALEMBIC_ENTRYPOINT_IGNORE"] = "public.busy"
            (tree.folder / "pg_service.conf").write_text("[another]\ndbname=elsewhere\n")
            service["PGSERVICEFILE"] = str(tree.folder / "pg_service.conf")
            with started(tree.folder, "migrate", env={**env, **service}) as running:
                process = psutil.Process(running.pid)
                command = wait_until(lambda: command_of_dump(process), 30, what="pg_dump runs")
                assert "w0rd" not in command
                other.rollback()
                result = running.end()
        assert result.code == 0, result.stderr
        assert "w0rd" not in result.stderr
        assert len(list(folder.iterdir())) == 1


@pytest.mark.extra
def test_it_logs_in_through_a_socket(tree: Project, folder: Path, database: Database, server: Server) -> None:
    url = f"postgresql://postgres@/{database.name}?host={server.sockets}&port={server.port}"
    result = migrate(tree, database, folder, DATABASE_URL=url)
    assert result.code == 0, result.stderr
    [written] = result.named("backup.written")
    assert f"-h {server.sockets}" in written["restore"]


@pytest.mark.extra
def test_it_logs_in_through_a_session_pooler(tree: Project, folder: Path, database: Database, server: Server) -> None:
    with pgbouncer(server, "session") as pooler:
        result = migrate(tree, database, folder, DATABASE_URL=pooler.url_for(database.name))
    assert result.code == 0, result.stderr
    assert len(list(folder.iterdir())) == 1


@pytest.mark.extra
def test_it_logs_in_with_a_key_that_has_a_password_of_its_own(tree: Project, folder: Path, tmp_path: Path) -> None:
    hba = "local all all trust\nhostssl all all all cert\n"
    with own_server(15, hba=hba, tls=True) as server:
        authority = server.data.parent / "server"
        with psycopg.connect(f"host={server.sockets} port={server.port} user=postgres", autocommit=True) as admin:
            admin.execute(f"ALTER SYSTEM SET ssl_ca_file = '{authority}.crt'")
            admin.execute("SELECT pg_reload_conf()")
        secret = ["-aes128", "-passout", "pass:s3cret-key"]
        ask = ["req", "-new", "-key", "key", "-passin", "pass:s3cret-key", "-subj", "/CN=postgres", "-out", "csr"]
        sign = ["x509", "-req", "-in", "csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-out", "crt"]
        for command in (["genrsa", *secret, "-out", "key", "2048"], ask, [*sign, "-set_serial", "7"]):
            subprocess.run(["openssl", *command], cwd=tmp_path, check=True, capture_output=True)
        (tmp_path / "key").chmod(0o600)
        url = (
            f"postgresql://postgres@127.0.0.1:{server.port}/postgres?sslmode=verify-ca&sslrootcert={authority}.crt"
            f"&sslcert={tmp_path}/crt&sslkey={tmp_path}/key&sslpassword=s3cret-key"
        )
        # That Alembic's own connection has all of these is for env.py to see to.
        env_py = tree.folder / "migrations" / "env.py"
        env_py.write_text(
            env_py.read_text().replace(
                'config.get_main_option("sqlalchemy.url")', f"'{url}'".replace("postgresql:", "postgresql+psycopg:")
            )
        )
        env = {"DATABASE_URL": url, "PATH": tools(server), "ALEMBIC_ENTRYPOINT_BACKUP": str(folder)}
        result = entrypoint("migrate", cwd=tree.folder, env=env)
        assert result.code == 0, result.stderr
        assert len(list(folder.iterdir())) == 1
