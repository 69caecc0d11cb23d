"""How a run can end other than well: few nouns, each with its exit code (the contract of `docs/exit-codes.md`)."""

from __future__ import annotations

from typing import ClassVar


class Ended(Exception):
    """The run is over; the message says what is wrong, why it matters, and what to do next."""

    exit_code: ClassVar[int]
    name: ClassVar[str]
    meaning: ClassVar[str]

    def __init__(self, message: str, *, event: str | None = None, **keys: object) -> None:
        """Keep the sentence for a person, and the log event and keys that carry the same for a machine."""
        super().__init__(message)
        self.message = message
        self.event = event
        self.keys = keys


class Failed(Ended):
    """A migration failed."""

    exit_code, name = 1, "failed"
    meaning = "a migration failed. The message says whether the database is as before, or what was left behind"


class Usage(Ended):
    """The command line is wrong, or a question was not confirmed."""

    exit_code, name = 2, "usage"
    meaning = "wrong command line, or not confirmed"


class Refused(Ended):
    """The state of the database needs a person."""

    exit_code, name = 65, "refused"
    meaning = "the database's state needs a person; starting again will not help"


class Unavailable(Ended):
    """The database did not answer in time."""

    exit_code, name = 69, "unavailable"
    meaning = "the database did not answer in time"


class Internal(Ended):
    """A fault of this program."""

    exit_code, name = 70, "internal"
    meaning = "a fault of this program; the traceback is in the log"


class NoBackup(Ended):
    """The backup failed, so nothing was changed."""

    exit_code, name = 73, "no backup"
    meaning = "the backup failed, so nothing was changed"


class TryAgain(Ended):
    """Nothing was left behind, and the same run may go well the next time."""

    exit_code, name = 75, "try again"
    meaning = (
        "lock wait over, awaited head not reached in time, connection or lock lost, "
        "DDL lock timeouts used up: and nothing was left behind"
    )


class Denied(Ended):
    """The server knows us and will not have us, or the role lacks a right."""

    exit_code, name = 77, "denied"
    meaning = "password, role, TLS or `pg_hba.conf` refused us, or the role lacks a right that is needed"


class Misconfigured(Ended):
    """A setting, the image or the server cannot be used as it is."""

    exit_code, name = 78, "config"
    meaning = (
        "a setting, the image or the server is not usable as it is: bad value, no such database, BROKEN, "
        "FORKED, transaction pooler, not PostgreSQL, `env.py` migrates another database"
    )


class NotExecutable(Ended):
    """The command exists and cannot be executed."""

    exit_code, name = 126, "not executable"
    meaning = "the command cannot be executed"


class NotFound(Ended):
    """There is no such command."""

    exit_code, name = 127, "not found"
    meaning = "the command was not found"


class Interrupted(BaseException):
    """SIGTERM or SIGINT came: let go of everything and end with 128 + the signal's number.

    Not a `KeyboardInterrupt`: on that one psycopg waits ten seconds for a server that is silent [R11].
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


ENDINGS: tuple[type[Ended], ...] = (
    Failed,
    Usage,
    Refused,
    Unavailable,
    Internal,
    NoBackup,
    TryAgain,
    Denied,
    Misconfigured,
    NotExecutable,
    NotFound,
)
