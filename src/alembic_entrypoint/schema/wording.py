"""Put things and values into the words that a person uses. No I/O here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from alembic_entrypoint.schema.facts import Kind, Thing, Value

_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_$]*")
_SHORT_TYPES = (
    ("character varying", "varchar"),
    ("timestamp without time zone", "timestamp"),
    ("timestamp with time zone", "timestamptz"),
)
#: Attributes whose value speaks for itself: ``nullable``, not ``null nullable``.
_SELF_EVIDENT = frozenset({"kind", "type", "null", "definition", "persistence", "enabled", "volatility"})
#: Attributes that a thing is, not has: ``not valid``, where others are ``no row security``.
_ADJECTIVES = frozenset({"valid", "permissive", "strict", "leakproof"})
_LONGEST = 100
_LEAD = 30


def label(thing: Thing) -> str:
    """Name a thing: ``users.email``, ``index users_email_idx of users``, ``type app.mood``."""
    schema = "" if thing.schema == "public" and thing.name else _quoted(thing.schema)
    name = thing.name if thing.kind is Kind.FUNCTION else _quoted(thing.name)
    whole = ".".join(filter(None, [schema, name]))
    if thing.kind is Kind.RELATION:
        return whole
    if thing.kind is Kind.COLUMN:
        return f"{whole}.{_quoted(thing.part)}"
    part = f"{_quoted(thing.part)} of " if thing.part else ""
    return f"{thing.kind.value} {part}{whole}"


def removal(thing: Thing, kind: str) -> str | None:
    """Write the statement that removes a thing; None where there is none. `kind` is that of its relation, as told."""
    schema, name, part = _quoted(thing.schema), _quoted(thing.name), _quoted(thing.part)
    whole = f"{schema}.{thing.name if thing.kind is Kind.FUNCTION else name}"
    if thing.kind is Kind.COLUMN and kind.endswith("view"):
        return None
    if thing.kind is Kind.RELATION:
        return f"DROP {kind.removeprefix('partitioned ').upper()} {whole};"
    if thing.kind is Kind.INDEX:
        return f"DROP INDEX CONCURRENTLY {schema}.{part};"
    if thing.kind in (Kind.COLUMN, Kind.CONSTRAINT):
        return f"ALTER TABLE {whole} DROP {thing.kind.value.upper()} {part};"
    if thing.part:
        return f"DROP {thing.kind.value.upper()} {part} ON {whole};"
    word = "ROUTINE" if thing.kind is Kind.FUNCTION else thing.kind.value.upper()
    return f"DROP {word} {schema if thing.kind is Kind.SCHEMA else name if thing.kind is Kind.EXTENSION else whole};"


def summary(thing: Thing, told: Mapping[str, Value]) -> str:
    """Say what a thing is in a few words: ``table``, ``varchar(255) not null``, ``UNIQUE (email)``."""
    if thing.kind is Kind.COLUMN:
        words = [phrase("type", told["type"])]
        words += ["not null"] if told["null"] != "nullable" else []
        words += [phrase(each, told[each]) for each in ("default", "identity", "generated") if told[each]]
        return " ".join(words)
    return str(told.get("kind") or told.get("definition") or "present")


def phrase(attribute: str, value: Value) -> str:
    """Say the value of an attribute: ``varchar(255)``, ``no default``, ``default 0``, ``not valid``."""
    if value is None or value == ():
        return f"no {attribute}"
    if isinstance(value, bool):
        negation = "not" if attribute in _ADJECTIVES else "no"
        return attribute if value else f"{negation} {attribute}"
    if isinstance(value, tuple):
        value = ", ".join("-" if one is None else str(one) for one in value)
    if attribute == "type":
        return _short_type(str(value))
    return str(value) if attribute in _SELF_EVIDENT else f"{attribute} {value}"


def shortened(text: str, start: int = 0) -> str:
    """Return at most a line of ``text``, from about ``start`` on: an ellipsis stands for the rest."""
    if len(text) <= _LONGEST:
        return " ".join(text.split())
    cut = text[start : start + _LONGEST]
    head, tail = "…" if start else "", "…" if start + _LONGEST < len(text) else ""
    return head + " ".join(cut.split()) + tail


def side_by_side(here: str, there: str) -> tuple[str, str]:
    """Shorten two texts to where they begin to differ."""
    same = next((at for at, (one, other) in enumerate(zip(here, there, strict=False)) if one != other), None)
    start = max(0, (min(len(here), len(there)) if same is None else same) - _LEAD)
    return shortened(here, start), shortened(there, start)


def _short_type(name: str) -> str:
    for long, short in _SHORT_TYPES:
        name = name.replace(long, short)
    return name


def _quoted(name: str) -> str:
    return name if not name or _PLAIN_NAME.fullmatch(name) else '"' + name.replace('"', '""') + '"'
