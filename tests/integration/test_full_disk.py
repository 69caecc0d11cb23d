"""A disk that runs full under a proof changes nothing, and says where room is wanted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from alembic_entrypoint.postgres import embedded
from commands import entrypoint
from dumps import normalised
from projects import Project, project
from servers import Database, Server, fresh_database, own_server

SCRATCH = "SELECT datname FROM pg_database WHERE datname ~ '^alembic_entrypoint_scratch'"


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk of its own, in memory, that belongs to the server's user. Needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        embedded.own(folder)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def cramped() -> Iterator[tuple[Server, Path]]:
    """Give a server on which new databases, made after template0, have a small disk to themselves."""
    with ExitStack() as stack:
        server = stack.enter_context(own_server(18))
        disk = stack.enter_context(small_disk(server.data.parent / "disk", 32))
        server.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        server.execute("ALTER DATABASE template0 SET TABLESPACE small")
        yield server, disk
        server.stop()


@pytest.fixture
def database(cramped: tuple[Server, Path]) -> Iterator[Database]:
    with fresh_database(cramped[0], like="TABLESPACE pg_default") as made:
        yield made


@pytest.fixture
def tree(tmp_path: Path, database: Database) -> Project:
    made = project(tmp_path)
    made.add_line(2)
    made.add(
        "r3", "op.execute(\"CREATE TABLE t3 AS SELECT repeat('x', 1000) FROM generate_series(1, 30000)\")", down="r2"
    )
    made.add("r4", "op.execute('CREATE TABLE t4 (id int)')", down="r3")
    env = {"DATABASE_URL": database.url}
    assert entrypoint("migrate", "--target", "r3", cwd=made.folder, env=env).code == 0
    database.execute("UPDATE alembic_version SET version_num = 'lost'")
    return made


@pytest.mark.extra
@pytest.mark.parametrize("full", ["before", "in the replay"])
def test_a_scratch_disk_that_is_full_changes_nothing(
    cramped: tuple[Server, Path], tree: Project, database: Database, full: str
) -> None:
    server, disk = cramped
    schema = normalised(database)
    env = {"DATABASE_URL": database.url}
    filler = disk / "filler"
    if full == "before":
        filler.write_bytes(bytes(shutil.disk_usage(disk).free))
    result = entrypoint("migrate", cwd=tree.folder, env=env)
    filler.unlink(missing_ok=True)
    assert result.code == 75
    assert "No space left on device" in result.message
    assert "Nothing was changed" in result.message
    assert "ALEMBIC_ENTRYPOINT_SCRATCH" in result.message
    assert database.query("SELECT version_num FROM alembic_version") == [("lost",)]
    assert normalised(database) == schema
    assert server.query(SCRATCH) == []
    elsewhere = entrypoint("migrate", "--scratch", "embedded", cwd=tree.folder, env=env)
    assert elsewhere.code == 0, elsewhere.message
    assert database.query("SELECT version_num FROM alembic_version") == [("r4",)]


@pytest.mark.extra
def test_a_server_that_goes_down_for_want_of_room_is_as_it_was_when_it_is_up_again(tmp_path: Path) -> None:
    made = project(tmp_path)
    made.add_line(1)
    # In a replay this is more than the server's own log has room for, and it panics.
    many = "CREATE TABLE t2 AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 100000)"
    made.add("r2", f"op.execute({many!r})", down="r1")
    made.add("r3", "op.execute('CREATE TABLE t3 (id int)')", down="r2")
    with own_server(18) as server:
        server.execute("CREATE DATABASE app")
        database = Database(server, "app")
        env = {"DATABASE_URL": database.url}
        database.execute("CREATE TABLE t1 (id int PRIMARY KEY); CREATE TABLE t2 AS SELECT 'x'::text AS x")
        schema = normalised(database)
        server.stop()
        log = (server.data / "pg_wal").rename(server.data.parent / "log of changes")
        with small_disk(server.data / "pg_wal", 40) as disk:
            subprocess.run(["cp", "-a", f"{log}/.", str(disk)], check=True)
            server.start()
            result = entrypoint("migrate", cwd=made.folder, env=env)
            assert "No space left on device" in server.log
            assert result.code == 75, result.stderr
            subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
            server.stop("immediate")
            server.start()
            assert normalised(database) == schema
            assert database.query("SELECT to_regclass('alembic_version')") == [(None,)]
            again = entrypoint("migrate", cwd=made.folder, env=env)
            assert again.code == 0, again.message
            assert [each["after"] for each in again.named("schema.stamped")] == [["r2"]]
            assert server.query(SCRATCH) == []
            server.stop()
