"""Settings that are refused are named, every one, and the others are read all the same."""

from __future__ import annotations

import pytest

from alembic_entrypoint.diagnosis.parts import read_settings
from alembic_entrypoint.diagnosis.parts import settings as part

OURS = "ALEMBIC_ENTRYPOINT_"
GOOD = {"DATABASE_URL": "postgresql://app@db/shop", OURS + "LOCK_WAIT": "7"}


@pytest.mark.parametrize(
    ("environ", "options", "problems"),
    [
        ({}, {}, 0),
        ({OURS + "WAIT_TIMEOUT": "soon", OURS + "LOCKWAIT": "1", OURS + "MODE": "x"}, {}, 3),
        ({}, {"ddl_retries": "many", "mode": "x"}, 2),
        ({OURS + "WAIT_TIMEOUT": "soon"}, {"wait_timeout": "later"}, 2),
        ({"DATABASE_URL_FILE": "/nowhere"}, {}, 2),
        ({OURS + "DATABASE_URL": "mysql://a/b"}, {}, 1),
        ({}, {"database_url_file": "/nowhere"}, 1),
    ],
)
def test_each_is_named_once_and_the_good_ones_stay(
    environ: dict[str, str], options: dict[str, str], problems: int
) -> None:
    given = read_settings({**GOOD, **environ}, options)
    assert len(given.problems) == problems, given.problems
    assert given.settings.lock_wait == 7


def test_one_that_was_refused_is_shown_as_the_default_that_it_is_now() -> None:
    shown = part(read_settings({**GOOD, OURS + "WAIT_TIMEOUT": "soon"}, {"ddl_retries": "3"}))
    values = {each["name"]: (each["value"], each["from"]) for each in shown["values"]}
    assert values["WAIT_TIMEOUT"] == ("60", "default")
    assert values["LOCK_WAIT"] == ("7", "variable")
    assert values["DDL_RETRIES"] == ("3", "option")
    assert values["DATABASE_URL"] == ("shop at db:5432 as app", "DATABASE_URL")
