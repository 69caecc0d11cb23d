"""Ask a person before anything is changed."""

from __future__ import annotations

import sys

from alembic_entrypoint.errors import Usage
from alembic_entrypoint.target import Target


def confirm(target: Target, *, by_name: bool, yes: str | None, verb: str) -> None:
    """Ask on a terminal, for the database's name where more is at stake. Raises Usage where it is not confirmed."""
    name = target.address.place.dbname
    wanted = name if by_name else "yes"
    if yes is None:
        option = f"--yes={name}" if by_name else "--yes"
        ask(f"Type {wanted} to {verb}: ", wanted, what="It", instead=f"Add {option}")
    elif by_name and yes != name:
        raise Usage(f"--yes={yes!r} is not the name of the database, {name!r}. Nothing was changed.")


def ask(question: str, wanted: str, *, what: str, instead: str) -> None:
    """Ask on a terminal for one answer. Raises Usage where it is another, or nobody can be asked.

    `what` is to be confirmed, and `instead` is how to confirm it without a terminal.
    """
    if not sys.stdin.isatty():
        raise Usage(f"{what} is confirmed first, and there is no terminal to ask on. Nothing was changed.\n{instead}")
    sys.stderr.write(question)
    sys.stderr.flush()
    if sys.stdin.readline().strip() != wanted:
        raise Usage("It was not confirmed. Nothing was changed.")
