"""The fast path: see, with one look at the image's files and one at the database, that there is nothing to do.

It compares with what the last settling of the same image saw. Whatever is not the same takes the long way, which
looks at everything; so does every doubt. Imports neither Alembic nor SQLAlchemy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from alembic_entrypoint.fingerprint import Fingerprint, environment, fingerprint
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres.versions import IDENTITY, LAYOUT_VERSION, SEARCH_PATH, stamped, version_rows
from alembic_entrypoint.settings import Settings

#: One text, one round trip, and no setting left behind; a ledger that somebody has locked is not waited for.
_QUESTION = (
    "BEGIN READ ONLY; SET LOCAL lock_timeout = '300ms'; SET LOCAL statement_timeout = '2s'; "
    "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery(), s.schema, s.name, s.recorded, s.heads, "
    "s.variables, s.environment, s.is_fixed, "
    f"s.search_path = {SEARCH_PATH} "
    "FROM alembic_entrypoint.start AS s JOIN alembic_entrypoint.layout AS l ON l.version = {layout} "
    f"WHERE s.database = {IDENTITY} AND s.role = session_user AND s.fingerprint = '{{word}}'"
)


class Answer(Enum):
    """What the ledger says of this image."""

    #: this very image has seen this very database, and there was nothing to do
    SETTLED = "settled"
    #: the ledger will not be able to answer: what this image does depends on more than can be seen from outside, the
    #: environment is another one, or the role may not use the ledger. Whoever starts like that looks for itself
    UNFIT = "unfit"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Known:
    """An answer, and what is recorded where that is settled."""

    answer: Answer
    recorded: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    def said(self) -> str:
        """Say that there is nothing to do, as every decision is said; give the state."""
        log(
            "schema.decided",
            state="CURRENT",
            action="START",
            because="image and database are as the last settling left them, and nothing is pending.",
            recorded=list(self.recorded),
            heads=list(self.heads),
        )
        return "CURRENT"


UNKNOWN = Known(Answer.UNKNOWN)
UNFIT = Known(Answer.UNFIT)


def find_fingerprint(settings: Settings) -> Fingerprint | None:
    """Give the image's fingerprint; None where the fast path is not for it."""
    if settings.ledger == "off" or settings.database_url is None:
        return None
    return fingerprint(settings)


def ask(connection: psycopg.Connection[Any], image: Fingerprint) -> Known:
    """Ask the ledger about this image. Raises psycopg.OperationalError where the connection is lost."""
    try:
        return _answer(connection, _QUESTION.format(word=image.word, layout=LAYOUT_VERSION))
    except (psycopg.Error, TypeError, ValueError) as error:
        # No ledger, no right, a lock on it, something else in its place: the long way says what there is to say.
        if connection.pgconn.status != ConnStatus.OK:
            raise
        connection.execute("ROLLBACK")
        return UNKNOWN if _may_use_ledger(connection, error) else UNFIT
    finally:
        if connection.info.transaction_status != TransactionStatus.IDLE and connection.pgconn.status == ConnStatus.OK:
            connection.execute("ROLLBACK")


def _may_use_ledger(connection: psycopg.Connection[Any], error: Exception) -> bool:
    """Tell whether the ledger can answer once somebody has written it: not where our role may not use or make it."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return False
    if not isinstance(error, (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)):
        return True
    row = connection.execute(
        "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')"
    ).fetchone()
    return bool(row and row[0])


def _answer(connection: psycopg.Connection[Any], question: str) -> Known:
    cursor = connection.execute(question)
    while cursor.nextset():
        continue
    row = cursor.fetchone()
    if row is None:
        return UNKNOWN
    pid, is_standby, schema, name, recorded, heads, variables, its_environment, is_fixed, is_same_path = row
    if not is_fixed:
        return UNFIT
    if pid != connection.info.backend_pid or is_standby or not is_same_path:
        return UNKNOWN
    if environment(variables) != its_environment:
        return UNFIT
    rows = version_rows(connection, schema, name)
    if not rows or stamped(rows) != recorded:
        return UNKNOWN
    return Known(Answer.SETTLED, tuple(sorted(rows)), tuple(heads))
