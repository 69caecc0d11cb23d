"""One attempt to log in: every host of the URL and every address of its name, each within a limit."""

from __future__ import annotations

import dataclasses
import ipaddress
import queue
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from alembic_entrypoint.address import Address
from alembic_entrypoint.postgres.answers import Answer, Outcome, understand

#: A host that says nothing is left after so many seconds, unless the URL names another `connect_timeout`.
TIMEOUT = 5
#: What keeps a silent network from holding a session for hours [H8]: seconds, but for the last, milliseconds.
KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
STANDBY = "it is a standby, which cannot be migrated"


class NotReady(Exception):
    """There is no usable session yet."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


class Passed(Exception):
    """This host will not do, for the reason that the message gives."""


def log_in(
    address: Address, deadline: float, *, needs_primary: bool, application_name: str
) -> tuple[psycopg.Connection[Any], Address]:
    """Open an autocommit session on the first host that will do, and name that host. Raises NotReady.

    Where that is denied, and others give what the address does not name, they are asked.
    """
    try:
        return _log_in(address, deadline, needs_primary, application_name)
    except NotReady as error:
        is_denied = error.answer.outcome is Outcome.DENIED
        if not is_denied or address.credentials is None or not address.credentials.renew():
            raise
    return _log_in(address, deadline, needs_primary, application_name)


def _log_in(
    address: Address, deadline: float, needs_primary: bool, application_name: str
) -> tuple[psycopg.Connection[Any], Address]:
    reasons: list[str] = []
    sqlstates: list[str | None] = []
    limit = _limit(address, deadline)
    for host in _hosts(address):
        try:
            for way in _ways(host, limit):
                try:
                    return _open(way, limit, needs_primary, application_name), host
                except (psycopg.Error, Passed) as error:
                    reasons.append(str(error))
                    sqlstates.append(getattr(error, "sqlstate", None))
        except Passed as error:
            reasons.append(str(error))
            sqlstates.append(None)
    raise NotReady(understand("\n".join(reasons), sqlstates[0] if len(sqlstates) == 1 else None))


def _limit(address: Address, deadline: float) -> int:
    """Give the seconds that one host may take; libpq counts whole ones, and 0 is none."""
    given = address.parameters.get("connect_timeout", "")
    wanted = (int(given) or 10**6) if given.isascii() and given.isdigit() else TIMEOUT
    return max(1, min(wanted, round(deadline - time.monotonic())))


def _hosts(address: Address) -> Iterator[Address]:
    """Take a URL of several hosts apart. Which of them is the primary we see for ourselves."""
    ours = {k: v for k, v in address.parameters.items() if k not in ("target_session_attrs", "load_balance_hosts")}
    lists = {name: ours[name].split(",") for name in ("host", "hostaddr", "port") if name in ours}
    count = max((len(values) for values in lists.values()), default=1)
    if count == 1:
        yield address
        return
    if len(lists.get("port", ())) == 1:
        lists["port"] *= count
    for each in zip(*lists.values(), strict=False):
        yield dataclasses.replace(address, parameters={**ours, **dict(zip(lists, each, strict=True))})


def _ways(address: Address, limit: int) -> Iterator[dict[str, Any]]:
    """Give the parameters for each network address of a host. Raises Passed where its name does not resolve.

    Names are not left to libpq, in which no signal and no limit reaches a resolver that does not answer.
    """
    host = address.parameters.get("host", "")
    if not host or "hostaddr" in address.parameters or host.startswith(("/", "@")) or _is_number(host):
        yield dict(address.login)
        return
    for found in resolve(host, limit):
        yield {**address.login, "hostaddr": found}


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def resolve(host: str, limit: int) -> list[str]:
    """Give the addresses of a name, in a thread: a resolver may not answer. Raises Passed."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(each[4][0]) for each in found)))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=limit)
    except queue.Empty:
        raise Passed(f"the name {host!r} does not resolve: no answer within {limit} s") from None
    if isinstance(answer, list):
        return answer
    why = answer.strerror if isinstance(answer, OSError) else "it is no host name"
    raise Passed(f"the name {host!r} does not resolve: {why}")


def _open(way: dict[str, Any], limit: int, needs_primary: bool, application_name: str) -> psycopg.Connection[Any]:
    parameters = {**KEEPALIVES, **way, "application_name": application_name, "connect_timeout": limit}
    connection: psycopg.Connection[Any] = psycopg.connect(autocommit=True, **parameters)
    try:
        if _is_standby(connection, time.monotonic() + limit) and needs_primary:
            raise Passed(STANDBY)
    except BaseException:
        # Not close(), which would wait for a statement that a silent server is still at.
        connection.pgconn.finish()
        raise
    if connection.info.encoding == "ascii":
        from alembic_entrypoint.postgres.encoding import read_text

        read_text(connection)
    return connection


def _is_standby(connection: psycopg.Connection[Any], deadline: float) -> bool:
    """Ask something, within a limit: a pooler accepts any login; only an answer shows that a server is there [H26]."""
    pgconn = connection.pgconn
    poll = select.poll()
    pgconn.send_query(b"SELECT pg_catalog.pg_is_in_recovery()")
    answer: bytes | None = None
    while True:
        poll.register(pgconn.socket, select.POLLIN | (select.POLLOUT if pgconn.flush() else 0))
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Passed("it accepts the login and then does not answer")
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                return answer == b"t"
            if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
                raise psycopg.OperationalError(pgconn.error_message.decode(errors="replace").strip())
            answer = result.get_value(0, 0)
