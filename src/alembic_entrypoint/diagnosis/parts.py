"""What `diagnose` looks at: a function for each part, which gives what it found, or raises why it could not.

Nothing here writes: a part is asked of the environment, of a worker that only looks, or of a session that only reads.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from urllib.parse import quote

import psycopg

from alembic_entrypoint import __version__
from alembic_entrypoint.address import Address
from alembic_entrypoint.bytecode import remove_stale
from alembic_entrypoint.commands.history import document as history_document
from alembic_entrypoint.commands.plan import document as plan_document
from alembic_entrypoint.commands.plan import how_it_ends
from alembic_entrypoint.comparison import Outcome
from alembic_entrypoint.decide import Action, State
from alembic_entrypoint.diagnosis.drawing import counts, draw
from alembic_entrypoint.diagnosis.session import Session
from alembic_entrypoint.errors import Misconfigured, Refused
from alembic_entrypoint.facts import Facts, VersionTable
from alembic_entrypoint.heard import graph_of
from alembic_entrypoint.judge import edited_files, judged, remembered
from alembic_entrypoint.observe import (
    NeedsWriting,
    WorkerFailed,
    find_target,
    misconfigured,
    observe,
    request,
)
from alembic_entrypoint.postgres import activity, ledger, leftovers
from alembic_entrypoint.postgres.login import TIMEOUT, Passed, resolve
from alembic_entrypoint.postgres.rights import rights as rights_of
from alembic_entrypoint.postgres.server import SHARED, examine, is_shared, why_read_only
from alembic_entrypoint.proof import prove
from alembic_entrypoint.recover import asked_about
from alembic_entrypoint.settings import PREFIX, TABLE, Settings, read
from alembic_entrypoint.target import Target
from alembic_entrypoint.wait import connected
from alembic_entrypoint.worker.client import Worker
from alembic_entrypoint.worker.messages import LOCK_A, LOCK_B, LOCK_CLASS, Message

Part = dict[str, Any]
#: How many of the last settlings are told.
_TOLD = 5
#: Seconds in which the migrations must have been imported.
LONGEST_LOAD = 30


@dataclass(frozen=True)
class Given:
    """The settings that could be read, what they were read from, and what is wrong with the others."""

    settings: Settings
    environ: Mapping[str, str]
    options: Mapping[str, str]
    problems: tuple[str, ...]


def read_settings(environ: Mapping[str, str], options: Mapping[str, str]) -> Given:
    """Read every setting that can be read, and say what is wrong with each of the others."""
    environ, options = dict(environ), dict(options)
    problems: list[str] = []
    while True:
        try:
            return Given(read(environ, options), environ, options, tuple(problems))
        except Misconfigured as error:
            problems.append(error.message)
            # Every message about a setting begins with its name, as it was given.
            name = error.message.split()[0]
            field = name.removeprefix("--").removeprefix(PREFIX).replace("-", "_").lower()
            if options.pop(field, environ.pop(name, None)) is None:
                return Given(Settings(), {}, {}, tuple(problems))


def settings(given: Given) -> Part:
    """Say what each setting is, and where that came from."""
    values = []
    for row in TABLE:
        value = getattr(given.settings, row.field)
        source = (
            "option" if row.field in given.options else "variable" if given.environ.get(row.variable) else "default"
        )
        if isinstance(value, Address):
            source = _source_of_url(given)
        values.append({"name": row.field.upper(), "value": _shown(value), "from": source})
    return {"values": values, "problems": list(given.problems)}


def _shown(value: object) -> str | None:
    """Write a setting as it is given; what `-x` passes on may be a secret."""
    if isinstance(value, tuple):
        return " ".join(re.sub(r"(?i)((passw|secret|token|key)[^=]*=).*", r"\1***", each) for each in value)
    if isinstance(value, float):
        return f"{value:g}"
    return None if value is None else str(value)


def _source_of_url(given: Given) -> str:
    if "database_url_file" in given.options:
        return "--database-url-file"
    names = [prefix + name for prefix in ("ALEMBIC_ENTRYPOINT_", "") for name in ("DATABASE_URL", "DATABASE_URL_FILE")]
    return next((name for name in names if given.environ.get(name)), "env.py")


def load(chosen: Settings) -> Message:
    """Read what the image ships, without a database. Raises Misconfigured."""
    deadline = time.monotonic() + LONGEST_LOAD

    def tick() -> None:
        if time.monotonic() > deadline:
            raise Misconfigured(
                f"the migrations were not loaded within {LONGEST_LOAD} s: one of them waits for something"
            )

    with Worker(chosen.python) as worker:
        worker.order(request("load", chosen, None))
        for message in worker.messages(tick):
            if message["said"] == "loaded":
                return message
            if message["said"] == "failed":
                raise misconfigured(WorkerFailed(message))
        raise Misconfigured("the worker ended without a word: " + "\n".join(worker.last_output))


def software(chosen: Settings, loaded: Message) -> Part:
    """Say with what the migrations would be run."""
    return {
        "alembic_entrypoint": __version__,
        "interpreter": loaded["interpreter"],
        "versions": loaded["versions"],
    }


def tree(loaded: Message) -> Part:
    """Say which files the migrations are, as one word: two containers with the same word have the same files."""
    word, files = content_of(loaded["folders"])
    return {"fingerprint": word, "files": files, "folders": [os.path.relpath(each) for each in loaded["folders"]]}


def content_of(folders: Sequence[str]) -> tuple[str, int]:
    """Hash the contents of everything in these folders but bytecode; tell how many files that is."""
    sum_of = blake2b(digest_size=8)
    paths = {
        os.path.join(parent, name)
        for folder in folders
        for parent, below, names in os.walk(folder)
        if not below.sort() and os.path.basename(parent) != "__pycache__"
        for name in names
        if not name.endswith(".pyc")
    }
    for path in sorted(paths):
        with open(path, "rb") as file:
            content = blake2b(file.read(), digest_size=16).digest()
        name = os.fsencode(os.path.relpath(path, folders[0]))
        sum_of.update(len(name).to_bytes(4, "big") + name + content)
    return sum_of.hexdigest(), len(paths)


def bytecode(loaded: Message) -> Part:
    """Find bytecode of the migrations that can be wrong."""
    found = remove_stale(loaded["folders"], sourceless=loaded["sourceless"], dry_run=True)
    stale = [
        {"path": os.path.relpath(each.path), "reason": each.reason.value, "meaning": each.reason.sentence}
        for each in found.removed
    ]
    return {"stale": stale, "folders": [os.path.relpath(each) for each in loaded["folders"]]}


def database(chosen: Settings, given: Given) -> tuple[Target, Part]:
    """Say which database it is about, and who says so."""
    target = find_target(chosen)
    return target, {"name": str(target.address), "from": _source_of_url(given)}


def network(address: Address) -> Part:
    """See for each host whether its name resolves and its port answers."""
    place = address.place
    ports = place.ports * len(place.hosts) if len(place.ports) == 1 else place.ports
    hosts = [_reach(host, port) for host, port in zip(place.hosts, ports, strict=False)]
    return {"hosts": hosts}


def _reach(host: str, port: str) -> Part:
    found: Part = {"host": host, "port": port, "addresses": [], "answers": False, "problem": None}
    is_socket = host.startswith("/")
    try:
        found["addresses"] = [f"{host}/.s.PGSQL.{port}"] if is_socket else resolve(host, TIMEOUT)
    except Passed as error:
        return {**found, "problem": str(error)}
    for each in found["addresses"]:
        kind = socket.AF_UNIX if is_socket else socket.AF_INET6 if ":" in each else socket.AF_INET
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.settimeout(TIMEOUT)
            try:
                probe.connect(each if is_socket else (each, int(port)))
                return {**found, "answers": True, "problem": None}
            except (OSError, ValueError, OverflowError) as error:
                found["problem"] = getattr(error, "strerror", None) or f"no answer within {TIMEOUT} s"
    return found


def server(session: Session) -> Part:
    """Say what answers. Raises Misconfigured for what is no good for migrating."""
    seen = session.ask(examine)
    shared = seen.is_pooled and session.ask(lambda connection: is_shared(connection, session.another))
    return {
        "version": seen.version,
        "pooled": seen.is_pooled,
        "shared": shared,
        "standby": session.is_standby,
        "read_only": None if session.is_standby else session.ask(why_read_only),
        "note": SHARED if shared else None,
        "direct": session.ask(_direct) if shared else None,
    }


def _direct(connection: psycopg.Connection[Any]) -> str | None:
    """Ask the server behind a pooler where it is; the URL has no password."""
    row = connection.execute(
        "SELECT current_user, host(inet_server_addr()), inet_server_port(), current_database()"
    ).fetchone()
    if row is None or row[1] is None:  # the pooler reaches it over a local socket
        return None
    user, host, port, name = row
    place = f"[{host}]" if ":" in host else host
    return f"postgresql://{quote(user, safe='')}@{place}:{port}/{quote(name, safe='')}"


def lock(session: Session, chosen: Settings) -> Part:
    """Say who holds the lock, which backends migrate, who is in their way, and who would be in the way of others."""
    holders = session.ask(lambda connection: activity.sharers(connection, LOCK_CLASS, LOCK_A))
    migrators = session.ask(lambda connection: activity.sharers(connection, LOCK_CLASS, LOCK_B))
    pids = [each.pid for each in migrators]
    blocker = session.ask(lambda connection: activity.blocker(connection, pids)) if pids else None
    # Switched off it is 0, and every session would seem to be in the way that is between two statements.
    longer = chosen.ddl_lock_timeout or Settings.ddl_lock_timeout
    idlers = session.ask(lambda connection: activity.idlers(connection, longer))
    return {
        "holder": _session(holders[0]) if holders else None,
        "migrating": [_session(each) for each in migrators],
        "blocker": _session(blocker) if blocker else None,
        "idle": [{**_session(each), "tables": tables} for each, tables in idlers if each.pid not in pids],
    }


def _session(found: activity.Session) -> Part:
    return {
        "pid": found.pid,
        "application_name": found.application_name,
        "client": found.client,
        "state": found.state,
        "age": round(found.age, 1),
        "doing": found.doing,
    }


def look(chosen: Settings, target: Target, session: Session) -> Facts:
    """Look through `env.py`, and at the ledger, read-only. Raises Refused, Misconfigured, Denied, TryAgain."""
    try:
        facts = observe(chosen, target).facts
    except NeedsWriting:
        raise Refused(
            "env.py writes to the database before it migrates (a CREATE SCHEMA, perhaps), and diagnose never writes: "
            "`alembic-entrypoint migrate` looks under the lock, where that is allowed."
        ) from None
    return session.ask(lambda connection: remembered(connection, facts, chosen))


def state(chosen: Settings, facts: Facts, target: Target, *, proves: bool) -> Part:
    """Say what the facts are called, what would be done, and, when asked, what a proof shows.

    Where no proof is needed it is asked whether the live schema still is that of what is recorded.
    """
    decision, proof = judged(facts, chosen), None
    if proves and not decision.image:
        with connected(target.address, chosen.wait_timeout) as connection:
            only = asked_about(facts, decision) if decision.action is Action.PROVE else facts.recorded
            if decision.action is Action.PROVE or (facts.graph.known.issuperset(facts.recorded) and facts.recorded):
                proof = prove(connection, chosen, target, facts, only=only)
    ended = how_it_ends(decision, chosen, facts)
    may_record = chosen.recover == "prove" and (decision.state is not State.LOST or chosen.ledger == "on")
    if proof is not None and decision.action is Action.PROVE and may_record:
        ended = None if proof.outcome in (Outcome.ONE, Outcome.BASE) else ended
    return {
        **plan_document(decision, facts, ended, proof),
        "remedy": decision.remedy,
        "drift": proof.message if proof is not None and proof.outcome is not Outcome.ONE else None,
    }


def migrations(facts: Facts, *, is_observed: bool = True) -> Part:
    """Draw the migrations, with where the database is, if that was observed."""
    return {
        **counts(facts.graph),
        "faults": list(facts.faults),
        "recorded": list(facts.recorded),
        "unknown": list(facts.unknown),
        "drawing": draw(facts, is_observed=is_observed),
    }


def facts_without_database(chosen: Settings, loaded: Message) -> Facts:
    """Make of what the image ships what can be drawn."""
    graph = graph_of(loaded)
    return Facts(
        graph=graph, unloadable=tuple(loaded["unloadable"]), target=chosen.target, target_revisions=graph.heads
    )


def rights(session: Session, table: VersionTable) -> Part:
    """Say what the role has and lacks of what we need."""
    return {"rights": [each.document() for each in session.ask(lambda connection: rights_of(connection, table))]}


def history(session: Session, facts: Facts | None) -> Part:
    """Tell the last settlings that the ledger holds, and which files were edited since they were applied."""
    settlings = session.ask(ledger.history)
    return {
        "settlings": [history_document(each) for each in settlings[-_TOLD:]],
        "edited": edited_files(facts) if facts else [],
    }


def left_behind(session: Session) -> Part:
    """Find what interrupted migrations left, each with the statement that mends it."""
    return {
        "invalid_indexes": session.ask(leftovers.invalid_indexes),
        "not_valid_constraints": session.ask(leftovers.unvalidated_constraints),
    }


def patient(chosen: Settings) -> Settings:
    """Wait no longer than a person who looks at a screen."""
    return dataclasses.replace(chosen, wait_timeout=min(chosen.wait_timeout, float(TIMEOUT)))
