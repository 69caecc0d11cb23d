"""Ten broken databases. The end of each is written down first; what `diagnose` prints is typed, and leads there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from commands import COMMAND, Result, entrypoint, started
from projects import Project, project
from servers import Database, Server, pgbouncer, processes_of, wait_until

Completed = subprocess.CompletedProcess[str]
MAKO = """revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
def upgrade(): pass
"""
#: How often a person looks again before giving up.
PATIENCE = 4


def printed(screen: str) -> list[str]:
    """Take from a screen the commands under "What to do now", as they stand there."""
    advice = screen.partition("What to do now")[2]
    return [line.removeprefix("   $ ") for line in advice.splitlines() if line.startswith("   $ ")]


@dataclass
class Person:
    """Who is on call: a shell in the project's folder, the service's variables, and an administrator's name."""

    tree: Project
    server: Server
    database: Database
    variables: dict[str, str] = field(default_factory=dict)
    typed: list[str] = field(default_factory=list)
    read: str = ""

    def type(self, command: str) -> Completed:
        """Type a command as it was printed; read what it says."""
        path = f"{Path(COMMAND).parent}:{self.server.binaries}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "PGUSER": "postgres", "PYTHONIOENCODING": "utf-8", **self.variables}
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.tree.folder, env=env, capture_output=True, text=True, timeout=90
        )
        self.read += done.stdout + done.stderr
        return done

    def follow(self, shown: Completed) -> int:
        """Type every command of a screen, and those of the screens that come of it; give how many."""
        commands = printed(shown.stdout)
        for command in commands:
            done = self.type(command)
            self.typed.append(command)
            leads_on = self.follow(done)
            # What shows another screen ends as `run` would.
            assert done.returncode == 0 or leads_on, (command, done.stdout, done.stderr)
        return len(commands)

    def get_out(self) -> None:
        """Diagnose and do what it says, until it says nothing more."""
        for _ in range(PATIENCE):
            shown = self.type("alembic-entrypoint diagnose")
            commands = printed(shown.stdout)
            if not self.typed:
                told = json.loads(self.type("alembic-entrypoint diagnose --json").stdout)
                assert told["exit_code"] == shown.returncode
                assert [step["command"] for step in told["what_to_do"] if step["command"]] == commands
            if not commands or (shown.returncode and set(commands) <= set(self.typed)):
                return  # nothing is left to type, or the same again
            self.follow(shown)
        pytest.fail(f"there was no end to it: {self.typed}")

    def run(self) -> Result:
        return entrypoint("run", "echo", "up", cwd=self.tree.folder, env=self.variables)

    def migrate(self, *options: str, **env: str) -> None:
        """Migrate as the service did before it broke."""
        result = entrypoint("migrate", *options, cwd=self.tree.folder, env={"DATABASE_URL": self.database.url, **env})
        assert result.code == 0, result.message


Deed = Callable[[Person], None]


@dataclass(frozen=True)
class Case:
    """What is broken, how a start ends after all commands, what only a person can do, and the end."""

    breaks: Callable[[Person], AbstractContextManager[None]]
    #: exit code and words of the refusal that no command mends, where a person has to
    refused: tuple[int, tuple[str, ...]] | None = None
    deed: Deed | None = None
    #: what is recorded in the end, when the app is up; None is whatever the tree has as its head
    recorded: str | None = "r3"


# --- the broken ----------------------------------------------------------------------------------------------------


@contextmanager
def lost_and_equal(person: Person) -> Iterator[None]:
    person.migrate()
    person.database.execute("UPDATE alembic_version SET version_num = 'a2242b61af45'")
    yield


@contextmanager
def lost_and_different(person: Person) -> Iterator[None]:
    """A migration that was applied, by Alembic alone, and whose file was deleted by mistake."""
    tree = person.tree
    file = tree.add("a2242b61af45", "op.execute('ALTER TABLE t3 ADD email text')", down="r3")
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "Add e-mail")
    person.migrate("--ledger", "off")
    file.unlink()
    git(tree, "commit", "--quiet", "--all", "--message", "Tidy up")
    yield


def git(tree: Project, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *arguments], cwd=tree.folder, check=True, capture_output=True)


def bring_the_file_back(person: Person) -> None:
    assert "migrations/versions/a2242b61af45.py" in person.read
    git(person.tree, "checkout", "HEAD~1", "--", "migrations/versions/a2242b61af45.py")


@contextmanager
def untracked(person: Person) -> Iterator[None]:
    """What `create_all()` makes: the tables of an older release, and no version table."""
    person.database.execute("CREATE TABLE t1 (id int PRIMARY KEY); CREATE TABLE t2 (id int PRIMARY KEY)")
    yield


@contextmanager
def ahead(person: Person) -> Iterator[None]:
    newer = person.tree.add("r4", "op.execute('CREATE TABLE t4 ()')", down="r3")
    person.migrate(ALEMBIC_ENTRYPOINT_IMAGE="notes:2")
    newer.unlink()
    yield


def deploy_the_newer_image(person: Person) -> None:
    person.tree.add("r4", "op.execute('CREATE TABLE t4 ()')", down="r3")


@contextmanager
def rewritten(person: Person) -> Iterator[None]:
    """A branch that was rebased beneath a migration which had been applied."""
    person.migrate()
    person.tree.add("yours", "op.execute('CREATE TABLE yours ()')", down="r1")
    person.tree.add("r2", "op.execute('CREATE TABLE t2 (id int PRIMARY KEY)')", down="yours")
    yield


def edit_the_files_as_told(person: Person) -> None:
    """Set in each file that is named what is said of it, and nothing else."""
    for path, edit in dict.fromkeys(re.findall(r"^ +- (\S+): (down_revision = .*)$", person.read, re.MULTILINE)):
        file = person.tree.folder / path
        file.write_text(re.sub("^down_revision = .*$", edit, file.read_text(), flags=re.MULTILINE))


@contextmanager
def forked(person: Person) -> Iterator[None]:
    person.migrate()
    person.tree.write("migrations/script.py.mako", MAKO)
    person.tree.add("yours", "op.execute('CREATE TABLE yours ()')", down="r1")
    yield


@contextmanager
def locked_by_the_dead(person: Person) -> Iterator[None]:
    """A migrator that stands still in the middle of a migration, like its host: its sessions are still there."""
    hangs = "import os\nif os.environ.get('HANGS'):\n    op.execute('SELECT pg_sleep(600)')"
    person.tree.add("r3", f"op.execute('CREATE TABLE t3 (id int PRIMARY KEY)')\n{hangs}", down="r2")
    env = {"DATABASE_URL": person.database.url, "HANGS": "1"}
    with started(person.tree.folder, "migrate", env=env) as running:
        wait_until(lambda: person.database.query(SLEEPING), timeout=30, what="it is in the migration")
        family = processes_of(running.pid)
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


SLEEPING = "SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%' AND datname = current_database()"
IDLE = """SELECT FROM pg_stat_activity WHERE application_name = 'forgotten' AND state = 'idle in transaction'
          AND state_change < clock_timestamp() - interval '1 s'"""


@contextmanager
def blocked(person: Person) -> Iterator[None]:
    """A console that somebody left open, after a look at a table that the migration changes."""
    person.migrate("--target", "r2")
    person.tree.add("r3", "op.execute('ALTER TABLE t1 ADD x int')", down="r2")
    person.variables |= {"ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": "1", "ALEMBIC_ENTRYPOINT_DDL_RETRIES": "0"}
    console = person.database.connect(autocommit=False, application_name="forgotten")
    console.execute("SELECT * FROM t1")
    refused = person.run()
    assert refused.code == 75
    assert "The migration is not at fault" in refused.message
    wait_until(lambda: person.database.query(IDLE), what="it is idle")
    yield
    console.close()


@contextmanager
def weak(person: Person) -> Iterator[None]:
    """A new role, which was let in and given nothing else; the tables are the old one's."""
    database, role = person.database, f"weak_{person.database.name}"
    person.migrate("--target", "r2")
    person.tree.add("r3", "op.execute('ALTER TABLE t1 ADD x int')", down="r2")
    database.execute(f"REVOKE ALL ON DATABASE {database.name} FROM PUBLIC; CREATE ROLE {role} LOGIN")
    database.execute(f"GRANT CONNECT ON DATABASE {database.name} TO {role}")
    person.variables["DATABASE_URL"] = database.url.replace("postgres@", f"{role}@")
    yield
    is_more = "SELECT rolsuper OR rolcreaterole OR pg_has_role(rolname, 'postgres', 'MEMBER') FROM pg_roles"
    assert database.query(f"{is_more} WHERE rolname = '{role}'") == [(False,)]
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@contextmanager
def pooled(person: Person) -> Iterator[None]:
    with pgbouncer(person.server, "transaction") as pooler:
        person.variables["DATABASE_URL"] = pooler.url_for(person.database.name)
        yield


CASES = {
    "lost, and equal to a revision": Case(lost_and_equal),
    "lost, and equal to none": Case(
        lost_and_different,
        (65, ("LOST: ", "The nearest is r3; what differs:", "t3.email")),
        bring_the_file_back,
        "a2242b61af45",
    ),
    "tables that nothing recorded": Case(untracked),
    "ahead of the image": Case(
        ahead,
        (65, ("AHEAD: this image is older than the database: it knows r3", "records r4 (since", "image notes:2")),
        deploy_the_newer_image,
        "r4",
    ),
    "rewritten beneath": Case(
        rewritten,
        (65, ("REWRITTEN: yours now lies beneath r3", "r2.py: down_revision = 'r1'", "yours.py: down_revision = 'r3'")),
        edit_the_files_as_told,
        "yours",
    ),
    "forked": Case(forked, recorded=None),
    "locked by a dead migrator": Case(locked_by_the_dead),
    "blocked by somebody else": Case(blocked),
    "a role without rights": Case(weak),
    "behind a pooler": Case(pooled),
}
#: Those that `make test` tries, too.
QUICK = ("rewritten beneath",)


@pytest.mark.parametrize(
    "case",
    [pytest.param(each, id=name, marks=[] if name in QUICK else pytest.mark.extra) for name, each in CASES.items()],
)
def test_the_commands_that_are_printed_lead_to_the_end(
    case: Case, tmp_path: Path, server: Server, database: Database
) -> None:
    tree = project(tmp_path / "tree")
    tree.add_line(3)
    person = Person(tree, server, database, {"DATABASE_URL": database.url})
    with case.breaks(person):
        person.get_out()
        if case.refused is not None:
            assert case.deed is not None
            before = recorded(database)
            code, words = case.refused
            refused = person.run()
            assert (refused.code, refused.stdout) == (code, ""), refused.message
            assert [each for each in words if each not in refused.message] == []
            assert recorded(database) == before
            case.deed(person)
            person.get_out()
        # The commands have brought it there: a start finds nothing left to do.
        [now] = recorded(database)
        heads = json.loads(person.type("alembic-entrypoint plan --json").stdout)["heads"]
        assert heads == [now]
        assert now == (case.recorded or now)
        result = person.run()
        assert (result.code, result.stdout) == (0, "up\n"), result.message
        assert not result.named("schema.upgraded")


def recorded(database: Database) -> list[str]:
    return [row[0] for row in database.query("SELECT version_num FROM alembic_version")]
