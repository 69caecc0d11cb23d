"""The URL of scratch, in the form of the target's."""

from __future__ import annotations

import pytest

from alembic_entrypoint.address import NotAnAddress
from alembic_entrypoint.worker.variables import scratch_url

SCRATCH = {"host": "db", "port": "6000", "user": "app", "password": "p?@ss", "dbname": "scratch"}


@pytest.mark.parametrize(
    ("target", "parameters", "url"),
    [
        ("postgres://u:p@h/app", SCRATCH, "postgres://app:p%3F%40ss@db:6000/scratch"),
        (
            "postgresql+asyncpg://u:a?b=c@h/app?prepared_statement_cache_size=0&ssl=require",
            SCRATCH,
            "postgresql+asyncpg://app:p%3F%40ss@db:6000/scratch?prepared_statement_cache_size=0",
        ),
        (
            "postgresql:///app?host=/run/pg&sslmode=require&options=-csearch_path%3Dapp",
            {**SCRATCH, "sslmode": "require"},
            "postgresql://app:p%3F%40ss@db:6000/scratch?sslmode=require&options=-csearch_path%3Dapp",
        ),
        ("postgresql://h/app", {"host": "/tmp/s", "dbname": "scratch"}, "postgresql://@/scratch?host=%2Ftmp%2Fs"),
    ],
)
def test_scratchs_url_has_the_form_of_the_targets(target: str, parameters: dict[str, str], url: str) -> None:
    assert scratch_url(target, parameters) == url


def test_the_url_of_something_else_is_none() -> None:
    with pytest.raises(NotAnAddress):
        scratch_url("mysql://h/app", SCRATCH)
