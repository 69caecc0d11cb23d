"""What to do now, from what was found: reasons, each with the exact command where there is one. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alembic_entrypoint.errors import Denied, Misconfigured, TryAgain, Unavailable

Document = Mapping[str, Any]
Step = dict[str, "str | None"]

_LOGIN = {
    Unavailable.exit_code: "Start the database, or mend host and port in the URL; then look again.",
    Denied.exit_code: "Check user, password and sslmode in the URL, and the server's pg_hba.conf.",
    Misconfigured.exit_code: "Create the database, or mend the URL; this program never creates one.",
}


def exit_code(found: Document, codes: Mapping[str, int]) -> int:
    """Give what `run` would end with, as far as one look can tell; `codes` are those of the parts that failed."""
    for part in ("settings", "database", "login", "server"):
        if part in codes:
            return codes[part]
    if found["server"]["standby"]:
        return Unavailable.exit_code
    if "state" in codes:
        return codes["state"]
    state = found["state"]
    if state["action"] != "UPGRADE":
        return int(state["exit_code"])
    if found["server"]["shared"]:
        return Misconfigured.exit_code
    if any(right["needed"] and not right["has"] for right in found["rights"].get("rights", ())):
        return Denied.exit_code
    return TryAgain.exit_code if found["lock"].get("holder") else 0


@dataclass(frozen=True)
class Psql:
    """The commands that lead to the database: as our role, and as whom PGUSER names."""

    ours: Sequence[str]
    administrator: Sequence[str]


def what_to_do(found: Document, code: int, psql: Psql) -> list[Step]:
    """Give the steps, in order."""
    steps = [*_about_the_way(found, code), *_about_the_state(found, psql), *_about_the_rest(found, psql.ours)]
    return steps or [_step("Nothing: it would start.")]


def _step(because: str, *command: str) -> Step:
    return {"because": because, "command": shlex.join(command) if command else None}


def _about_the_way(found: Document, code: int) -> Iterator[Step]:
    for message in found["settings"].get("problems", ()):
        yield _step(message)
    if error := found["database"]["error"]:
        yield _step(error)
    elif error := found["login"]["error"]:
        yield _step(f"{error}\n{_LOGIN.get(code, '')}".strip())
    elif error := found["server"]["error"]:
        yield _step(error)
    elif found["server"]["standby"]:
        yield _step("It is a standby, which cannot be migrated: point the URL to the primary.")
    elif found["server"]["shared"]:
        yield _step(found["server"]["note"])


def _about_the_state(found: Document, psql: Psql) -> Iterator[Step]:
    state = found["state"]
    if state["error"]:
        # What keeps us out of the database was said already.
        if not (found["database"]["error"] or found["login"]["error"] or found["server"]["error"]):
            yield _step(state["error"])
        return
    if state["action"] == "UPGRADE":
        yield from _about_the_lock(found["lock"], psql.ours)
        for right in found["rights"].get("rights", ()):
            if right["needed"] and not right["has"]:
                because = f"The role lacks {right['name']}. With PGUSER set to an administrator:"
                yield _step(because, *psql.administrator, "-c", right["remedy"])
        yield _step(state["because"], "alembic-entrypoint", "migrate")
    elif state["action"] != "START":
        command = re.search(r"`(alembic(?:-entrypoint)? [^`]+)`", state["remedy"])
        yield _step(state["message"], *(shlex.split(command[1]) if command else ()))


def _about_the_lock(lock: Document, psql: Sequence[str]) -> Iterator[Step]:
    blocker, holder = lock.get("blocker"), lock.get("holder")
    for session, danger in ((blocker, "keeps a migration waiting"), (holder, "holds the migration lock")):
        if session:
            yield _step(
                f"pid {session['pid']} {session['application_name']!r} from {session['client']} {danger}; it "
                f"{session['doing']}\nIf it is at work, wait. If it is dead or stuck, end it:",
                *(*psql, "-c", f"SELECT pg_terminate_backend({session['pid']})"),
            )


def _about_the_rest(found: Document, psql: Sequence[str]) -> Iterator[Step]:
    behind = found["left_behind"]
    for each in (*behind.get("invalid_indexes", ()), *behind.get("not_valid_constraints", ())):
        what, _, statement = each.partition(": ")
        yield _step(
            f"There is an {what}." if what.startswith("INVALID") else f"There is a {what}.", *psql, "-c", statement
        )
    if found["bytecode"].get("stale"):
        yield _step(
            "Stale bytecode lies among the migrations.", "alembic-entrypoint", "clean", *found["bytecode"]["folders"]
        )
