"""Normalise `pg_dump -s`, an oracle that knows nothing of snapshots: what does not count is taken out of its text."""

from __future__ import annotations

import re
import subprocess

from servers import Database, Server

#: Entries of the dump that are no schema, or that do not count.
DROPPED_TYPES = frozenset({"COMMENT", "STATISTICS", "DEFAULT ACL", "ACL", "BLOB", "BLOB METADATA", "SEQUENCE SET"})
OPTIONS = (
    *("--schema-only", "--no-owner", "--no-privileges", "--no-comments", "--no-tablespaces"),
    *("--exclude-schema=alembic_entrypoint", "--exclude-table=public.alembic_version"),
)

_ENTRY = re.compile(r"^--\n-- Name: (.*); Type: ([A-Z ]+); Schema: (.*); Owner: .*\n--\n", re.M)
_LIST = re.compile(r"^(CREATE (?:UNLOGGED |FOREIGN )?TABLE [^\n]*?)\(\n(.*?)\n\)", re.M | re.S)
_DISMISSED = (
    re.compile(r"^(SET|SELECT pg_catalog\.set_config).*;$|^\\(un)?restrict.*$|^--.*$", re.M),
    re.compile(r"^ALTER TABLE (ONLY )?\S.* (CLUSTER ON|REPLICA IDENTITY) .*;$", re.M),
    re.compile(r"^ALTER TABLE (ONLY )?\S.* ALTER COLUMN \S+ SET (STATISTICS|STORAGE|COMPRESSION|\() ?.*;$", re.M),
    re.compile(r"CONSTRAINT \S+ (?=NOT NULL)"),
)

_PARAMETERS = re.compile(r"\sWITH \([^()]*=[^()]*\)")
_WITH_PARAMETERS = frozenset({"TABLE", "MATERIALIZED VIEW", "INDEX", "CONSTRAINT"})


def program(name: str, database: Database) -> str:
    """Find the server's pg_dump or psql."""
    assert isinstance(database.server, Server)
    return str(database.server.programs / name)


def dumped(database: Database, *options: str) -> str:
    command = [program("pg_dump", database), *options, "--dbname", database.url]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def restore(text: str, database: Database) -> None:
    command = [program("psql", database), "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", database.url]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def normalised(database: Database) -> list[str]:
    """Return the sorted entries of the dump of a database's schema, without what does not count."""
    _, *parts = _ENTRY.split(dumped(database, *OPTIONS))
    entries = zip(parts[0::4], parts[1::4], parts[2::4], parts[3::4], strict=True)
    return sorted(
        f"{kind} {schema} {name}: {_body(kind, text)}"
        for name, kind, schema, text in entries
        if kind not in DROPPED_TYPES
    )


def _body(kind: str, text: str) -> str:
    for dismissed in (*_DISMISSED, *([_PARAMETERS] if kind in _WITH_PARAMETERS else [])):
        text = dismissed.sub("", text)
    return _LIST.sub(_sorted_list, text).strip()


def _sorted_list(found: re.Match[str]) -> str:
    lines = (line.strip().removesuffix(",") for line in found[2].split("\n"))
    return found[1] + " ".join(sorted(lines))
