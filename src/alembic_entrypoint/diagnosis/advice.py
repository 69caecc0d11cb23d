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
    if _is_barred(found):
        return Misconfigured.exit_code
    if state["exit_code"] or state["action"] == "START":
        return int(state["exit_code"])
    if any(right["needed"] for right in _lacking(found)):
        return Denied.exit_code
    return TryAgain.exit_code if found["lock"].get("holder") or found["lock"].get("migrating") else 0


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
        direct = found["server"]["direct"]
        if direct and _would_migrate(found):
            yield _step(
                f"The database says that it is at {direct.partition('@')[2]}. If that can be reached from here; the "
                "password is PGPASSWORD's:",
                *("env", f"ALEMBIC_ENTRYPOINT_DATABASE_URL={direct}", "alembic-entrypoint", "migrate"),
            )
    elif reason := found["server"]["read_only"]:
        yield _step(reason)


def _about_the_state(found: Document, psql: Psql) -> Iterator[Step]:
    state = found["state"]
    if state["error"]:
        # What keeps us out of the database was said already.
        if not (found["database"]["error"] or found["login"]["error"] or found["server"]["error"]):
            yield _step(state["error"])
            yield from _about_the_rights(found, psql)
    elif _is_barred(found):
        return  # only by another way, which was said already
    elif state["action"] == "UPGRADE":
        yield from _about_the_lock(found["lock"], psql.ours)
        yield from _about_the_rights(found, psql)
        yield _step(state["because"], "alembic-entrypoint", "migrate")
    elif state["action"] == "PROVE":
        yield from _about_a_proof(found)
    elif state["action"] == "REFUSE":
        command = re.search(r"`(alembic(?:-entrypoint)? [^`]+)`", state["remedy"])
        # What records against a proof is for a person who has found out more.
        is_safe = command is not None and "--unproven" not in command[1]
        yield _step(state["message"], *(shlex.split(command[1]) if command and is_safe else ()))
        yield from _about_the_lost(found)


def _about_a_proof(found: Document) -> Iterator[Step]:
    """Say what a proof would tell, or has told, and where that leads."""
    state, proof = found["state"], found["state"]["proof"]
    if proof is None:
        yield _step(
            f"{state['message']}\nWhether the schema is that of a revision can be proved, which changes nothing here:",
            *("alembic-entrypoint", "diagnose", "--prove"),
        )
    elif proof["outcome"] in ("one", "base"):
        settings = {each["name"]: each["value"] for each in found["settings"]["values"]}
        options = ["--recover", "prove"] if settings["RECOVER"] == "off" else []
        options += ["--ledger", "on"] if settings["LEDGER"] == "off" and state["state"] == "LOST" else []
        proved = f"the live schema is that of {_sets(proof)}, which is recorded, and upgraded from there"
        if proof["outcome"] == "base":
            proved = "nothing that any revision makes is there, so that all migrations are run"
        but = " The settings keep a start from that; once:" if options else ""
        because = f"{state['state']}: {state['because']}\nProved: {proved}.{but}"
        yield _step(because, "alembic-entrypoint", "migrate", *options)
    else:
        knows = ""
        if proof["outcome"] == "several":
            records = " or ".join(f"`alembic-entrypoint record {' '.join(each)}`" for each in proof["candidates"])
            knows = f"\nWho knows which of them ran records it: {records}."
        yield _step(f"{state['message']}\n{state['drift']}{knows}")
        yield from _about_the_lost(found)


def _sets(proof: Document) -> str:
    return "; ".join(" with ".join(each) or "base" for each in proof["candidates"])


def _about_the_lost(found: Document) -> Iterator[Step]:
    if found["state"]["state"] == "LOST":
        for revision in found["migrations"]["unknown"]:
            yield _step(
                f"Where the app's repository has, or had, {revision} (`git checkout COMMIT -- PATH` brings it back):",
                *("git", "log", "--all", "--oneline", "--name-status", "-S", revision),
            )


def _would_migrate(found: Document) -> bool:
    """Tell whether a start would take the lock."""
    return found["state"].get("action") in ("UPGRADE", "PROVE")


def _is_barred(found: Document) -> bool:
    """Tell whether a start would come to the lock, and be refused there."""
    server = found["server"]
    return _would_migrate(found) and bool(server.get("shared") or server.get("read_only"))


def _lacking(found: Document) -> list[Document]:
    return [each for each in found["rights"].get("rights", ()) if not each["has"]]


def _about_the_rights(found: Document, psql: Psql) -> Iterator[Step]:
    for right in _lacking(found):
        if right["needed"]:
            because = f"The role lacks {right['name']}. With PGUSER set to an administrator:"
            yield _step(because, *psql.administrator, "-c", right["remedy"])
        elif right["name"] == "ownership of the tables":
            because = (
                f"The role lacks {right['name']}: {right['why']}.\nIf a pending migration does that, migrate with the "
                "role that owns them; or, with PGUSER set to an administrator:"
            )
            yield _step(because, *psql.administrator, "-c", right["remedy"])


def _about_the_lock(lock: Document, psql: Sequence[str]) -> Iterator[Step]:
    blocker, holder = lock.get("blocker"), lock.get("holder")
    if blocker:
        yield _ending(blocker, "keeps a migration waiting", "it", psql, [blocker])
        return  # who migrates is at work, and goes on then
    at_work = [each for each in (holder, *lock.get("migrating", ())) if each]
    if at_work:
        ended = "it" if len(at_work) == 1 else "it, and what it runs"
        yield _ending(at_work[0], "holds the migration lock", ended, psql, at_work)
    for each in lock.get("idle", ()):
        danger = f"has been idle in a transaction, and would keep migrations of {', '.join(each['tables'])} waiting"
        yield _ending(each, danger, "it", psql, [each])


def _ending(session: Document, danger: str, what: str, psql: Sequence[str], sessions: Sequence[Document]) -> Step:
    pids = dict.fromkeys(each["pid"] for each in sessions)
    calls = ", ".join(f"pg_terminate_backend({pid})" for pid in pids)
    return _step(
        f"pid {session['pid']} {session['application_name']!r} from {session['client']} {danger}; it "
        f"{session['doing']}\nIf it is at work, wait. If it is dead or stuck, end {what}:",
        *(*psql, "-c", f"SELECT {calls}"),
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
