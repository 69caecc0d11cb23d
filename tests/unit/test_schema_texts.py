"""A deparsed text and what it becomes once it was read back are one and the same."""

from __future__ import annotations

import pytest

from alembic_entrypoint.schema.facts import Kind, Value
from alembic_entrypoint.schema.texts import normal, settled, without_parameters


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "((kind)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[]))",
            "((kind)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text]))",
        ),
        (
            "(ARRAY['a, b', (c), d])::numeric(10,2)[]",
            "ARRAY[('a, b')::numeric(10,2), ((c))::numeric(10,2), (d)::numeric(10,2)]",
        ),
        ('(ARRAY[a, b])::app."My ""Type"""[]', 'ARRAY[(a)::app."My ""Type""", (b)::app."My ""Type"""]'),
        ("(ARRAY[ARRAY[a, b], ARRAY[c]])::text[]", "ARRAY[ARRAY[(a)::text, (b)::text], ARRAY[(c)::text]]"),
        ("((ARRAY[a, b])::text[] || x)", "(ARRAY[(a)::text, (b)::text] || x)"),
        ("f((ARRAY[a])::text[], (ARRAY[b])::text[])", "f(ARRAY[(a)::text], ARRAY[(b)::text])"),
        ("((a OR b) OR c)", "(a OR b OR c)"),
        ("((((a = 1) OR (b = 2)) OR (c = 3)) OR (d = 4))", "((a = 1) OR (b = 2) OR (c = 3) OR (d = 4))"),
        ("(((a AND b) AND c) AND d)", "(a AND b AND c AND d)"),
        (
            "CHECK (((a IS NULL) OR (((a <> 1) AND (a <> 2)) AND (a <> b))))",
            "CHECK (((a IS NULL) OR ((a <> 1) AND (a <> 2) AND (a <> b))))",
        ),
    ],
)
def test_what_changes_on_reading_back_is_changed(before: str, after: str) -> None:
    assert settled(before) == after
    assert settled(after) == after


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(a OR (b OR c))",
        "((a OR b) AND (c OR d) AND e)",
        "((a AND b) OR c OR d)",
        "(('x OR y'::text = z) OR a OR b)",
        "((ARRAY[1, 2])[1] = 3)",
        "(x = ANY (ARRAY['a'::text, 'b'::text]))",
        "(x = '(ARRAY[1])::text[]'::text)",
        "(x = '((a OR b) OR c) it''s'::text)",
        "unbalanced ) ((ARRAY[ ' OR OR ",
    ],
)
def test_what_stays_the_same_on_reading_back_is_left_alone(text: str) -> None:
    assert settled(text) == text


def test_a_chain_is_flattened_as_deep_as_it_may_be() -> None:
    assert settled(nested(199)) == f"({' OR '.join(f'x{n}' for n in range(200))})"


def test_a_deeper_one_is_left_alone_rather_than_to_run_out_of_stack() -> None:
    assert settled(nested(2000)) == nested(2000)


def nested(depth: int) -> str:
    return "(" * depth + "x0" + "".join(f" OR x{n})" for n in range(1, depth + 1))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "CREATE INDEX i ON public.t USING btree (a) WITH (fillfactor='70')",
            "CREATE INDEX i ON public.t USING btree (a)",
        ),
        (
            "CREATE INDEX i ON t USING btree (a) INCLUDE (b) WITH (x='1', y=')') WHERE (a <> ' WITH (x)'::text)",
            "CREATE INDEX i ON t USING btree (a) INCLUDE (b) WHERE (a <> ' WITH (x)'::text)",
        ),
        (
            "EXCLUDE USING gist (a WITH &&) WITH (fillfactor='80') WHERE (b)",
            "EXCLUDE USING gist (a WITH &&) WHERE (b)",
        ),
        ("CREATE INDEX i ON t USING btree (a)", "CREATE INDEX i ON t USING btree (a)"),
        ('CREATE INDEX " WITH (i)" ON t USING btree (a)', 'CREATE INDEX " WITH (i)" ON t USING btree (a)'),
    ],
)
def test_storage_parameters_are_taken_out(before: str, after: str) -> None:
    assert without_parameters(before) == after


def test_only_deparsed_attributes_are_brought_to_the_normal_form() -> None:
    changing = "((a OR b) OR c)"
    told: dict[str, Value] = {"body": changing, "sql body": changing, "constraints": (changing, None), "valid": True}
    assert normal(Kind.FUNCTION, told) == {
        **told,
        "sql body": "(a OR b OR c)",
        "constraints": ("(a OR b OR c)", None),
    }


def test_only_definitions_of_indexes_and_constraints_lose_storage_parameters() -> None:
    told = {"definition": "x (a) WITH (fillfactor='70')"}
    assert normal(Kind.INDEX, told) == normal(Kind.CONSTRAINT, told) == {"definition": "x (a)"}
    assert normal(Kind.RELATION, told) == told
