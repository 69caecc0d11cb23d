"""`diagnose`: everything that a person asks first, from whatever is reachable. Changes nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from alembic_entrypoint import logs
from alembic_entrypoint.address import Address
from alembic_entrypoint.diagnosis import advice, parts, words
from alembic_entrypoint.diagnosis.session import Session
from alembic_entrypoint.errors import Ended, Internal, Misconfigured, TryAgain
from alembic_entrypoint.facts import VersionTable
from alembic_entrypoint.logs import redact
from alembic_entrypoint.postgres.session import application_name
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import hide_environment

T = TypeVar("T")


def diagnose(
    environ: Mapping[str, str],
    options: Mapping[str, str],
    *,
    as_json: bool,
    proves: bool = False,
    write: Callable[[str], Any],
) -> int:
    """Print what was found and what to do now; give the exit code that `run` would end with."""
    document = examine(environ, options, proves=proves)
    if as_json:
        write(redact(json.dumps(document, indent=2)))
    else:
        is_ascii = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
        for line in words.lines(document, is_ascii=is_ascii):
            write(redact(line))
    return int(document["exit_code"])


class _Found:
    """The parts so far; one that fails says why, and the rest goes on."""

    def __init__(self, proves: bool) -> None:
        self.proves = proves
        self.document: dict[str, Any] = {}
        self.codes: dict[str, int] = {}

    def add(self, name: str, look: Callable[[], dict[str, Any]]) -> bool:
        """Look at one part."""
        error, part = self._tried(name, look)
        self.document[name] = {"error": error, **(part or {})}
        return part is not None

    def get(self, name: str, look: Callable[[], T]) -> T | None:
        """Get what several parts are made of; where that fails it is the part's error."""
        error, got = self._tried(name, look)
        if error is not None:
            self.document[name] = {"error": error}
        return got

    def lacks(self, reason: str, *names: str) -> None:
        """Say of parts why they were not looked at."""
        for name in names:
            self.document.setdefault(name, {"error": reason})

    def _tried(self, name: str, look: Callable[[], T]) -> tuple[str | None, T | None]:
        try:
            return None, look()
        except Ended as error:
            self.codes[name] = error.exit_code
            return error.message, None
        except (psycopg.Error, OSError) as error:
            self.codes[name] = TryAgain.exit_code
            return " ".join(str(error).split()) or type(error).__name__, None
        except Exception as error:  # a fault of ours is no reason to keep the rest back
            self.codes[name] = Internal.exit_code
            return f"a fault of alembic-entrypoint: {type(error).__name__}: {error}", None


def examine(environ: Mapping[str, str], options: Mapping[str, str], *, proves: bool = False) -> dict[str, Any]:
    """Look at everything; make the document whose schema is `docs/schema/diagnose.json`."""
    hide_environment()
    found = _Found(proves)
    given = parts.read_settings(environ, options)
    # What is printed is the answer; of what happens on the way only what is amiss.
    logs.configure(given.settings.log_format, "error")
    chosen = parts.patient(given.settings)
    found.add("settings", lambda: parts.settings(given))
    if given.problems:
        found.codes["settings"] = Misconfigured.exit_code
    loaded = found.get("migrations", lambda: parts.load(chosen))
    if loaded is not None:
        found.add("software", lambda: parts.software(chosen, loaded))
        found.add("tree", lambda: parts.tree(loaded))
        found.add("bytecode", lambda: parts.bytecode(loaded))
        found.add(
            "migrations", lambda: parts.migrations(parts.facts_without_database(chosen, loaded), is_observed=False)
        )
    found.lacks("the migrations could not be loaded", "software", "tree", "bytecode")
    psql = _examine_database(found, chosen, given)
    document = found.document
    document["exit_code"] = advice.exit_code(document, found.codes)
    document["what_to_do"] = advice.what_to_do(document, document["exit_code"], psql)
    return document


def _examine_database(found: _Found, chosen: Settings, given: parts.Given) -> advice.Psql:
    """Look at the database and what is in it, as far as there is a way; give the command that leads there."""
    got = found.get("database", lambda: parts.database(chosen, given))
    after_login = ("server", "rights", "lock", "state", "ledger", "left_behind")
    if got is None:
        found.lacks("no database is named", "network", "login", *after_login)
        return advice.Psql(["psql"], ["psql"])
    target, found.document["database"] = got[0], {"error": None, **got[1]}
    found.add("network", lambda: parts.network(target.address))
    session = found.get("login", lambda: Session(target.address, application_name(chosen, "diagnosing")))
    if session is None:
        found.lacks("there is no session", *after_login)
        return _psql(target.address)
    found.add("login", lambda: session.ask(_role))
    found.add("server", lambda: parts.server(session))
    found.add("lock", lambda: parts.lock(session, chosen))
    reached = dataclasses.replace(target, address=session.address)
    facts = None
    if session.is_silent or session.is_standby:
        why = "the server fell silent before" if session.is_silent else "a standby is not looked at through env.py"
        found.lacks(why, "state")
    else:
        facts = found.get("state", lambda: parts.look(chosen, reached, session))
    if facts is not None:
        found.add("migrations", lambda: parts.migrations(facts))
        found.add("state", lambda: parts.state(chosen, facts, reached, proves=found.proves))
    found.add("rights", lambda: parts.rights(session, facts.version_table if facts else VersionTable()))
    found.add("ledger", lambda: parts.history(session, facts))
    found.add("left_behind", lambda: parts.left_behind(session))
    return _psql(session.address)


def _role(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    row = connection.execute("SELECT current_user, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")
    role, is_superuser = row.fetchone() or ("", False)
    return {"role": role, "superuser": is_superuser}


def _psql(address: Address) -> advice.Psql:
    place = address.place
    way = make_conninfo(host=",".join(place.hosts), port=",".join(place.ports), dbname=place.dbname)
    ours = make_conninfo(way, user=address.user) if address.user else way
    return advice.Psql(["psql", ours], ["psql", way])
