"""Every connection that is opened in the worker, whoever opens it: where it goes, and what it proves first.

SQLAlchemy's events miss `creator=`, `async_creator=`, pools and raw drivers [R9], so the connect functions of
psycopg (sync and async), psycopg2 and asyncpg are wrapped, when the user's code imports them.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import sys
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from alembic_entrypoint.address import TLS_PARAMETERS, Address, NotAnAddress, Place, parse, place_of
from alembic_entrypoint.postgres.answers import Outcome, understand
from alembic_entrypoint.worker.messages import HOLDER_CHECK, LOCK_B, LOCK_CLASS

REPLACED = TLS_PARAMETERS | {"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service"}

#: Statements to run and the rows they gave: written once, driven by each driver in its own way.
Steps = Generator[str, Any, None]


class FenceError(BaseException):
    """The lock under which this worker runs is not there; not an Exception, so that no migration swallows it."""


class Asked(BaseException):
    """The place that `env.py` connects to is known, which was all that was asked."""


@dataclass(frozen=True)
class Made:
    """One connection: what was asked for, and whether that is the target."""

    place: Place
    parameters: Mapping[str, str] = field(repr=False)
    driver: str
    is_target: bool


@dataclass
class Policy:
    """What happens to connections in this worker; changed as the worker learns."""

    #: what replaces host, database, credentials and the like of a connection to the target; None: they stay
    target: Mapping[str, str] | None = None
    #: what counts as the target; None: every place
    places: set[Place] | None = None
    #: what a connection runs before it is handed out, by whether it is one to the target
    steps: Callable[[bool], Steps | None] = lambda _: None
    connect_timeout: float = 60.0
    #: called with all that is asked for, before connecting
    asked: Callable[[Made], None] = lambda _: None
    #: called with a place that is left alone
    left_alone: Callable[[Place], None] = lambda _: None
    #: called with each driver, by name, once it is wrapped
    wrapped: Callable[[str, ModuleType], None] = lambda *_: None
    made: weakref.WeakKeyDictionary[Any, Made] = field(default_factory=weakref.WeakKeyDictionary)

    def route(self, parameters: Mapping[str, str], driver: str) -> tuple[Made, Mapping[str, str] | None]:
        """Tell whether what is asked for is the target, and what replaces its parameters, if anything does."""
        place = place_of(parameters, os.environ)
        is_target = self.places is None or place in self.places
        made = Made(place, parameters, driver, is_target)
        self.asked(made)
        if not is_target:
            self.left_alone(place)
        return made, self.target if is_target else None


def fence_steps(token: int, session: Mapping[str, str]) -> Steps:
    """Hold the fence, *then* see that the lock is held, then set what a migrating session needs.

    The order is the protocol: between the two the successor either waits for our share of B, or has
    taken A, and then the check fails [R7].
    """
    row = yield f"SELECT pg_catalog.pg_try_advisory_lock_shared({LOCK_CLASS}, {LOCK_B})"
    if not row[0]:
        raise FenceError("another migrator is at work: the fence could not be taken")
    yield from check_steps(token)
    yield setting_statement(session)


def check_steps(token: int) -> Steps:
    """See that one backend of this database holds the lock and the token."""
    row = yield HOLDER_CHECK.replace("%(token)s", str(token))
    if not row or not row[0]:
        raise FenceError("the lock is not held in the database that this connection reached")


def setting_statement(session: Mapping[str, str]) -> str:
    """Set what this server has and lets us set; what `env.py` has set itself stays. Catalog page: pg_settings."""
    rows = ", ".join(f"('{name}', '{quoted}')" for name, quoted in _quoted(session))
    return (
        "SELECT pg_catalog.count(pg_catalog.set_config(s.name, v.value, false)) FROM pg_catalog.pg_settings AS s "
        f"JOIN (VALUES {rows}) AS v (name, value) USING (name) "
        "WHERE s.context = 'user' AND (s.source <> 'session' OR s.name = 'application_name')"
    )


def _quoted(session: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value.replace("'", "''")) for name, value in session.items()]


def read_only_steps() -> Steps:
    """Make a session that only looks read-only, but not through a pooler, where that would leak to the app."""
    row = yield "SELECT pg_catalog.pg_backend_pid()"
    if row[0] == (yield ""):
        yield "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"


def install(policy: Policy) -> None:
    """Wrap the drivers that are imported, and each other one when it is."""
    wrappers: dict[str, Callable[[ModuleType, Policy], None]] = {
        "psycopg": _wrap_psycopg,
        "psycopg2": _wrap_psycopg2,
        "asyncpg": _wrap_asyncpg,
    }
    for name, wrap in list(wrappers.items()):
        if name in sys.modules:
            wrap(sys.modules[name], policy)
            policy.wrapped(name, sys.modules[name])
            del wrappers[name]
    sys.meta_path.insert(0, _AfterImport(wrappers, policy))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Wrap a driver as soon as its module has been executed."""

    def __init__(self, wrappers: dict[str, Callable[[ModuleType, Policy], None]], policy: Policy) -> None:
        self._wrappers = wrappers
        self._policy = policy
        self._searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._wrappers or fullname in self._searching:
            return None
        self._searching.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching.remove(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if wrap := self._wrappers.pop(fullname, None):
                wrap(module, self._policy)
                self._policy.wrapped(fullname, module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# --- psycopg -----------------------------------------------------------------------------------------------------


def _wrap_psycopg(psycopg: Any, policy: Policy) -> None:
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    def routed(conninfo: str, kwargs: dict[str, Any]) -> tuple[str, dict[str, Any], Made]:
        """Merge, decide, and split again into libpq's parameters and the rest."""
        own = {name: kwargs.pop(name) for name in list(kwargs) if name in _PSYCOPG_KEYWORDS}
        parameters = {k: str(v) for k, v in conninfo_to_dict(conninfo, **kwargs).items() if v is not None}
        made, target = policy.route(parameters, "psycopg")
        return make_conninfo("", **_retargeted(parameters, target)), own, made

    connect: Any = psycopg.Connection.connect.__func__
    connect_async: Any = psycopg.AsyncConnection.connect.__func__

    def wrapped(cls: Any, /, conninfo: str = "", **kwargs: Any) -> Any:
        conninfo, own, made = routed(conninfo, kwargs)
        connection = _retry(lambda: connect(cls, conninfo, **own), policy, made)
        _drive_psycopg(connection, policy.steps(made.is_target))
        policy.made[connection] = made
        return connection

    async def wrapped_async(cls: Any, /, conninfo: str = "", **kwargs: Any) -> Any:
        conninfo, own, made = routed(conninfo, kwargs)
        connection = await _retry_async(lambda: connect_async(cls, conninfo, **own), policy, made)
        await _drive_psycopg_async(connection, policy.steps(made.is_target))
        policy.made[connection] = made
        return connection

    psycopg.Connection.connect = classmethod(wrapped)
    psycopg.AsyncConnection.connect = classmethod(wrapped_async)
    psycopg.connect = psycopg.Connection.connect


_PSYCOPG_KEYWORDS = ("autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory")


def _drive_psycopg(connection: Any, steps: Steps | None) -> None:
    if steps is None:
        return
    from psycopg.rows import tuple_row

    def execute(statement: str) -> Any:
        if not statement:
            return connection.info.backend_pid
        with connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None

    try:
        _drive(steps, execute)
        connection.commit()
    except BaseException:
        connection.close()
        raise


async def _drive_psycopg_async(connection: Any, steps: Steps | None) -> None:
    if steps is None:
        return
    from psycopg.rows import tuple_row

    async def execute(statement: str) -> Any:
        if not statement:
            return connection.info.backend_pid
        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(statement)
            return await cursor.fetchone() if cursor.description else None

    try:
        await _drive_async(steps, execute)
        await connection.commit()
    except BaseException:
        await connection.close()
        raise


# --- psycopg2 ----------------------------------------------------------------------------------------------------


def _wrap_psycopg2(psycopg2: Any, policy: Policy) -> None:
    from psycopg2.extensions import make_dsn, parse_dsn

    # `psycopg2.connect` looks this name up at each call, so that whoever imported `connect` before is seen, too.
    connect = psycopg2._connect

    def wrapped(dsn: str, connection_factory: Any = None, **kwargs: Any) -> Any:
        parameters = dict(parse_dsn(dsn))
        made, target = policy.route(parameters, "psycopg2")
        dsn = make_dsn(**_retargeted(parameters, target))
        connection = _retry(lambda: connect(dsn, connection_factory=connection_factory, **kwargs), policy, made)
        _drive_psycopg2(connection, policy.steps(made.is_target))
        policy.made[connection] = made
        return connection

    psycopg2._connect = wrapped


def _drive_psycopg2(connection: Any, steps: Steps | None) -> None:
    if steps is None:
        return
    from psycopg2.extensions import cursor as plain_cursor

    def execute(statement: str) -> Any:
        if not statement:
            return connection.info.backend_pid
        with connection.cursor(cursor_factory=plain_cursor) as cursor:
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None

    try:
        _drive(steps, execute)
        connection.commit()
    except BaseException:
        connection.close()
        raise


# --- asyncpg -----------------------------------------------------------------------------------------------------


def _wrap_asyncpg(asyncpg: Any, policy: Policy) -> None:
    connect = asyncpg.connection.connect

    @functools.wraps(connect)
    async def wrapped(dsn: str | None = None, **kwargs: Any) -> Any:
        made, target = policy.route(_asyncpg_parameters(dsn, kwargs), "asyncpg")
        if target is not None:
            kwargs = {name: value for name, value in kwargs.items() if name not in _ASYNCPG_REPLACED}
            dsn = _asyncpg_dsn(target)
        connection = await _retry_async(lambda: connect(dsn, **kwargs), policy, made)
        await _drive_asyncpg(connection, policy.steps(made.is_target))
        policy.made[connection] = made
        return connection

    asyncpg.connect = wrapped
    asyncpg.connection.connect = wrapped


_ASYNCPG_REPLACED = frozenset(
    ["host", "port", "user", "password", "database", "passfile", "ssl", "direct_tls", "service", "servicefile"]
)
#: What asyncpg reads in a dsn as libpq does; `options` it hands to the server as it is.
_ASYNCPG_KNOWN = frozenset(
    ["host", "port", "dbname", "user", "password", "passfile", "sslmode", "sslcert", "sslkey", "sslrootcert", "options"]
)


def _asyncpg_parameters(dsn: str | None, kwargs: Mapping[str, Any]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    if dsn:
        try:
            parameters.update(parse(dsn).parameters)
        except NotAnAddress:
            parameters["dbname"] = "?"
    for theirs, ours in (("host", "host"), ("port", "port"), ("user", "user"), ("database", "dbname")):
        value = kwargs.get(theirs)
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        if value is not None:
            parameters[ours] = str(value)
    password = kwargs.get("password")
    if isinstance(password, str):
        parameters["password"] = password
    if isinstance(kwargs.get("ssl"), str):
        parameters["sslmode"] = kwargs["ssl"]
    return parameters


def _asyncpg_dsn(target: Mapping[str, str]) -> str:
    return Address({name: value for name, value in target.items() if name in _ASYNCPG_KNOWN}).url()


async def _drive_asyncpg(connection: Any, steps: Steps | None) -> None:
    if steps is None:
        return

    async def execute(statement: str) -> Any:
        return await connection.fetchrow(statement) if statement else connection.get_server_pid()

    try:
        await _drive_async(steps, execute)
    except BaseException:
        await connection.close()
        raise


# --- what all of them share --------------------------------------------------------------------------------------


def _retargeted(parameters: Mapping[str, str], target: Mapping[str, str] | None) -> dict[str, str]:
    """Replace host, port, database, credentials and TLS; options and everything else stay."""
    if target is None:
        return dict(parameters)
    kept = {name: value for name, value in parameters.items() if name not in REPLACED}
    return {**kept, **{name: value for name, value in target.items() if name in REPLACED or name not in kept}}


def _drive(steps: Steps, execute: Callable[[str], Any]) -> None:
    """Run statements until there are no more; the empty statement asks for the driver's backend PID."""
    row = None
    while True:
        try:
            statement = steps.send(row)
        except StopIteration:
            return
        row = execute(statement)


async def _drive_async(steps: Steps, execute: Callable[[str], Any]) -> None:
    row = None
    while True:
        try:
            statement = steps.send(row)
        except StopIteration:
            return
        row = await execute(statement)


def _retry(connect: Callable[[], Any], policy: Policy, made: Made) -> Any:
    """Connect to the target again while waiting may help, as in a stampede (53300)."""
    deadline = time.monotonic() + policy.connect_timeout
    while True:
        try:
            return connect()
        except Exception as error:
            if not made.is_target or not _may_pass(error) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - jitter


async def _retry_async(connect: Callable[[], Any], policy: Policy, made: Made) -> Any:
    import asyncio

    deadline = time.monotonic() + policy.connect_timeout
    while True:
        try:
            return await connect()
        except Exception as error:
            if not made.is_target or not _may_pass(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - jitter


def _may_pass(error: Exception) -> bool:
    sqlstate = getattr(error, "sqlstate", None)
    is_of_connecting = isinstance(error, OSError) or sqlstate or _is_operational(error)
    return bool(is_of_connecting) and understand(str(error), sqlstate).outcome is Outcome.WAIT


def _is_operational(error: Exception) -> bool:
    return any(each.__name__ == "OperationalError" for each in type(error).__mro__)


def cancel(connection: Any) -> None:
    """Ask the server to end what a connection is doing; never raises. Called from another thread."""
    try:
        if hasattr(connection, "cancel"):
            connection.cancel()
        elif hasattr(connection, "terminate"):
            loop = getattr(connection, "_loop", None)
            if loop is not None:
                loop.call_soon_threadsafe(connection.terminate)
    except Exception:  # noqa: S110 - the process ends right after, and with it the connection
        pass
