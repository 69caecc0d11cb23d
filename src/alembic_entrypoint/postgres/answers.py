"""What a server's answer to a connection attempt means. Pure; standard library only.

libpq gives no SQLSTATE for a connection that failed [E13], so psycopg's and psycopg2's errors are read by their
English text; asyncpg's carry one. A text that nobody knows is waited on like any other trouble that may pass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """What to do about an answer."""

    WAIT = "it may pass"
    DENIED = "the server will not let us in"
    WRONG = "there is no such database"
    UNUSABLE = "the URL says what no driver understands"


@dataclass(frozen=True)
class Answer:
    """Why there is no connection."""

    outcome: Outcome
    reason: str


_BY_SQLSTATE = (
    (r"57P0[1-5]|08...|53...", Outcome.WAIT),
    (r"28...|42501", Outcome.DENIED),
    (r"3D000", Outcome.WRONG),
)
#: What is found first counts. Several hosts give several lines: one that is starting up is worth waiting for, whatever
#: the others say; one that refuses us is not made better by others that are not there.
_BY_TEXT = (
    (r"invalid (connection option|URI query|port|integer|\w+ value)", Outcome.UNUSABLE),
    # The last is what psycopg 3.1 leaves of "invalid sslmode value".
    (r"missing \"\"|could not match \d+|^connection is bad: \"\"$", Outcome.UNUSABLE),
    (r"starting up|shutting down|recovery mode|not (currently |yet )?accepting|it is a standby", Outcome.WAIT),
    (r"too many (clients|connections)|connection slots", Outcome.WAIT),
    (r"session is read-only|in hot standby mode", Outcome.WAIT),
    # A balancer with nothing behind it accepts and hangs up.
    (r"SSL SYSCALL error|unexpected eof", Outcome.WAIT),
    (r"authentication failed|no password supplied|authentication method|channel binding", Outcome.DENIED),
    (r"role \"\" (does not exist|is not permitted to log in)|no such user", Outcome.DENIED),
    (r"pg_hba\.conf|permission denied for database", Outcome.DENIED),
    (r"does not support SSL|certificate|SSL error|sslmode|root\.crt|sslv3|tlsv1", Outcome.DENIED),
    (r"database \"\" does not exist|no such database", Outcome.WRONG),
)


def understand(text: str, sqlstate: str | None = None) -> Answer:
    """Classify what a failed connection attempt said."""
    reason = shorten(text)
    for pattern, outcome in _BY_SQLSTATE:
        if sqlstate and re.fullmatch(pattern, sqlstate):
            return Answer(outcome, reason)
    # A host or role may be called anything, "certificate" included.
    unnamed = re.sub(r"\"[^\"\n]*\"|'[^'\s]*'", '""', text)
    for pattern, outcome in _BY_TEXT:
        if re.search(pattern, unnamed, re.IGNORECASE):
            return Answer(outcome, reason)
    return Answer(Outcome.WAIT, reason)


def shorten(text: str) -> str:
    """Bring an error of several lines, one for each address tried, into one without repetition."""
    lines = [re.sub(r"\s+", " ", line).strip(" \t-") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("Multiple connection attempts failed")]
    return " | ".join(dict.fromkeys(lines))
