"""The app is what it would have been, had it been started directly: process, arguments, environment, streams, end."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands import COMMAND, entrypoint, environment, started
from projects import ENV, Project, project
from servers import Database, Server, fresh_database, processes_with

#: What an app can see of itself, written by one that changes none of it. `sh -c` opens no file of its own.
REPORT = """
cat /proc/$$/cmdline > cmdline; cat /proc/$$/environ > environ; cat /proc/$$/task/$$/children > children
umask > umask; pwd -P > cwd; echo $$ > pid; cat > stdin; echo out; echo err >&2
"""
SHELL = ["/bin/sh", "-c", REPORT]

EXIT_WITH_EACH_STATUS = """
import os
from alembic_entrypoint.launch import launch

for status in range(256):
    child = os.fork()
    if child == 0:
        launch(["sh", "-c", f"exit {status}"])
    print(status, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@dataclass(frozen=True)
class Settled:
    """A project whose database is at head, so that a run changes nothing and starts the app."""

    tree: Project
    database: Database


@pytest.fixture(scope="module")
def settled(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settled]:
    tree = project(tmp_path_factory.mktemp("settled"))
    tree.add_line(1)
    with fresh_database(server) as database:
        result = entrypoint("migrate", cwd=tree.folder, env={"DATABASE_URL": database.url})
        assert result.code == 0, result.stderr
        yield Settled(tree, database)


@dataclass(frozen=True)
class Report:
    """What the app saw."""

    folder: Path
    pid: int
    stderr: str

    def bytes_of(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def words_of(self, name: str) -> list[str]:
        return self.bytes_of(name).decode().split()


def report(settled: Settled, arguments: Sequence[bytes] = (), env: dict[bytes, bytes] | None = None) -> Report:
    """Run the whole flow with an app that reports what it got."""
    folder = settled.tree.folder
    process = subprocess.Popen(
        [os.fsencode(COMMAND), b"run", b"--", *map(os.fsencode, SHELL), *arguments],
        cwd=folder,
        env=env if env is not None else {os.fsencode(k): os.fsencode(v) for k, v in variables(settled).items()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        umask=0o027,
    )
    out, err = process.communicate(b"\x00 typed \xff\n", timeout=60)
    assert (process.returncode, out) == (0, b"out\n"), err.decode(errors="replace")
    return Report(folder, process.pid, err.decode(errors="replace"))


def variables(settled: Settled) -> dict[str, str]:
    return environment({"DATABASE_URL": settled.database.url})


def test_the_app_is_the_process_that_was_started_with_its_streams_and_folder(settled: Settled) -> None:
    seen = report(settled)
    assert seen.words_of("pid") == [str(seen.pid)]
    assert seen.bytes_of("stdin") == b"\x00 typed \xff\n"
    assert seen.stderr.endswith("\nerr\n")
    assert seen.words_of("umask") == ["0027"]
    assert seen.words_of("cwd") == [str(settled.tree.folder.resolve())]


#: What an app has, told by one that opens and starts nothing but what tells it. Last, whether it takes the orphans
#: among its descendants (prctl(2), PR_GET_CHILD_SUBREAPER), which only the process itself can see. The shell reads the
#: masks by itself: while it starts another program, all signals are blocked.
POSSESSIONS = """
ls -l /proc/$$/fd; while read -r name value; do echo "$name$value"; done < /proc/$$/status
echo children: $(cat /proc/$$/task/$$/children)
exec "$0" -c 'import ctypes; answer = ctypes.c_int(); ctypes.CDLL(None).prctl(37, ctypes.byref(answer), 0, 0, 0)
print("subreaper:", answer.value)'
"""
#: Whoever becomes us may be what takes orphans, and the app is it then (prctl(2), PR_SET_CHILD_SUBREAPER).
BEING_A_SUBREAPER = [
    sys.executable,
    "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])",
]
#: Or leave us a child, which is the app's then.
LEAVING_A_CHILD = ["sh", "-c", 'sleep 60 & exec "$0" "$@"']
LEAVING_OTHERS = """
import subprocess
open("looked", "w").close()
subprocess.Popen(["sleep", "30"])
subprocess.Popen(["setsid", "sh", "-c", "true & sleep 30 & sleep 30"])
"""
#: It cannot bear to be sent to the target wherever it connects, and calls the target by another name.
UNBEARING = """
import psycopg
assert psycopg.connect("{postgres}").info.dbname == "postgres"
"""


def prepare(way: str, tree: Project, database: Database) -> dict[str, str]:
    """Prepare a run that comes to its app in some way, and give its variables."""
    tree.add_line(1)
    if way == "a proof":  # a replay may start nothing
        database.execute("CREATE TABLE t1 (id int PRIMARY KEY)")
    elif way == "three looks":
        url = database.url.replace("127.0.0.1", "localhost").replace("postgresql:", "postgresql+psycopg:")
        env = ENV.replace('config.get_main_option("sqlalchemy.url")', repr(url))
        tree.write("migrations/env.py", UNBEARING.format(postgres=database.server.url) + env + LEAVING_OTHERS)
    else:
        tree.write("migrations/env.py", ENV + LEAVING_OTHERS)
    variables = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_LEDGER": "off" if way == "a look" else "on"}
    if way in ("a fast start", "a look"):
        assert entrypoint("migrate", cwd=tree.folder, env=variables).code == 0
        (tree.folder / "looked").unlink()
    return variables


#: Ways to the app: what is done to the database, and whether env.py is run to its end.
WAYS = {
    "a fast start": ("", False),
    "an upgrade": ("schema.upgraded", True),
    "a proof": ("schema.stamped", False),
    "a look": ("", True),
    "three looks": ("schema.upgraded", True),
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if n < 2 else pytest.mark.wide) for n, way in enumerate(WAYS)]
)
def test_descriptors_signals_and_children_are_those_that_came_with_us(
    way: str, tmp_path: Path, database: Database
) -> None:
    """No signal is ignored or blocked, not even one that Python ignores or that whoever started us had blocked."""
    env = prepare(way, project(tmp_path), database) | {"MARK": str(tmp_path)}
    reading, writing = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    command = ("run", "sh", "-c", POSSESSIONS, sys.executable)
    was_subreaper = way == "a look"
    within = [*(BEING_A_SUBREAPER if was_subreaper else []), *LEAVING_A_CHILD]
    with started(tmp_path, *command, env=env, within=within, pass_fds=(writing,)) as running:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        os.close(reading)
        os.close(writing)
        result = running.end()
    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    values = dict(line.split(":") for line in lines if ":" in line and " -> " not in line)
    children = values["children"].split()
    left = processes_with(f"MARK={tmp_path}")
    os.kill(int(children[0]), signal.SIGKILL)
    assert left == ["sleep 60 "]
    assert len(children) == 2  # the other one reads the list

    acted = [each["event"] for each in result.events if each["event"] in ("schema.upgraded", "schema.stamped")]
    assert ("".join(acted), (tmp_path / "looked").exists()) == WAYS[way]
    opened = [line.split()[-3] for line in lines if " -> " in line]
    assert sorted(opened) == sorted(["0", "1", "2", str(writing)])
    # Signals 32 and 33 are the C library's own: nobody can set them, and what an ancestor left there is not ours. Nor
    # is what it ignores on purpose, as nohup does.
    ancestors = 0b11 << 31 | (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
    assert {int(values[name], 16) & ~ancestors for name in ("SigIgn", "SigBlk", "SigPnd")} == {0}
    assert int(values["subreaper"]) == was_subreaper


def test_arguments_arrive_byte_for_byte(settled: Settled) -> None:
    given = [b"app", b"--", b"--help", b"", b" a  b ", b"*.py", b"$HOME ~", b"\xff\xfe\n", "ü😀".encode(), b"-x=1"]
    seen = report(settled, given)
    assert seen.bytes_of("cmdline").split(b"\0")[:-1] == [*map(os.fsencode, SHELL), *given]


def test_the_environment_arrives_byte_for_byte(settled: Settled) -> None:
    """Without a locale, too, where Python sets an LC_CTYPE of its own."""
    given = {
        b"PATH": os.fsencode(os.environ["PATH"]),
        b"DATABASE_URL": settled.database.url.encode(),
        b"RAW": b"\xff\xfe = \n%",
        b"\xc3\xbc": b"",
        b"ALEMBIC_ENTRYPOINT_IMAGE": b"v1",
    }
    seen = report(settled, env=given)
    assert sorted(seen.bytes_of("environ").split(b"\0")[:-1]) == sorted(b"=".join(pair) for pair in given.items())


@pytest.mark.parametrize("locale", ["", "C.UTF-8"])
def test_a_locale_that_was_set_for_the_app_stays(tmp_path: Path, locale: str) -> None:
    env = {"PATH": os.environ["PATH"], "LC_CTYPE": locale, "ALEMBIC_ENTRYPOINT_MODE": "off"}
    seen = subprocess.run([COMMAND, "run", "env"], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"LC_CTYPE={locale}" in seen.stdout.splitlines()


@pytest.mark.parametrize("status", [0, 3, 255])
def test_the_exit_status_of_the_app_is_passed_on(settled: Settled, status: int) -> None:
    result = entrypoint("run", "sh", "-c", f"exit {status}", cwd=settled.tree.folder, env=variables(settled))
    assert result.code == status, result.stderr


def test_every_exit_status_is_passed_on() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT_WITH_EACH_STATUS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{status} {status}" for status in range(256)]


def test_an_app_that_a_signal_kills_is_seen_to_be_killed_by_it(settled: Settled) -> None:
    result = entrypoint("run", "sh", "-c", "kill -SEGV $$", cwd=settled.tree.folder, env=variables(settled))
    assert result.code == -signal.SIGSEGV


def test_the_launch_is_logged_last_with_the_state(settled: Settled) -> None:
    result = entrypoint("run", "true", cwd=settled.tree.folder, env=variables(settled))
    assert (result.events[-1]["event"], result.events[-1]["state"]) == ("app.launching", "CURRENT")


def test_a_command_that_cannot_be_found_ends_the_whole_flow_with_127(settled: Settled) -> None:
    result = entrypoint("run", "--", "no-such-command", cwd=settled.tree.folder, env=variables(settled))
    assert (result.code, result.stdout) == (127, "")
    assert result.message.startswith("no-such-command: no such command. It was looked for in PATH=")


def program(folder: Path, name: str, text: str, mode: int = 0o755) -> str:
    file = folder / name
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def test_what_cannot_be_executed_ends_with_126_and_says_why(tmp_path: Path) -> None:
    made = {
        program(tmp_path, "plain", "#!/bin/sh\n", stat.S_IRUSR): "Permission denied.",
        program(tmp_path, "nothing", "echo started\n"): "Exec format error.",
        str(tmp_path): "Permission denied.",
        f"{tmp_path}/plain/app": "Not a directory.",
    }
    for command, reason in made.items():
        result = entrypoint("run", command, cwd=tmp_path, env={"ALEMBIC_ENTRYPOINT_MODE": "off"})
        assert (result.code, result.message) == (126, f"{command}: cannot be executed: {reason}")


def test_what_is_not_there_ends_with_127_and_says_what_to_look_at(tmp_path: Path) -> None:
    script = program(tmp_path, "script", "#!/nowhere/python3\n")
    cases = {
        script: "The file is there, but the interpreter in its first line is not.",
        "script": "The file is there, but the interpreter in its first line is not.",
        "echo hello": "It is one word with spaces in it: give the command and its arguments as separate words.",
        "./missing": "There is no such file.",
        "missing": f"It was looked for in PATH={tmp_path}.",
    }
    for command, hint in cases.items():
        env = {"ALEMBIC_ENTRYPOINT_MODE": "off", "PATH": str(tmp_path)}
        result = entrypoint("run", command, cwd=tmp_path, env=env)
        assert (result.code, result.message) == (127, f"{command}: no such command. {hint}")


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_closed_stream_keeps_no_app_from_starting(tmp_path: Path, descriptor: int) -> None:
    started = tmp_path / "started"
    line = f'exec "$0" run touch {started} {descriptor}>&-'
    done = subprocess.run(["sh", "-c", line, COMMAND], env=environment({"ALEMBIC_ENTRYPOINT_MODE": "off"}), check=False)
    assert (done.returncode, started.exists()) == (0, True)


def test_a_log_that_nobody_reads_keeps_no_app_from_starting(settled: Settled) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [COMMAND, "run", "echo", "started"],
        cwd=settled.tree.folder,
        env=variables(settled),
        stdout=subprocess.PIPE,
        stderr=writing,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"started\n")
