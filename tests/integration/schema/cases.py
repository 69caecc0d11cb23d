"""Read the files of cases: SQL under lines that say what it is about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
_TITLE = re.compile(r"^--: (.*?)(?: \(since (\d+)\))?(?: \((exception: .*)\))?\n", re.M)


@dataclass(frozen=True)
class Case:
    """What is run on the schema of rich.sql; an exception is where `pg_dump -s` tells otherwise than we do."""

    title: str
    statements: str
    since: int
    is_exception: bool


def cases(name: str) -> list[Case]:
    _, *parts = _TITLE.split((HERE / name).read_text())
    rows = zip(parts[0::4], parts[1::4], parts[2::4], parts[3::4], strict=True)
    return [Case(title, text, int(since or 13), exception is not None) for title, since, exception, text in rows]


def on_each_server(of: list[Case]) -> list[Any]:
    """Pair every case with every major that can do it; a fourth of them on 18 is what `make test` has time for."""
    return [
        pytest.param(
            major,
            case,
            id=f"{major}-{case.title}",
            marks=[] if major == 18 and n % 4 == 0 else [pytest.mark.extra],
        )
        for major in (13, 15, 16, 18)
        for n, case in enumerate(of)
        if major >= case.since
    ]
