"""Settings as a person gives them, and what is never shown: through the installed command."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from commands import COMMAND, Result, entrypoint, environment
from projects import Project, project
from servers import Database, Server

PREFIX = "ALEMBIC_ENTRYPOINT_"
SECRET = "s3cret-w0rd"


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add_line(1)
    return made


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"LOCKWAIT": "5"},
            "ALEMBIC_ENTRYPOINT_LOCKWAIT is not a setting of alembic-entrypoint. A misspelt setting would silently not "
            "count. The nearest name is ALEMBIC_ENTRYPOINT_LOCK_WAIT; `alembic-entrypoint run --help` lists all of "
            "them.",
        ),
        (
            {"WAIT_TIMEOUT": "5s"},
            "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT is '5s'. It must be a number of seconds, 0 or more.",
        ),
        (
            {"DATABASE_URL": "postgresql://a/b", "DATABASE_URL_FILE": "/run/secrets/url"},
            "ALEMBIC_ENTRYPOINT_DATABASE_URL and ALEMBIC_ENTRYPOINT_DATABASE_URL_FILE are both set, and may differ. "
            "Unset one of them.",
        ),
    ],
)
@pytest.mark.parametrize(
    "command", [("run", "echo", "the app"), ("migrate",), ("plan",)], ids=lambda command: command[0]
)
def test_a_wrong_setting_ends_every_command_with_78(
    command: tuple[str, ...], variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    result = entrypoint(*command, cwd=tmp_path, env={PREFIX + name: value for name, value in variables.items()})
    assert (result.code, result.stdout, result.message) == (78, "", message)


def test_an_empty_variable_counts_as_unset_and_an_option_wins(tree: Project, database: Database) -> None:
    env = {
        "DATABASE_URL": database.url,
        PREFIX + "DATABASE_URL": "",
        PREFIX + "WAIT_TIMEOUT": "",
        PREFIX + "TARGET": "nowhere",
    }
    result = entrypoint("migrate", "--target", "r1", cwd=tree.folder, env=env)
    assert result.code == 0, result.stderr
    assert database.query("SELECT version_num FROM alembic_version") == [("r1",)]


def test_the_url_may_be_a_secret_in_a_file(tree: Project, database: Database, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(database.url + "\n")
    result = entrypoint("migrate", cwd=tree.folder, env={"DATABASE_URL_FILE": str(tmp_path / "secret")})
    assert result.code == 0, result.stderr


@pytest.mark.parametrize(
    "place",
    [
        {"DATABASE_URL_FILE": f"postgresql://app:{SECRET}@db/shop"},
        {PREFIX + "MODE": f"postgresql://app:{SECRET}@db/shop"},
        {PREFIX + "CONFIG": f"postgresql://app:{SECRET}@db/shop"},
        {PREFIX + "TARGET": f"host=db password={SECRET}"},
        {PREFIX + "PYTHON": f"postgresql://app:{SECRET}@db/shop"},
        {"DATABASE_URL": f"app:{SECRET}@db/shop"},
        {"DATABASE_URL": f"postgresql://app:{SECRET}@db:port/shop"},
        {"DATABASE_URL": f"mysql://app:{SECRET}@db/shop"},
    ],
    ids=lambda place: next(iter(place)),
)
def test_a_password_in_a_wrong_place_is_not_shown(place: dict[str, str], tmp_path: Path) -> None:
    result = entrypoint("run", "echo", "the app", cwd=tmp_path, env=place)
    assert (result.code, result.stdout) == (78, ""), result.stderr
    assert SECRET not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("migrate", f"postgresql://app:{SECRET}@db/shop"), 2),
        (("migrate", f"--database-url=postgresql://app:{SECRET}@db/shop"), 2),
        ((f"postgresql://app:{SECRET}@db/shop",), 2),
        (("run", "--mode", "off", f"postgresql://app:{SECRET}@db/shop"), 127),
    ],
)
def test_a_password_in_an_argument_is_not_shown(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    result = entrypoint(*arguments, cwd=tmp_path)
    assert result.code == code, result.stderr
    assert result.stderr
    assert SECRET not in result.stderr + result.stdout


HARD = "p@ss:w/ö%r'd\" #1"


def spellings(password: str) -> set[str]:
    return {password, quote(password, safe=""), quote(password), repr(password)[1:-1], password.replace('"', '\\"')}


def test_a_password_is_shown_by_nothing_that_env_py_and_migrations_print_or_raise(
    tree: Project, server: Server
) -> None:
    """Every step has its say here: env.py prints its URL, a migration fails with it, and so does the worker."""
    tree.add(
        "r1",
        """
        import sys
        url = op.get_bind().engine.url.render_as_string(hide_password=False)
        print(url); print(url, file=sys.stderr); print(repr(op.get_bind().engine.url.password))
        raise RuntimeError(f"cannot use {url}: {op.get_bind().engine.url.password}")
        """,
    )
    url = f"postgresql://postgres:{quote(HARD, safe='')}@127.0.0.1:{server.port}/postgres"
    result = entrypoint(
        "run", "echo", "the app", cwd=tree.folder, env={"DATABASE_URL": url, PREFIX + "LOG_LEVEL": "debug"}
    )
    assert (result.code, result.stdout) == (1, ""), result.stderr
    assert "cannot use postgresql" in result.message
    assert [each for each in spellings(HARD) if each in result.stderr] == []


def test_a_password_is_in_no_process_list(tree: Project, database: Database) -> None:
    """The migration reads the command lines of its own process and of those above it."""
    tree.add(
        "r1",
        """
        import os, pathlib
        lines = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (os.getpid(), os.getppid())]
        pathlib.Path("cmdlines").write_bytes(b"\\n".join(lines))
        """,
    )
    url = database.url.replace("postgres@", f"postgres:{SECRET}@")
    assert entrypoint("migrate", cwd=tree.folder, env={"DATABASE_URL": url}).code == 0
    lines = (tree.folder / "cmdlines").read_bytes()
    assert b"alembic-entrypoint" in lines
    assert SECRET.encode() not in lines


# --- how it is written ---------------------------------------------------------------------------------------------


def on_a_terminal(tree: Project, *arguments: str, **env: str) -> str:
    """Run with a terminal for stderr, and give what it shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, *arguments], cwd=tree.folder, env=environment(env), stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:  # how a terminal tells that nobody is left
        pass
    os.close(ours)
    process.wait(30)
    return shown.decode()


def test_a_terminal_gets_lines_for_people_and_anything_else_json(tree: Project, database: Database) -> None:
    shown = on_a_terminal(tree, "migrate", DATABASE_URL=database.url)
    assert "migration.finished" in shown
    assert '{"' not in shown
    assert [
        line
        for line in entrypoint("migrate", cwd=tree.folder, env={"DATABASE_URL": database.url}).stderr.splitlines()
        if not line.startswith("{")
    ] == []


def test_on_a_terminal_a_refusal_is_readable_as_it_stands(tree: Project) -> None:
    shown = on_a_terminal(tree, "migrate", DATABASE_URL="mysql://a/b")
    assert shown.splitlines()[-1].startswith("DATABASE_URL cannot be used: it is a URL of mysql, not of PostgreSQL.")


def test_the_form_and_the_level_can_be_chosen(tree: Project) -> None:
    def lines(**env: str) -> Result:
        return entrypoint(
            "migrate",
            cwd=tree.folder,
            env={"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x", PREFIX + "WAIT_TIMEOUT": "0", **env},
        )

    assert [each["event"] for each in lines().events] == ["database.waiting", "run.ended"]
    assert [each["event"] for each in lines(**{PREFIX + "LOG_LEVEL": "error"}).events] == ["run.ended"]
    console = lines(**{PREFIX + "LOG_FORMAT": "console"})
    assert console.events == []
    assert "\nThe database was not ready within 0 s." in console.stderr
    assert "\x1b" not in console.stderr
    assert on_a_terminal(tree, "migrate", "--log-format", "json", "--mode", "off") == ""
