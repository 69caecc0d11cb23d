"""The statement that removes what a migration left behind, as a person would write it."""

from __future__ import annotations

import pytest

from alembic_entrypoint.schema.facts import Kind, Thing
from alembic_entrypoint.schema.wording import removal

USERS = ("public", "users")

STATEMENTS = {
    (Kind.RELATION, *USERS, "", "table"): "DROP TABLE public.users;",
    (Kind.RELATION, *USERS, "", "partitioned table"): "DROP TABLE public.users;",
    (Kind.RELATION, *USERS, "", "materialized view"): "DROP MATERIALIZED VIEW public.users;",
    (Kind.RELATION, "App", 'odd"name', "", "table"): 'DROP TABLE "App"."odd""name";',
    (Kind.COLUMN, *USERS, "Mail", "table"): 'ALTER TABLE public.users DROP COLUMN "Mail";',
    (Kind.COLUMN, *USERS, "mail", "partitioned table"): "ALTER TABLE public.users DROP COLUMN mail;",
    (Kind.CONSTRAINT, *USERS, "users_key", "table"): "ALTER TABLE public.users DROP CONSTRAINT users_key;",
    (Kind.INDEX, *USERS, "by_mail", "table"): "DROP INDEX CONCURRENTLY public.by_mail;",
    (Kind.TRIGGER, *USERS, "told", "table"): "DROP TRIGGER told ON public.users;",
    (Kind.POLICY, *USERS, "own", "table"): "DROP POLICY own ON public.users;",
    (Kind.RULE, *USERS, "kept", "view"): "DROP RULE kept ON public.users;",
    (Kind.TYPE, "app", "mood", "", "None"): "DROP TYPE app.mood;",
    (Kind.SEQUENCE, "app", "counted", "", "None"): "DROP SEQUENCE app.counted;",
    (Kind.FUNCTION, "app", 'doubled(integer, "Mood")', "", "None"): 'DROP ROUTINE app.doubled(integer, "Mood");',
    (Kind.SCHEMA, "App", "", "", "None"): 'DROP SCHEMA "App";',
    (Kind.EXTENSION, "", "uuid-ossp", "", "None"): 'DROP EXTENSION "uuid-ossp";',
}


@pytest.mark.parametrize(("left", "statement"), STATEMENTS.items())
def test_what_was_left_has_a_statement_that_removes_it(left: tuple[Kind, str, str, str, str], statement: str) -> None:
    *thing, kind = left
    assert removal(Thing(*thing), kind) == statement


@pytest.mark.parametrize("kind", ["view", "materialized view"])
def test_no_statement_takes_a_column_from_a_view(kind: str) -> None:
    assert removal(Thing(Kind.COLUMN, *USERS, "mail"), kind) is None
