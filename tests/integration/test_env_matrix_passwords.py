"""A password of any letters logs in, wherever it comes from and whatever driver it is for, and is never shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from env_forms import env_on, recorded, tree_in
from psycopg import sql

from commands import Running, started
from projects import DRIVERS, Project
from servers import Database, Server, fresh_database, own_server, wait_until

pytestmark = pytest.mark.wide

PASSWORDS = {
    "at": "p4@ss@word",
    "slash": "p4/ss/word",
    "colon": "p4:ss:word",
    "percent": "p4%ss%%word",
    "quotes": "p4'ss\"word'",
    "hash": "p4#ss#word",
    "space": "p4 ss word",
    "letters": "p4ßs-wörd-密碼",
    "backslash": "p4\\ss\\word",
    "all": "p4@ / : % ' \" # ? & = + ä",
}


@pytest.fixture(scope="module")
def scram() -> Iterator[Server]:
    """Give a server that wants each role's password, but for that of the tests."""
    hba = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    with own_server(hba=hba) as server:
        with server.connect() as connection:
            for name, password in PASSWORDS.items():
                create = sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}")
                connection.execute(create.format(sql.Identifier(f"role_{name}"), sql.Literal(password)))
        yield server


@pytest.fixture
def database(scram: Server) -> Iterator[Database]:
    """Give a database on that server."""
    with fresh_database(scram) as made:
        yield made


@dataclass(frozen=True)
class Login:
    """A role, its password, and the URL that says both."""

    password: str
    url: str


def login(name: str, database: Database, driver: str = "", *, is_encoded: bool = True) -> Login:
    password = PASSWORDS[name]
    spelled = quote(password, safe="") if is_encoded else password
    scheme = "postgresql" + (f"+{driver}" if driver else "")
    port = database.server.port
    return Login(password, f"{scheme}://role_{name}:{spelled}@127.0.0.1:{port}/{database.name}")


def forms_of(password: str) -> set[str]:
    """Give every form in which it could be read off somewhere."""
    forms = {password, quote(password, safe=""), quote(password), quote_plus(password)}
    forms |= {form.replace("%", "%%") for form in forms}
    forms |= {json.dumps(form)[1:-1] for form in forms} | {repr(form)[1:-1] for form in forms}
    return forms | {form.encode("unicode_escape").decode() for form in forms} | {ascii(password)[1:-1]}


def assert_hidden(password: str, text: str, where: str) -> None:
    """See that no form of it stands in a text; nor a longer part of it, as a cut message might have it."""
    found = [form for form in forms_of(password) if form in text]
    assert not found, f"{where} shows {found}"


def command_lines(pid: int) -> str:
    """Read the command lines of a process and of what it started."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            if parent == pid or file.parent.name == str(pid):
                found.append((file.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(found)


# Says that it is there, and waits until the test has looked at the command lines. Its word to the log is the URL.
PAUSE = """
import pathlib, time
pathlib.Path("here").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.01)
"""


def settle_and_watch(tree: Project, password: str, env: dict[str, str]) -> Running:
    """Run `migrate`, look at the command lines of parent and worker, and see that the password is nowhere."""
    tree.add("r3", PAUSE, down="r2")
    with started(tree.folder, "migrate", env={**env, "ALEMBIC_ENTRYPOINT_LOG_LEVEL": "debug"}) as running:
        wait_until(lambda: (tree.folder / "here").exists() or running.process.poll() is not None, 40)
        lines = command_lines(running.pid)
        (tree.folder / "go").touch()
        result = running.end()
    assert result.code == 0, result.message
    assert lines.count("\n") >= 1
    assert_hidden(password, lines, "a command line")
    assert_hidden(password, result.stderr, "the log")
    return running


@pytest.mark.parametrize(
    ("name", "driver"),
    [*((name, DRIVERS[n % 3]) for n, name in enumerate(PASSWORDS)), *(("all", driver) for driver in DRIVERS[1:])],
)
def test_a_percent_encoded_password_in_database_url(tmp_path: Path, database: Database, name: str, driver: str) -> None:
    given = login(name, database, driver)
    tree = tree_in(tmp_path, f"print({given.url!r}, {given.password!r})\n" + env_on(driver))
    settle_and_watch(tree, given.password, {"DATABASE_URL": given.url})
    assert recorded(database) == ["r3"]


@pytest.mark.parametrize("name", ["at", "slash", "quotes", "letters"])
def test_a_raw_password_in_database_url_file(tmp_path: Path, database: Database, name: str) -> None:
    driver = DRIVERS[len(name) % 3]
    given = login(name, database, is_encoded=False)
    tree = tree_in(tmp_path, f"print({given.url!r})\n" + env_on(driver, f"'postgresql+{driver}://db.invalid/x'"))
    (tmp_path / "secret").write_text(given.url + "\n")
    settle_and_watch(tree, given.password, {"DATABASE_URL_FILE": str(tmp_path / "secret")})
    assert recorded(database) == ["r3"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_raw_password_in_our_own_database_url(tmp_path: Path, database: Database, driver: str) -> None:
    given = login("percent", database, driver, is_encoded=False)
    tree = tree_in(tmp_path, env_on(driver))
    settle_and_watch(tree, given.password, {"ALEMBIC_ENTRYPOINT_DATABASE_URL": given.url})
    assert recorded(database) == ["r3"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_password_that_is_asked_of_env_py(tmp_path: Path, database: Database, driver: str) -> None:
    given = login("all", database, driver)
    url = "URL.create(" + ", ".join(
        [
            f"'postgresql+{driver}'",
            "username='role_all'",
            "password=os.environ['SECRET']",
            "host='127.0.0.1'",
            f"port={database.server.port}",
            f"database={database.name!r})",
        ]
    )
    env = "import os\nfrom sqlalchemy.engine import URL\nprint(os.environ['SECRET'], flush=True)\n" + env_on(
        driver, url
    )
    settle_and_watch(tree_in(tmp_path, env), given.password, {"SECRET": given.password})
    assert recorded(database) == ["r3"]


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("env.py", "raise ValueError(os.environ['DATABASE_URL'])"),
        ("env.py", "config.set_main_option('sqlalchemy.url', os.environ['DATABASE_URL'])"),
        ("env.py", "create_engine(os.environ['DATABASE_URL'].replace('postgresql', 'nonsense'))"),
        ("env.py", "import sys; sys.exit(os.environ['DATABASE_URL'])"),
        ("env.py", "print(os.environ['DATABASE_URL']); os._exit(1)"),
        ("a migration", "import os\nraise ValueError(os.environ['DATABASE_URL'])"),
        ("a migration", "import os\nop.execute('SELECT ' + repr(os.environ['DATABASE_URL']) + ' FROM nowhere')"),
    ],
)
def test_a_password_in_what_fails_is_not_shown(tmp_path: Path, database: Database, where: str, code: str) -> None:
    given = login("all", database)
    env = env_on("psycopg")
    if where == "env.py":
        env = env.replace("config = context.config", f"config = context.config\n{code}")
    tree = tree_in(tmp_path, env)
    if where == "a migration":
        tree.add("r3", code, down="r2")
    with started(tmp_path, "migrate", env={"DATABASE_URL": given.url}) as running:
        result = running.end()
    assert result.code in (1, 78)
    assert_hidden(given.password, result.stderr, "the log")


@pytest.mark.parametrize(
    "code", ["raise ValueError(url)", "print(url); os._exit(1)", "create_engine('nonsense ' + url)"]
)
def test_a_password_in_what_fails_before_the_database_is_known_is_not_shown(
    tmp_path: Path, database: Database, code: str
) -> None:
    # No setting names it, and env.py has not connected yet: only its place in a URL, or its variable, tells.
    given = login("at", database)
    above = "url = 'postgresql://role_at:' + os.environ['POSTGRES_PASSWORD'] + '@127.0.0.1/x'\n" + code
    env = env_on("psycopg").replace("config = context.config", f"config = context.config\n{above}")
    tree_in(tmp_path, env)
    for variable in ("POSTGRES_PASSWORD", "UNSEEN"):
        text = (tmp_path / "migrations" / "env.py").read_text().replace("POSTGRES_PASSWORD", variable)
        (tmp_path / "migrations" / "env.py").write_text(text)
        with started(tmp_path, "migrate", env={variable: given.password}) as running:
            result = running.end()
        assert result.code == 78
        assert_hidden(given.password, result.stderr, variable)
        assert not re.search(r"ss@word", result.stderr)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_wrong_password_is_not_shown_either(tmp_path: Path, database: Database, driver: str) -> None:
    given = login("all", database, driver)
    url = given.url.replace("role_all", "role_at")
    tree_in(tmp_path, env_on(driver))
    env = {"DATABASE_URL": url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "1"}
    with started(tmp_path, "migrate", env=env) as running:
        result = running.end()
    assert result.code == 77
    assert_hidden(given.password, result.stderr, "the log")


def test_a_url_that_is_no_url_is_not_repeated(tmp_path: Path) -> None:
    tree_in(tmp_path, env_on("psycopg"))
    for url in ("postgresql//u:p4ssw0rd@h/d", "mysql://u:p4ssw0rd@h/d", "postgresql://u:p4ssw0rd@h:port/d"):
        with started(tmp_path, "migrate", env={"DATABASE_URL": url}) as running:
            result = running.end()
        assert result.code == 78
        assert "p4ssw0rd" not in result.stderr
