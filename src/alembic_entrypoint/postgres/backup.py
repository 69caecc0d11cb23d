"""A copy of the database from before a change: `pg_dump`, read back to its end, then given its name.

The half file of a run that was killed is known by its name, and dead when nobody holds its lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import psycopg

from alembic_entrypoint.errors import NoBackup
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres import programs
from alembic_entrypoint.postgres.programs import Programs
from alembic_entrypoint.postgres.server import is_pooled

HEARTBEAT = 10.0
#: Seconds that the dump may wait for a table that somebody has locked.
LOCK_TIMEOUT = 60
SUFFIX, HALF = ".dump", ".dump.half"
#: Where what a release command writes is gone when it ends.
PASSING = {"RAILWAY_ENVIRONMENT": "Railway", "FLY_APP_NAME": "Fly", "DYNO": "Heroku"}


@dataclass(frozen=True)
class Backup:
    """A backup that was written and read back."""

    path: str
    #: the shell command that restores it into a new database beside
    restore: str

    @property
    def words(self) -> str:
        """Say where it is and what to do with it."""
        return f"The backup from before: {self.path}\nTo restore it into a new database beside: {self.restore}"


def back_up(
    connection: psycopg.Connection[Any],
    folder: str,
    *,
    keep: int | None,
    recorded: Sequence[str],
    application_name: str,
    check: Callable[[], None],
) -> Backup:
    """Write the database of our session into the folder, and see that it can be read. Raises NoBackup.

    `keep` is how many backups of this database stay; `check` is called all the while, and its exception ends it.
    """
    began = time.monotonic()
    folder = os.path.abspath(folder)
    name = _Name.of(connection, recorded)
    try:
        tools = _tools(connection.info.server_version // 10000)
        with _half_file(folder, name) as half:
            tick = _tick(half, began, check)
            _dump(tools, connection, half, application_name, tick)
            _read_back(tools, half, tick)
            size = _named(half, path := os.path.join(folder, name.file))
        made = Backup(path, _restore_command(connection, path))
        pruned = _prune(folder, name, keep)
    except OSError as error:
        raise _no_backup(f"{error.filename or folder}: {error.strerror}.") from None
    elapsed = round(time.monotonic() - began, 3)
    platform = next((PASSING[each] for each in PASSING if os.environ.get(each)), None)
    note = platform and (
        f"{platform} throws away what a release command writes: unless {folder} is on a volume that is mounted "
        "here, this backup is gone when the machine is"
    )
    log(
        "backup.written",
        level="warning" if note else "info",
        path=path,
        bytes=size,
        elapsed=elapsed,
        restore=made.restore,
        removed=pruned or None,
        note=note,
    )
    return made


@dataclass(frozen=True)
class _Name:
    """What a backup is called: database, revisions, time, and which database of that name it is.

    Percent-encoded, a name may have three times its bytes; a file's, with the half one's, at most 255.
    """

    database: str
    revisions: str
    time: str
    identity: str

    @classmethod
    def of(cls, connection: psycopg.Connection[Any], recorded: Sequence[str]) -> _Name:
        shown = "+".join(recorded[:3]) or "base"
        more = f"+{len(recorded) - 3}more" if len(recorded) > 3 else ""
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        return cls(_quoted(connection.info.dbname)[:100], _quoted(shown)[:80] + more, now, _identity(connection))

    @property
    def file(self) -> str:
        """The name of the file. What is between the `@` never has one: it is percent-encoded."""
        return f"{self.database}@{self.revisions}@{self.time}@{self.identity}{SUFFIX}"

    def when(self, file: str) -> str | None:
        """Tell from a file's name when this database was backed up by us; None: it is no such file."""
        match = re.fullmatch(
            rf"{re.escape(self.database)}@[^@]+@([^@]+)@{self.identity}{re.escape(SUFFIX)}",
            file,
        )
        return match and match[1]


def _quoted(text: str) -> str:
    return quote(text, safe="+")


def _identity(connection: psycopg.Connection[Any]) -> str:
    """Tell databases of one name apart, which may share a folder. Catalog pages: pg_control_system(), pg_database."""
    oid = "SELECT oid::text FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
    try:
        row = connection.execute(f"SELECT system_identifier || '/' || ({oid}) FROM pg_catalog.pg_control_system()")
    except psycopg.errors.InsufficientPrivilege:
        row = connection.execute(oid)
    return hashlib.sha256(str(row.fetchone()).encode()).hexdigest()[:8]


def _tools(major: int) -> Programs:
    """Choose the `pg_dump` nearest to the server's major: an older one cannot read it."""
    known = list(programs.found())
    fitting = [each for each in known if each.major >= major]
    if fitting:
        return min(fitting, key=lambda each: each.major)
    have = ", ".join(f"{each.major} in {each.folder}" for each in known) or "none"
    raise _no_backup(
        f"The server is PostgreSQL {major}, and there is no pg_dump of {major} or newer on PATH or in the usual "
        f"places (found: {have}).\nInstall it in the image: apt-get install postgresql-client-{major} (Debian and "
        f"Ubuntu, from apt.postgresql.org where theirs is older) or apk add postgresql{major}-client (Alpine)."
    )


@contextmanager
def _half_file(folder: str, name: _Name) -> Iterator[str]:
    """Make the file that is written to, and remove it on every way out but the one that gives it its name."""
    if not os.path.isdir(folder):
        raise _no_backup(f"{folder} is no folder that is there. It is not made: a volume may not be mounted.")
    _sweep(folder, name)
    path = os.path.join(folder, f".{name.file.removesuffix(SUFFIX)}{HALF}")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # a file system without locks; then none is swept there
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def _sweep(folder: str, name: _Name) -> None:
    """Remove the half files of this database whose writers were killed."""
    for each in os.listdir(folder):
        if not each.endswith(HALF) or name.when(each.removeprefix(".").removesuffix(HALF) + SUFFIX) is None:
            continue
        path = os.path.join(folder, each)
        with suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def _tick(half: str, began: float, check: Callable[[], None]) -> Callable[[], None]:
    beat = [time.monotonic()]

    def tick() -> None:
        check()
        if time.monotonic() - beat[0] >= HEARTBEAT:
            beat[0] = time.monotonic()
            log("backup.running", elapsed=round(beat[0] - began, 1), bytes=os.stat(half).st_size)

    return tick


def _dump(
    tools: Programs, connection: psycopg.Connection[Any], half: str, application_name: str, tick: Callable[[], None]
) -> None:
    env, service = _way_in(connection, application_name)
    options = ["--format=custom", "--no-password", f"--lock-wait-timeout={LOCK_TIMEOUT}s", f"--file={half}"]
    if _is_ledger_denied(connection):
        # It is our own, and must not be in the way: what it remembers can be learned again.
        options.append("--exclude-schema=alembic_entrypoint")
    ended = programs.run([tools.path("pg_dump"), *options], env, tick, service)
    if ended.code:
        raise _no_backup(f"pg_dump {_how(ended)}")


def _is_ledger_denied(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether another role made a ledger that ours may not read. Catalog pages: pg_namespace, pg_class."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace AS n LEFT JOIN pg_catalog.pg_class AS c "
        "ON c.relnamespace = n.oid AND c.relkind IN ('r', 'S') WHERE n.nspname = 'alembic_entrypoint' AND NOT "
        "(pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')))"
    ).fetchone()
    return bool(row and row[0])


def _read_back(tools: Programs, half: str, tick: Callable[[], None]) -> None:
    """Read the whole of it: `--list` alone reads the table of contents, and not whether the data are there."""
    if os.stat(half).st_size == 0:
        raise _no_backup("pg_dump wrote nothing.")
    ended = programs.run([tools.path("pg_restore"), "--file=/dev/null", half], {**os.environ, "LC_ALL": "C"}, tick)
    if ended.code:
        raise _no_backup(f"What pg_dump wrote cannot be read: pg_restore {_how(ended)}")


def _how(ended: programs.Ended) -> str:
    how = f"was killed by signal {-ended.code}" if ended.code < 0 else f"failed with status {ended.code}"
    return f"{how}: {ended.stderr[-1500:] or 'it said nothing'}"


def _way_in(connection: psycopg.Connection[Any], application_name: str) -> tuple[dict[str, str], bytes]:
    """Say where and how our own session is logged in: as `PG…` variables, and what has none as a service file.

    libpq names the variable of each parameter, and the session what came of URL, service, variables and defaults.
    """
    options = connection.pgconn.info
    ours = {each.envvar.decode() for each in options if each.envvar}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    service = [b"[alembic-entrypoint]"]
    for each in options:
        if not each.val or each.keyword in (b"service", b"client_encoding", b"replication"):
            continue
        if each.envvar:
            env[each.envvar.decode()] = os.fsdecode(each.val)
        else:
            service.append(each.keyword + b"=" + each.val)
    env |= {"PGSERVICE": "alembic-entrypoint", "PGAPPNAME": application_name, "LC_ALL": "C"}
    if interval := _checks_clients(connection):
        env["PGOPTIONS"] = f"{env.get('PGOPTIONS', '')} -c client_connection_check_interval={interval}".strip()
    return env, b"\n".join(service) + b"\n"


def _checks_clients(connection: psycopg.Connection[Any]) -> str | None:
    """Tell how the server may look after its clients: a killed dump must not stay there, waiting with its locks.

    Our own session was set to that where the server allows it; a pooler refuses options at the login [E14].
    """
    row = connection.execute(
        "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'client_connection_check_interval' AND setting <> '0'"
    ).fetchone()
    return row[0] if row and not is_pooled(connection) else None


def _named(half: str, path: str) -> int:
    """Give the file its name, for good; tell its size."""
    for each in (half, os.path.dirname(path)):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if each == half:
            os.rename(half, path)
    return os.stat(path).st_size


def _prune(folder: str, name: _Name, keep: int | None) -> list[str]:
    """Remove the oldest backups of this database; one that cannot be removed is in nobody's way.

    That of this run stays, whatever the clock has said before.
    """
    dated = sorted((when, each) for each in os.listdir(folder) if (when := name.when(each)) is not None)
    others = [each for _, each in dated if each != name.file]
    removed = []
    for each in others[: max(0, len(others) - keep + 1)] if keep else []:
        with suppress(OSError):
            os.unlink(os.path.join(folder, each))
            removed.append(each)
    return removed


def _restore_command(connection: psycopg.Connection[Any], path: str) -> str:
    """Write the command that restores it into a new database, so that nothing that is there is dropped."""
    info = connection.info
    place: Mapping[str, str] = {"-h": info.host, "-p": str(info.port), "-U": info.user}
    server = [word for option, value in place.items() if value for word in (option, value)]
    name = f"{info.dbname.encode()[:40].decode(errors='ignore')}_restored"  # the server cuts one of 64 bytes
    create = ["createdb", *server, "--template=template0", *_locale(connection), name]
    return f"{shlex.join(create)} && {shlex.join(['pg_restore', *server, f'--dbname={name}', path])}"


def _locale(connection: psycopg.Connection[Any]) -> list[str]:
    """Give createdb's options for encoding and collation. Catalog page: pg_database, whose columns differ by major."""
    row = connection.execute(
        "SELECT pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype, pg_catalog.to_jsonb(d) "
        "FROM pg_catalog.pg_database AS d WHERE datname = pg_catalog.current_database()"
    ).fetchone()
    assert row is not None
    encoding, collate, ctype, columns = row
    options = [f"--encoding={encoding}", f"--lc-collate={collate}", f"--lc-ctype={ctype}"]
    provider = {"i": "icu", "b": "builtin"}.get(columns.get("datlocprovider", "c"))
    if provider:
        locale = columns.get("datlocale") or columns.get("daticulocale")
        options += [f"--locale-provider={provider}", f"--{provider}-locale={locale}"]
    return options


def _no_backup(reason: str) -> NoBackup:
    return NoBackup(
        f"The backup failed, so nothing was changed. {reason}\n"
        "Mend that and start again; without a backup: unset ALEMBIC_ENTRYPOINT_BACKUP."
    )
