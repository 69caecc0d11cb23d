"""Throw-away databases like the target, in which migrations can be replayed.

Whose a scratch database is, is told by its name: the oid of the database in which its owner's session holds an
advisory lock, and the number of that lock. While the owner lives the lock is taken; after that anyone may drop it.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from alembic_entrypoint.address import Address
from alembic_entrypoint.errors import Denied, Misconfigured, Refused, TryAgain
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres.server import is_pooled
from alembic_entrypoint.postgres.session import SESSION, apply, finish_statement
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.wait import connected
from alembic_entrypoint.worker.messages import SCRATCH_CLASS

if TYPE_CHECKING:
    from typing_extensions import LiteralString

_PREFIX = "alembic_entrypoint_scratch"
#: What a database or role may set that would keep us from creating a database.
_WRITING: Mapping[str, str] = {**SESSION, "default_transaction_read_only": "off"}
#: These change who the session is: they can be written for another session, not set to be copied.
_IDENTITY = ("role", "session_authorization")


@dataclasses.dataclass(frozen=True)
class _Model:
    """What a scratch database has from the target."""

    major: int
    #: its row of pg_database
    row: Mapping[str, Any]
    #: who logs in there
    role: str
    #: how a session begins there, whatever has set it
    search_path: str
    #: what database and role set: the weakest first
    settings: tuple[_Setting, ...]


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What is set for a database, or for a role, in each of its sessions."""

    name: str
    value: str
    is_roles: bool
    #: whether it holds in every database of the server
    is_everywhere: bool


class ScratchServer:
    """A server on which scratch databases are made."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        address: Address,
        model: _Model,
        *,
        has_locales: bool = True,
        is_targets: bool = False,
    ) -> None:
        self._connection = connection
        self._address = address
        self._model = model
        self._has_locales = has_locales
        self._is_targets = is_targets

    @contextmanager
    def database(self) -> Iterator[Address]:
        """Make a scratch database, and drop it on every way out. Raises Denied, Misconfigured, TryAgain."""
        number = secrets.randbelow(2**31)
        name = f"{_PREFIX}_{_own_oid(self._connection)}_{number:08x}"
        self._connection.execute("SELECT pg_catalog.pg_advisory_lock(%s, %s)", [SCRATCH_CLASS, number])
        try:
            self._create(name)
            self._configure(name)
            yield dataclasses.replace(self._address, parameters={**self._address.parameters, "dbname": name})
        finally:
            try:
                finish_statement(self._connection)
                _drop(self._connection, name)
                self._connection.execute("SELECT pg_catalog.pg_advisory_unlock(%s, %s)", [SCRATCH_CLASS, number])
            except psycopg.Error as error:
                note = f"{name} could not be dropped; the next proof does it"
                log("scratch.dropped", level="warning", note=note, reason=_said(error))

    def _create(self, name: str) -> None:
        row = self._model.row if self._has_locales else {**self._model.row, **_C}
        try:
            self._connection.execute(_creation(name, self._model.major, row))
        except psycopg.errors.InsufficientPrivilege as error:
            raise Denied(
                f"The role may not create the scratch database that a proof needs: {_said(error)}. "
                f"Nothing was changed.\n{_OTHER_WAYS}"
            ) from None
        except psycopg.OperationalError as error:
            raise TryAgain(
                f"The scratch database that a proof needs could not be made: {_said(error)}. Nothing was changed.\n"
                f"{ELSEWHERE}"
            ) from None
        except (psycopg.errors.ProgrammingError, psycopg.errors.DataError, psycopg.errors.NotSupportedError) as error:
            raise Misconfigured(
                f"No scratch database like the target can be made on {self._address.place}: {_said(error)}. "
                "A proof needs one with the same encoding and collation. Nothing was changed.\n"
                f"{_OTHER_WAYS}"
            ) from None

    def _configure(self, name: str) -> None:
        """Give it the target's settings: a search_path decides where migrations make their tables."""
        for each in self._settings():
            try:
                with self._connection.transaction():
                    self._set(name, each)
            except psycopg.Error as error:
                log("scratch.created", level="warning", note=f"without the target's {each.name}", reason=_said(error))

    def _settings(self) -> Iterator[_Setting]:
        """Give what does not hold in scratch by itself; on another server that is also what its configuration says."""
        yield from (each for each in self._model.settings if not (self._is_targets and each.is_everywhere))
        if not self._is_targets:
            ours, role = self._connection.info.user, self._model.role
            path = self._model.search_path if ours == role else _as_role(self._model.search_path, role)
            yield _Setting("search_path", path, is_roles=True, is_everywhere=False)

    def _set(self, name: str, each: _Setting) -> None:
        database, parts = sql.Identifier(name), sql.SQL(".").join(map(sql.Identifier, each.name.split(".")))
        # What a role sets in a database is stronger than what it sets everywhere, and that than what a database sets.
        whose = sql.SQL("ROLE SESSION_USER IN DATABASE" if each.is_roles else "DATABASE")
        if each.is_roles:
            self._connection.execute("SET LOCAL ROLE NONE")  # a role may set another one at each login
        if each.name in _IDENTITY:
            change = sql.SQL("ALTER {} {} SET {} TO {}").format(whose, database, parts, sql.Literal(each.value))
        else:
            # A list, as in search_path, is kept flat and quoted: the server itself takes it apart.
            self._connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", [each.name, each.value])
            change = sql.SQL("ALTER {} {} SET {} FROM CURRENT").format(whose, database, parts)
        self._connection.execute(change)


def _as_role(search_path: str, role: str) -> str:
    """Put a role's name in the place of `"$user"`, which means whoever is logged in."""
    quoted = '"' + role.replace('"', '""') + '"'
    return re.sub(r'(?<![^\s,])(?:"\$user"|\$user)(?![^\s,])', lambda _: quoted, search_path)


_OTHER_WAYS = (
    "Grant the right (ALTER ROLE … CREATEDB), or set ALEMBIC_ENTRYPOINT_SCRATCH: to `embedded` for an embedded "
    "PostgreSQL (pip install 'alembic-entrypoint[demo]'), or to the URL of another server of the same major on which "
    "this role may create databases; with `off` nothing is proved, and what needs a proof is refused."
)
#: What to do about a server that has no room for a replay, or is going away.
ELSEWHERE = (
    "When that is mended, start again; or set ALEMBIC_ENTRYPOINT_SCRATCH to `embedded` (pip install "
    "'alembic-entrypoint[demo]') or to the URL of another server of the same major, and it is replayed there."
)
#: An embedded PostgreSQL knows no other locale; every encoding goes with it.
_C: Mapping[str, Any] = {"datcollate": "C", "datctype": "C", "datlocprovider": "c"}


@contextmanager
def scratch_server(settings: Settings, target: Address, connection: psycopg.Connection[Any]) -> Iterator[ScratchServer]:
    """Find the server for scratch databases, and sweep it. `connection` leads to the target.

    Raises Refused where the setting is `off`, Misconfigured, Denied, TryAgain, Unavailable.
    """
    model = _model(connection)
    with ExitStack() as stack:
        if settings.scratch == "off":
            raise Refused(
                "ALEMBIC_ENTRYPOINT_SCRATCH is off, so nothing can be proved. Nothing was changed.\n"
                "Unset it, so that the migrations can be replayed in a scratch database."
            )
        if settings.scratch == "auto":
            address = target
        elif isinstance(settings.scratch, Address):
            address = _with_options(_with_database(settings.scratch), target)
        else:
            address = _with_options(_embedded(model, stack), target)
        own = stack.enter_context(
            connected(address, settings.wait_timeout, application_name="alembic-entrypoint scratch")
        )
        _check_major(own, model)
        if not is_pooled(own):
            apply(own, _WRITING)
        sweep(own)
        is_targets = settings.scratch == "auto"
        yield ScratchServer(own, address, model, has_locales=settings.scratch != "embedded", is_targets=is_targets)


def sweep(connection: psycopg.Connection[Any]) -> None:
    """Drop the scratch databases whose owners are gone: `connection` is to the database where owners hold locks.

    Those of a database that is gone itself have no owner either.
    """
    for name, oid in connection.execute(_LEFT, [f"^{_PREFIX}_[0-9]+_[0-9a-f]{{8}}$"]).fetchall():
        lock = [SCRATCH_CLASS, int(name[-8:], 16) & 0x7FFFFFFF]
        if oid is not None and not _one(connection, "SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", *lock):
            continue
        try:
            _drop(connection, name)
            log("scratch.swept", database=name)
        except psycopg.Error as error:
            log("scratch.swept", level="warning", note=f"{name} could not be dropped", reason=_said(error))
        finally:
            if oid is not None:
                _one(connection, "SELECT pg_catalog.pg_advisory_unlock(%s, %s)", *lock)


#: Scratch databases of this database, and of those that are not there any more. Catalog page: pg_database.
_LEFT = """
SELECT s.datname, t.oid
  FROM pg_catalog.pg_database AS s
  LEFT JOIN pg_catalog.pg_database AS t ON t.oid::text = pg_catalog.split_part(s.datname, '_', 4)
 WHERE s.datname ~ %s AND pg_catalog.pg_has_role(s.datdba, 'MEMBER')
   AND (t.oid IS NULL OR t.datname = pg_catalog.current_database())
"""


def _model(connection: psycopg.Connection[Any]) -> _Model:
    """Read what the target is like. Catalog pages: pg_database, pg_db_role_setting, pg_settings."""
    row = _one(
        connection,
        "SELECT pg_catalog.to_jsonb(d) || pg_catalog.jsonb_build_object('name', pg_encoding_to_char(encoding)) "
        "FROM pg_catalog.pg_database AS d WHERE datname = pg_catalog.current_database()",
    )
    settings = connection.execute(
        "SELECT pg_catalog.split_part(each, '=', 1), pg_catalog.substr(each, pg_catalog.strpos(each, '=') + 1), "
        "setrole <> 0, setdatabase = 0 FROM pg_catalog.pg_db_role_setting AS s, pg_catalog.unnest(s.setconfig) AS each "
        "WHERE setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())) "
        "AND setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)) "
        "ORDER BY setrole <> 0, setdatabase <> 0"
    ).fetchall()
    role = _one(connection, "SELECT session_user::text")
    path = _one(connection, "SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'search_path'")
    major = connection.info.server_version // 10000
    return _Model(major, row, role, path, tuple(_Setting(*each) for each in settings))


def _creation(name: str, major: int, row: Mapping[str, Any]) -> sql.Composed:
    """Write the CREATE DATABASE; a locale provider there is from 15 on, and 17 renamed the locale's column."""
    options: list[tuple[LiteralString, object]] = [
        ("TEMPLATE", "template0"),
        ("ENCODING", row["name"]),
        ("LC_COLLATE", row["datcollate"]),
        ("LC_CTYPE", row["datctype"]),
    ]
    provider = row.get("datlocprovider", "c") if major >= 15 else None
    locale = row.get("datlocale") or row.get("daticulocale")
    if provider == "c":
        options.append(("LOCALE_PROVIDER", "libc"))
    elif provider == "i":
        options += [("LOCALE_PROVIDER", "icu"), ("ICU_LOCALE", locale)]
        if row.get("daticurules"):
            options.append(("ICU_RULES", row["daticurules"]))
    elif provider == "b":
        options += [("LOCALE_PROVIDER", "builtin"), ("BUILTIN_LOCALE", locale)]
    parts = [sql.SQL("{} = {}").format(sql.SQL(word), sql.Literal(value)) for word, value in options]
    return sql.SQL("CREATE DATABASE {} WITH {}").format(sql.Identifier(name), sql.SQL(" ").join(parts))


def _with_database(address: Address) -> Address:
    """Name the database that is connected to in order to create others: the URL names a server."""
    return dataclasses.replace(address, parameters={"dbname": "postgres", **address.parameters})


def _with_options(address: Address, target: Address) -> Address:
    """Begin sessions there as those of the target begin, where the URL says how."""
    options = {name: value for name, value in target.parameters.items() if name == "options"}
    return dataclasses.replace(address, parameters={**options, **address.parameters})


def _embedded(model: _Model, stack: ExitStack) -> Address:
    from alembic_entrypoint.postgres.embedded import embedded_server, majors

    carried = majors()
    if carried and model.major not in carried:
        raise Misconfigured(
            f"The target is PostgreSQL {model.major}, and the embedded PostgreSQL is "
            f"{' or '.join(map(str, sorted(carried)))}: schemas can only be compared within one major. "
            "Nothing was changed.\nSet ALEMBIC_ENTRYPOINT_SCRATCH to `auto` or to the URL of a server of that major."
        )
    server = stack.enter_context(embedded_server(model.major))
    if model.role != server.user:
        # `"$user"`, grants and owners name the role of the target.
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN").format(sql.Identifier(model.role)))
    return Address({"host": "127.0.0.1", "port": str(server.port), "user": model.role, "dbname": "postgres"})


def _check_major(connection: psycopg.Connection[Any], model: _Model) -> None:
    major = connection.info.server_version // 10000
    if major != model.major:
        raise Misconfigured(
            f"The target is PostgreSQL {model.major}, and the server of ALEMBIC_ENTRYPOINT_SCRATCH is {major}: "
            "schemas can only be compared within one major. Nothing was changed.\n"
            "Set it to a server of the same major, or unset it."
        )


def _drop(connection: psycopg.Connection[Any], name: str) -> None:
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _own_oid(connection: psycopg.Connection[Any]) -> int:
    return int(_one(connection, "SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"))


def _one(connection: psycopg.Connection[Any], statement: LiteralString, *values: object) -> Any:
    row = connection.execute(statement, values or None).fetchone()
    assert row is not None
    return row[0]


def _said(error: psycopg.Error) -> str:
    return error.diag.message_primary or " ".join(str(error).split())
