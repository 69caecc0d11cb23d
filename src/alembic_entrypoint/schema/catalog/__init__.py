"""Say which questions about a schema the catalog is asked: one SQL file for each kind of object."""

from __future__ import annotations

from importlib.resources import files

from alembic_entrypoint.schema.facts import Kind

#: Every kind of object that counts, with the files that read it. A file's columns are the identity of an object
#: (schema, name, part) and then its attributes, under the words that a person reads.
FILES: tuple[tuple[Kind, str], ...] = (
    (Kind.SCHEMA, "schemas"),
    (Kind.EXTENSION, "extensions"),
    (Kind.RELATION, "relations"),
    (Kind.COLUMN, "columns"),
    (Kind.CONSTRAINT, "constraints"),
    (Kind.INDEX, "indexes"),
    (Kind.TRIGGER, "triggers"),
    (Kind.RULE, "rules"),
    (Kind.POLICY, "policies"),
    (Kind.SEQUENCE, "sequences"),
    (Kind.TYPE, "enums"),
    (Kind.TYPE, "domains"),
    (Kind.TYPE, "composites"),
    (Kind.TYPE, "ranges"),
    (Kind.FUNCTION, "functions"),
    (Kind.FUNCTION, "aggregates"),
)


def questions() -> list[str]:
    """Return the SQL of each file, in the order of ``FILES``: the same text for every PostgreSQL from 13 on."""
    folder = files(__package__)
    return [(folder / f"{name}.sql").read_text("utf-8") for _, name in FILES]
