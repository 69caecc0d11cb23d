"""How parent and worker talk: one JSON object a line, on two pipes of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from alembic_entrypoint.address import Place

Message = dict[str, Any]

# Advisory locks of one database, as int4 pairs: who may migrate, the fence, and a holder's token.
LOCK_CLASS = 1634493805
TOKEN_CLASS = 1634493806
# What a holder, or one who waits, brings: its image's fingerprint, shared by all replicas of it.
IMAGE_CLASS = 1634493808
# Held by who owns a scratch database; its number is in the database's name.
SCRATCH_CLASS = 1634493807
LOCK_A = 1
LOCK_B = 2

# One backend of this database holds A and this token, and no other token: then what was locked is what is
# connected to, on the same server, and nothing shares the holder's backend [R7, R8]. Catalog page: pg_locks.
HOLDER_CHECK = f"""
SELECT count(*) FILTER (WHERE classid = {LOCK_CLASS} AND objid = {LOCK_A} AND mode = 'ExclusiveLock') = 1
   AND count(*) FILTER (WHERE classid = {TOKEN_CLASS} AND objid = %(token)s) = 1
   AND count(*) FILTER (WHERE classid = {TOKEN_CLASS}) = 1
   AND count(DISTINCT pid) = 1,
       current_setting('application_name')
  FROM pg_catalog.pg_locks AS l
 WHERE locktype = 'advisory' AND objsubid = 2 AND granted
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
   AND pid IN (SELECT pid FROM pg_catalog.pg_locks AS t
                WHERE t.locktype = 'advisory' AND t.objsubid = 2 AND t.granted
                  AND t.classid = {TOKEN_CLASS} AND t.objid = %(token)s AND t.database = l.database)
   AND (classid = {TOKEN_CLASS} OR (classid = {LOCK_CLASS} AND objid = {LOCK_A}))
"""


#: The status with which a worker ends whose pipes to us were closed under it: it can say nothing more.
PIPE_CLOSED = 119


def ended_with(status: int, otherwise: str) -> str:
    """Say how a process ended that said nothing more; `otherwise` is what else its status means."""
    if status != PIPE_CLOSED:
        return otherwise
    return (
        "env.py or a migration closed file descriptors that it had not opened, and with them the pipe on which the "
        "worker tells what it does, as os.closerange(3, os.sysconf('SC_OPEN_MAX')) does; let it close only its own"
    )


@dataclass(frozen=True)
class Replay:
    """What a worker is to replay, and where it is to look closely."""

    #: what to upgrade to
    revisions: tuple[str, ...]
    #: every revision that runs, in this order; empty: Alembic's own
    order: tuple[str, ...] = ()
    #: names in the live schema, as `schema.reading.Name`: a digest is taken only where the names agree
    live: tuple[tuple[str, str, str], ...] = ()
    #: the live schema, as JSON of `schema.reading.encoded`: among the sets with its names, the nearest is told whole
    here: str = ""
    #: what to leave out, as (schema, name) with `*`
    ignore: tuple[tuple[str, str], ...] = ()
    #: sets of recorded revisions at which the whole schema is told
    shown: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Request:
    """What the parent wants of a worker."""

    #: load: read the migrations, without env.py · ask: where would env.py connect, and with which password, where
    #: there are places only to one of those · observe: look, change nothing ·
    #: look: the same under the lock, where env.py may write · migrate: look, wait for the word, upgrade or downgrade ·
    #: sql: print what that would run · replay: run migrations in scratch, and tell what each of them makes
    order: str
    target: str
    config: str | None = None
    section: str = "alembic"
    x: tuple[str, ...] = ()
    #: libpq's parameters of the target; None where env.py is asked
    parameters: Mapping[str, str] | None = None
    #: those of them that env.py gave, because the target's URL names no password
    lent: tuple[str, ...] = ()
    #: the driver that the target's URL named, without the dialect
    driver: str | None = None
    #: whether a setting named the target, so that `sqlalchemy.url` is set to it
    is_given: bool = False
    #: whether an order to observe sends connections to the target at all
    is_redirecting: bool = True
    #: whether it sends only those to `places` there, because they were learned
    is_learned: bool = False
    #: what env.py calls the target
    places: tuple[Place, ...] = ()
    token: int | None = None
    #: settings of every migrating session: name -> value
    session: Mapping[str, str] = field(default_factory=dict)
    connect_timeout: float = 60.0
    #: whether another order may follow: then env.py is run in a fork, and what was imported is kept for the next
    stays: bool = False
    #: whether the parent has the migrations already, as this worker told them after it had looked
    is_known: bool = False
    #: whether stale bytecode in the migrations' folders is removed before they are loaded
    is_cleaning: bool = False
    #: whether what env.py commits in a look under the lock stays, since it fails without
    keeps: bool = False
    #: what to go down to, instead of up to the target
    downgrade: str | None = None
    #: recorded revisions to start from, for `sql`
    starting: tuple[str, ...] = ()
    #: for `replay`: `parameters` are those of scratch, and this is what to run and to look at
    replay: Replay | None = None
    #: libpq's variables as they lead to scratch; None: not set
    variables: Mapping[str, str | None] = field(default_factory=dict)

    def encode(self) -> Message:
        """Make it a message."""
        return asdict(self)

    @classmethod
    def decode(cls, message: Message) -> Request:
        """Read it back from a message."""
        places = tuple(Place(tuple(p["hosts"]), tuple(p["ports"]), p["dbname"]) for p in message.pop("places"))
        lists: Any = {name: tuple(message.pop(name)) for name in ("x", "starting", "lent")}
        asked = message.pop("replay")
        replay = Replay(**{name: _tuples(value) for name, value in asked.items()}) if asked else None
        return cls(places=places, replay=replay, **lists, **message)


class Lines:
    """Cut a stream of bytes into lines; a line that is too long is cut, too, so that memory stays flat."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; give the lines that they complete, without their ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > self._longest:
            lines.append(self._rest[: self._longest])
            self._rest = self._rest[self._longest :]
        return lines

    def end(self) -> list[bytes]:
        """Give what is left when the stream is over."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def write(descriptor: int, message: Mapping[str, Any]) -> None:
    """Write one message, whole."""
    data = _JSON.encode(message).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def decode(line: bytes) -> Message:
    """Read one message."""
    message: Message = json.loads(line.decode())
    return message


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Sequence):
        return list(value)
    return str(value)


_JSON = json.JSONEncoder(default=_plain)
