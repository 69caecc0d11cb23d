"""What `env.py` does to its own process: it cannot hurt ours, nor what we say."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from env_forms import (
    assert_migrated,
    async_env_py,
    env_on,
    env_py,
    ini_with,
    migrate,
    recorded,
    tables,
    tree_in,
)

from alembic_entrypoint.worker.messages import PIPE_CLOSED
from commands import entrypoint, environment, started
from servers import Database, Server, fresh_database, is_running, processes_with, wait_until

pytestmark = pytest.mark.wide

LOGGING = """
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = plain
[logger_root]
level = CRITICAL
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stdout,)
[formatter_plain]
format = %(message)s
"""


def test_file_config_that_disables_loggers_silences_none_of_our_events(tmp_path: Path, database: Database) -> None:
    above = "from logging.config import fileConfig\nfileConfig(config.config_file_name)"
    tree = tree_in(tmp_path, env_py(above=above), ini=ini_with("x://", LOGGING.replace("%", "%%")))
    result = migrate(tree, database)
    assert_migrated(result, database)
    assert len(result.named("migration.finished")) == 2


def test_logging_that_is_disabled_altogether(tmp_path: Path, database: Database) -> None:
    above = "import logging\nlogging.disable(logging.CRITICAL)\nlogging.shutdown()"
    result = migrate(tree_in(tmp_path, env_py(above=above)), database)
    assert_migrated(result, database)
    assert len(result.named("migration.finished")) == 2


def test_print_becomes_log_lines_and_never_reaches_stdout(tmp_path: Path, database: Database) -> None:
    above = "import sys\nprint('hello', 'from env.py')\nprint('to stderr', file=sys.stderr)"
    tree = tree_in(tmp_path, env_py(above=above))
    tree.add("r3", "print('in a migration', flush=True)", down="r2")
    result = entrypoint("run", "--", "echo", "the app", cwd=tmp_path, env={"DATABASE_URL": database.url})
    assert (result.code, result.stdout) == (0, "the app\n")
    lines = [(each["stream"], each["line"]) for each in result.named("worker.output")]
    # Once, though env.py runs more than once.
    assert lines.count(("stdout", "hello from env.py")) == 1
    assert lines.count(("stderr", "to stderr")) == 1
    assert lines.count(("stdout", "in a migration")) == 1


def test_output_that_is_no_text_does_no_harm(tmp_path: Path, database: Database) -> None:
    above = (
        "os.write(1, b'\\xff\\xfe\\x00{\"said\": \"done\"}\\n'); os.write(2, b'\\x1b[31m' + bytes(range(256)) + b'\\n')"
    )
    assert_migrated(migrate(tree_in(tmp_path, env_py(above=above)), database), database)


def test_fifty_megabytes_of_output_do_not_grow_our_memory(tmp_path: Path, database: Database) -> None:
    # A part in lines of 1000 letters, a part without any line end.
    flood = """
import sys
for n in range(50):
    sys.stdout.write(("x" * 999 + chr(10)) * 1000 if n % 2 else "x" * 1000000)
"""
    quiet = peak_memory(tree_in(tmp_path / "quiet", env_py()).folder, database)
    database.execute("DROP TABLE t1, t2, alembic_version")
    loud = peak_memory(tree_in(tmp_path / "loud", env_py(above=flood)).folder, database)
    assert recorded(database) == ["r2"]
    assert loud < quiet + 8 * 1024, f"{loud} KiB after {quiet} KiB"


def peak_memory(folder: Path, database: Database) -> int:
    """Run `migrate` and give the peak of its own memory, its children's not counted, in KiB."""
    # wait4 gives the usage of the one process that it waited for and of those that it has waited for; a max is
    # taken of both, so a worker's own peak would hide ours: the command is asked to report itself.
    report = (
        "import resource, sys\n"
        "from alembic_entrypoint import boundary\n"
        "from alembic_entrypoint.__main__ import main\n"
        "end = boundary._end\n"
        "def reporting(code):\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)\n"
        "    end(code)\n"
        "boundary._end = reporting\n"
        "main()\n"
    )
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-c", report, "migrate"],
            cwd=folder,
            env=environment({"DATABASE_URL": database.url}),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0, (folder / "log").read_text()[-2000:]
    return int(done.stdout)


def test_a_changed_working_directory_changes_nothing_else(tmp_path: Path, database: Database) -> None:
    tree_in(tmp_path, env_py(above="os.chdir('/')"))
    result = entrypoint("run", "--", "pwd", cwd=tmp_path, env={"DATABASE_URL": database.url})
    assert (result.code, result.stdout) == (0, f"{tmp_path}\n")
    assert [each["path"] for each in result.named("migration.started")] == [
        "migrations/versions/r1.py",
        "migrations/versions/r2.py",
    ]
    assert recorded(database) == ["r2"]


def test_a_changed_working_directory_with_relative_locations_is_refused(tmp_path: Path, database: Database) -> None:
    # Plain Alembic looks for the migrations after env.py, finds none, makes an empty version table and ends with 0.
    tree = tree_in(tmp_path, env_py(above="os.chdir('/')"))
    tree.write("alembic.ini", ini_with("x://").replace("%(here)s/", ""))
    result = migrate(tree, database)
    assert (result.code, result.state) == (78, "BROKEN")
    assert "there are no migrations in the version locations" in result.message
    assert tables(database) == []


def test_an_environment_that_env_py_changes_is_not_the_apps(tmp_path: Path, database: Database) -> None:
    tree_in(tmp_path, env_py(above="os.environ['LEAKED'] = '1'; os.environ.pop('PATH'); os.umask(0o777)"))
    result = entrypoint(
        "run", "--", "sh", "-c", "echo ${LEAKED-unset}; umask", cwd=tmp_path, env={"DATABASE_URL": database.url}
    )
    assert result.stdout.split()[0] == "unset"
    assert result.stdout.split()[1] != "0777"


def test_a_changed_working_directory_and_a_cleared_environment(tmp_path: Path, database: Database) -> None:
    above = "os.chdir('/'); os.environ.clear()"
    assert_migrated(migrate(tree_in(tmp_path, env_py(above=above)), database), database)


def test_threads_left_behind_are_not_waited_for(tmp_path: Path, database: Database) -> None:
    after = "import threading\nthreading.Thread(target=threading.Event().wait).start()"
    assert_migrated(migrate(tree_in(tmp_path, env_py(after=after)), database), database)


LEFT_BEHIND = {
    "a child": "subprocess.Popen(['sleep', '300'])",
    "a fork that holds every descriptor": "os.fork() or threading.Event().wait(300)",
    "a pool of processes": "multiprocessing.get_context('fork').Process(target=time.sleep, args=(300,)).start()",
    "a child that floods": "subprocess.Popen(['yes'])",
    "a child in a session of its own": "subprocess.Popen(['sleep', '300'], start_new_session=True)",
    "a fork in a session of its own": "os.fork() or (os.setsid(), time.sleep(300))",
    "a daemon": "os.fork() or (os.setsid(), os.fork() or time.sleep(300), os._exit(0))",
    "a daemon of a shell's": "os.system('setsid sh -c \"sleep 300 & sleep 300\" &')",
}


@pytest.mark.parametrize("how", LEFT_BEHIND)
def test_child_processes_left_behind_do_not_survive(tmp_path: Path, database: Database, how: str) -> None:
    """In env.py, whether it looks or migrates, and in a migration."""
    imports = "import multiprocessing, os, subprocess, threading, time"
    tree = tree_in(tmp_path, env_py(above=imports, after=LEFT_BEHIND[how]))
    tree.add("r3", LEFT_BEHIND[how], down="r2", head=imports)
    begun = time.monotonic()
    result = migrate(tree, database, MARK=str(tmp_path))
    assert (result.code, recorded(database)) == (0, ["r3"]), result.stderr
    assert time.monotonic() - begun < 30
    wait_until(lambda: not processes_with(f"MARK={tmp_path}"), what="no process of a worker is left")


@pytest.mark.parametrize("how", ["os.closerange(3, 256)", "os.close(0)", "os.close(1); os.close(2)"])
def test_descriptors_that_env_py_closes(tmp_path: Path, database: Database, how: str) -> None:
    assert_migrated(migrate(tree_in(tmp_path, env_py(above=how)), database), database)


def test_a_low_limit_of_open_files(tmp_path: Path, database: Database) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    tree = tree_in(tmp_path, env_py())
    result = entrypoint("migrate", cwd=tree.folder, env={"DATABASE_URL": database.url}, preexec_fn=limit)
    assert_migrated(result, database)


CLOSING = "os.closerange(3, os.sysconf('SC_OPEN_MAX'))"


@pytest.mark.parametrize(("is_given", "thread"), [(True, ""), (True, "threading.Event().wait"), (False, "")])
def test_an_env_py_that_closes_the_pipe_of_its_worker_is_told_so(
    tmp_path: Path, database: Database, is_given: bool, thread: str
) -> None:
    tree = tree_in(tmp_path, env_py(above=CLOSING), ini=ini_with(database.url_on("psycopg")))
    if thread:  # what imports threads cannot be looked at in a fork
        (tree.versions / "r0.py").write_text(
            f"import threading\nthreading.Thread(target={thread}, daemon=True).start()\n"
        )
    result = migrate(tree, database if is_given else None)
    assert result.code == 78
    assert "closed file descriptors that it had not opened" in result.message
    assert "os.closerange" in result.message
    assert tables(database) == []


def test_a_migration_whose_import_ends_the_process_is_told_so(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py())
    tree.add("r3", down="r2", head="import os, signal, time\ntime.sleep(1)\nos.kill(os.getpid(), signal.SIGKILL)")
    result = migrate(tree, database)
    assert result.code == 78, result.stderr
    assert "the worker ended without a word, with status -9. Nothing was changed." in result.message
    assert tables(database) == []


@pytest.mark.parametrize("act", ["next_word()", "tell('started')"])
def test_a_worker_whose_pipes_are_closed_ends_with_a_status_of_its_own(act: str) -> None:
    """Whichever of its threads comes first."""
    closed = f"import os\nfrom alembic_entrypoint.worker.parent import Parent\nParent(90, 91).{act}"
    assert subprocess.run([sys.executable, "-c", closed], check=False).returncode == PIPE_CLOSED


def test_a_migration_that_closes_the_pipe_of_its_worker_is_told_so(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py())
    tree.add("r3", f"import os\n{CLOSING}", down="r2")
    result = migrate(tree, database)
    assert result.code == 1
    assert "closed file descriptors that it had not opened" in result.message
    assert "The database is as before" in result.message
    assert tables(database) == []


def test_streams_that_env_py_replaces_or_closes(tmp_path: Path, database: Database) -> None:
    above = "import io, sys\nsys.stdout.close(); sys.stdout = None; sys.stderr = io.StringIO()"
    assert_migrated(migrate(tree_in(tmp_path, env_py(above=above)), database), database)


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "lambda *_: None"])
def test_signal_handlers_that_env_py_replaces(tmp_path: Path, database: Database, handler: str) -> None:
    above = f"import signal\nfor each in (1, 2, 3, 13, 14, 15, 17): signal.signal(each, {handler})"
    tree_in(tmp_path, env_py(above=above))
    report = "import signal; print(*(n for n in (1, 3, 14, 15, 17) if signal.getsignal(n) == signal.SIG_IGN))"
    result = entrypoint("run", "--", sys.executable, "-c", report, cwd=tmp_path, env={"DATABASE_URL": database.url})
    ignored_before = [str(n) for n in (1, 3, 14, 15, 17) if signal.getsignal(n) == signal.SIG_IGN]
    assert (result.code, result.stdout.split()) == (0, ignored_before)
    assert recorded(database) == ["r2"]


def test_garbage_is_collected_while_env_py_and_migrations_run(tmp_path: Path, database: Database) -> None:
    enabled = "import gc\nassert gc.isenabled() and gc.get_freeze_count() > 0"
    tree = tree_in(tmp_path, env_py(above=enabled))
    tree.add("r3", enabled, down="r2")
    assert migrate(tree, database).code == 0


def test_an_alarm_and_an_asyncio_loop_left_running(tmp_path: Path, database: Database) -> None:
    after = """
import asyncio, threading
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever).start()
asyncio.set_event_loop(asyncio.new_event_loop())
"""
    assert_migrated(migrate(tree_in(tmp_path, env_py(after=after)), database), database)


def test_asyncio_loops_before_and_inside_of_one_another(tmp_path: Path, database: Database) -> None:
    before = "import asyncio\nasync def nothing(): pass\nasyncio.run(nothing())\n"
    env = before + async_env_py("create_async_engine(os.environ['DATABASE_URL'])")
    tree = tree_in(tmp_path, env)
    tree.add(
        "r3",
        "import asyncio, threading\nt = threading.Thread(target=lambda: asyncio.run(asyncio.sleep(0)))\n"
        "t.start()\nt.join()",
        down="r2",
    )
    result = migrate(tree, DATABASE_URL=database.url.replace("postgresql:", "postgresql+asyncpg:"))
    assert result.code == 0, result.message
    assert recorded(database) == ["r3"]


def test_exit_functions_and_finalizers_do_not_run_into_ours(tmp_path: Path, database: Database) -> None:
    above = "import atexit\natexit.register(lambda: os.kill(os.getppid(), 9))"
    assert_migrated(migrate(tree_in(tmp_path, env_py(above=above)), database), database)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no such tenant')", "ValueError: no such tenant"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("import sys; sys.exit()", "sys.exit(None)"),
        ("import sys; sys.exit('set TENANT')", "sys.exit('set TENANT')"),
        ("def f(", "SyntaxError"),
        ("os._exit(0)", "status 0"),
        ("os.kill(os.getpid(), 11)", "status -11"),
        ("class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E", "E"),
    ],
)
def test_an_env_py_that_ends_before_it_migrates_is_quoted(
    tmp_path: Path, database: Database, code: str, said: str
) -> None:
    result = migrate(tree_in(tmp_path, env_py(above=code)), database)
    assert result.code == 78, result.stderr
    assert said in result.message
    assert "Nothing was changed" in result.message
    assert tables(database) == []


def test_an_error_of_env_py_is_shown_with_its_line_and_without_our_frames(tmp_path: Path, database: Database) -> None:
    result = migrate(tree_in(tmp_path, env_py(above="1 / 0")), database)
    assert "migrations/env.py" in result.message
    assert "1 / 0" in result.message
    assert "alembic_entrypoint" not in result.message.replace("alembic_entrypoint_", "")


@pytest.mark.parametrize("code", ["", "0"])
def test_an_env_py_that_exits_well_after_it_migrated_is_done(tmp_path: Path, database: Database, code: str) -> None:
    after = f"import sys\nsys.exit({code})"
    assert_migrated(migrate(tree_in(tmp_path, env_py(after=after)), database), database)


def test_an_env_py_that_fails_after_it_migrated_fails(tmp_path: Path, database: Database) -> None:
    result = migrate(tree_in(tmp_path, env_py(after="raise ValueError('afterwards')")), database)
    assert result.code == 78
    assert "ValueError: afterwards" in result.message
    assert tables(database) == []


def test_an_env_py_that_does_not_migrate_at_all_is_refused(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, "print('nothing here')\n")
    result = migrate(tree, database)
    assert result.code == 78
    assert "env.py ended without calling context.run_migrations()" in result.message


NEVER = {
    "sleeping": "import time\ntime.sleep(3600)",
    "ignoring signals": "import signal, time\n"
    "for each in (1, 2, 15): signal.signal(each, signal.SIG_IGN)\n"
    "while True: time.sleep(3600)",
    "blocked in C": "import ctypes\nctypes.PyDLL(None).sleep(3600)",
}


@pytest.mark.parametrize("how", NEVER)
def test_an_env_py_that_never_ends_is_ended_by_sigterm_within_two_seconds(
    tmp_path: Path, database: Database, how: str
) -> None:
    above = "open('pid', 'w').write(str(os.getpid())); " + "\n" + NEVER[how]
    tree_in(tmp_path, env_py(above=above))
    with started(tmp_path, "migrate", env={"DATABASE_URL": database.url}) as running:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="env.py runs")
        running.signal(signal.SIGTERM)
        begun = time.monotonic()
        assert running.end(10).code == 143
        assert time.monotonic() - begun < 2.0
    wait_until(lambda: not is_running(int((tmp_path / "pid").read_text())), what="the worker is gone")


SLEEP = "import time\ntime.sleep(3600)"
NO_END = "came to its migrations, and it or the import of one of them did not end"
#: Where `env.py`, or else the last migration, sleeps, and what is said of it. It is run to look, and again to migrate.
ASLEEP: dict[str, tuple[dict[str, str], str]] = {
    "when it looks": ({"above": SLEEP}, "did not come to its migrations"),
    "after its look": ({"after": SLEEP}, NO_END),
    "when a migration is imported": ({}, NO_END),
    "when it would migrate": (
        {"above": "import time\nif os.path.exists('looked'): time.sleep(3600)\nopen('looked', 'w').close()"},
        "did not come to its migrations",
    ),
}


def test_an_env_py_that_never_ends_is_ended_after_a_while(tmp_path: Path, server: Server) -> None:
    with ExitStack() as stack:
        runs = []
        for name, (form, said) in ASLEEP.items():
            database = stack.enter_context(fresh_database(server))
            tree = tree_in(tmp_path / name, env_py(**form))
            if not form:
                tree.add("asleep", down="r2", head=SLEEP)
            env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "1"}
            runs.append((stack.enter_context(started(tree.folder, "migrate", env=env)), database, said))
        for running, database, said in runs:
            result = running.end(90)
            assert result.code == 78, result.stderr
            assert f"env.py {said} within 10 s" in result.message
            assert tables(database) == []
            locks = "SELECT 1 FROM pg_locks JOIN pg_database AS d ON d.oid = database WHERE locktype = 'advisory' "
            assert database.query(f"{locks} AND datname = current_database()") == []


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_daemon_that_keeps_the_connection_does_not_keep_the_next_migrator_waiting(
    tmp_path: Path, database: Database, driver: str
) -> None:
    tree = tree_in(tmp_path, env_on(driver).replace(", poolclass=pool.NullPool", ""))
    tree.add("r3", "os.fork() or (os.setsid(), time.sleep(60), os._exit(0))", down="r2", head="import os, time")
    assert migrate(tree, database).code == 0
    tree.add("r4", down="r3")
    result = migrate(tree, database, ALEMBIC_ENTRYPOINT_LOCK_WAIT="2")
    assert (result.code, recorded(database)) == (0, ["r4"]), result.stderr


def test_a_worker_does_not_outlive_a_parent_that_was_killed(tmp_path: Path, database: Database) -> None:
    tree_in(tmp_path, env_py(above="open('pid', 'w').write(str(os.getpid()))\nimport time\ntime.sleep(3600)"))
    with started(tmp_path, "migrate", env={"DATABASE_URL": database.url}) as running:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="env.py runs")
        running.signal(signal.SIGKILL)
        running.end()
    wait_until(lambda: not is_running(int((tmp_path / "pid").read_text())), what="the worker is gone")


BLOCK = """
with op.get_context().autocommit_block():
    for n in range(8):
        op.execute(f"SELECT {n}")
    op.execute("DISCARD ALL")
    op.execute("SELECT 'after it'")
"""
FORGETTING = {"DEALLOCATE ALL": "op.execute('DEALLOCATE ALL')", "DISCARD ALL": BLOCK}


@pytest.mark.parametrize("body", FORGETTING.values(), ids=FORGETTING)
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_migration_that_forgets_what_was_prepared_takes_nothing_of_ours(
    tmp_path: Path, database: Database, driver: str, body: str
) -> None:
    """By then the driver has prepared what we ask before each statement, or after each migration."""
    tree = tree_in(tmp_path, env_on(driver))
    tree.add_line(7)
    tree.add("r8", body, down="r7")
    tree.add("r9", down="r8")
    result = migrate(tree, DATABASE_URL=database.url_on(driver))
    assert result.code == 0, result.stderr
    assert recorded(database) == ["r9"]
