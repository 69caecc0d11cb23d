"""The connect functions of the drivers, wrapped: wherever a connection leads, it proves first what it has to.

SQLAlchemy's events miss `creator=`, `async_creator=`, pools and raw drivers [R9], so the connect functions of
psycopg (sync and async), psycopg2 and asyncpg are wrapped, when the user's code imports them.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from alembic_entrypoint.address import TLS_PARAMETERS, Address, NotAnAddress, parse
from alembic_entrypoint.postgres.answers import Outcome, understand
from alembic_entrypoint.worker.connections import Made, Policy, Steps

REPLACED = TLS_PARAMETERS | {"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service"}


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
    from psycopg.rows import tuple_row

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
        _drive(connection, policy.steps(made.is_target), functools.partial(connection.cursor, row_factory=tuple_row))
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
    from psycopg2.extensions import cursor, make_dsn, parse_dsn

    # `psycopg2.connect` looks this name up at each call, so that whoever imported `connect` before is seen, too.
    connect = psycopg2._connect

    def wrapped(dsn: str, connection_factory: Any = None, **kwargs: Any) -> Any:
        parameters = dict(parse_dsn(dsn))
        made, target = policy.route(parameters, "psycopg2")
        dsn = make_dsn(**_retargeted(parameters, target))
        connection = _retry(lambda: connect(dsn, connection_factory=connection_factory, **kwargs), policy, made)
        _drive(connection, policy.steps(made.is_target), functools.partial(connection.cursor, cursor_factory=cursor))
        policy.made[connection] = made
        return connection

    psycopg2._connect = wrapped


# --- asyncpg -----------------------------------------------------------------------------------------------------


def _wrap_asyncpg(asyncpg: Any, policy: Policy) -> None:
    connect = asyncpg.connection.connect

    @functools.wraps(connect)
    async def wrapped(dsn: str | None = None, **kwargs: Any) -> Any:
        if callable(kwargs.get("password")):
            # Asked for here, once, as asyncpg itself would: it is told on, where env.py is asked how it logs in.
            password = kwargs["password"]()
            kwargs["password"] = await password if inspect.isawaitable(password) else password
        made, target = policy.route(_asyncpg_parameters(dsn, kwargs), "asyncpg")
        if target is not None:
            is_secured = bool(TLS_PARAMETERS & target.keys()) or made.place not in policy.own
            replaced = _ASYNCPG_REPLACED if is_secured else _ASYNCPG_REPLACED - {"ssl", "direct_tls"}
            kwargs = {name: value for name, value in kwargs.items() if name not in replaced}
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


def _drive(connection: Any, steps: Steps | None, cursor: Callable[[], Any]) -> None:
    """Run statements until there are no more; the empty statement asks for the driver's backend PID."""
    if steps is None:
        return
    row = None
    try:
        with suppress(StopIteration):
            while True:
                statement = steps.send(row)
                row = _executed(cursor, statement) if statement else connection.info.backend_pid
        connection.commit()
    except BaseException:
        connection.close()
        raise


def _executed(cursor: Callable[[], Any], statement: str) -> Any:
    with cursor() as opened:
        opened.execute(statement)
        return opened.fetchone() if opened.description else None


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
