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

    WAIT = "wait"
    DENIED = "denied"
    WRONG = "wrong"


@dataclass(frozen=True)
class Answer:
    """Why there is no connection."""

    outcome: Outcome
    reason: str


_BY_SQLSTATE = (
    (r"57P0[1-5]|08...|53...", Outcome.WAIT),
    (r"28...", Outcome.DENIED),
    (r"42501", Outcome.DENIED),
    (r"3D000", Outcome.WRONG),
)
_BY_TEXT = (
    # A proxy or pooler may put its own words before PostgreSQL's; the most telling are tried first.
    (
        r"starting up|shutting down|not yet accepting|recovery mode|consistent recovery|not accepting",
        Outcome.WAIT,
    ),
    (r"too many (clients|connections)|connection slots|too many connections for", Outcome.WAIT),
    (r"session is (read-only|not hot standby)|in hot standby mode", Outcome.WAIT),
    (
        r"password authentication failed|no password supplied|authentication failed|authentication method",
        Outcome.DENIED,
    ),
    (r"role \".*\" (does not exist|is not permitted to log in)|no such user", Outcome.DENIED),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", Outcome.DENIED),
    (
        r"server does not support SSL|certificate|SSL error|sslmode|root\.crt|SSL SYSCALL|sslv3|tlsv1",
        Outcome.DENIED,
    ),
    (r"permission denied for database", Outcome.DENIED),
    (r"database \".*\" does not exist|no such database", Outcome.WRONG),
    (r"invalid (connection option|sslmode|port|integer|dsn)|missing \"=\"", Outcome.WRONG),
)


def understand(text: str, sqlstate: str | None = None) -> Answer:
    """Classify what a failed connection attempt said."""
    reason = shorten(text)
    for pattern, outcome in _BY_SQLSTATE:
        if sqlstate and re.fullmatch(pattern, sqlstate):
            return Answer(outcome, reason)
    for pattern, outcome in _BY_TEXT:
        if re.search(pattern, text, re.IGNORECASE):
            return Answer(outcome, reason)
    return Answer(Outcome.WAIT, reason)


def shorten(text: str) -> str:
    """Bring an error of several lines, one for each address tried, into one without repetition."""
    lines = [re.sub(r"\s+", " ", line).strip(" \t-") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("Multiple connection attempts failed")]
    return " | ".join(dict.fromkeys(lines))
