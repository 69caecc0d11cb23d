"""What a worker says, and when its parent is woken for it."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator

import pytest

from alembic_entrypoint.worker.parent import Parent


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_what_is_kept_is_said_with_the_next_and_before_it(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    parent = Parent(reading, writing)
    parent.keep("finished", revision="a")
    assert select.select([reading], [], [], 0)[0] == []
    parent.tell("started", revision="b")
    parent.tell("done")
    said = [json.loads(line) for line in os.read(reading, 1 << 16).splitlines()]
    assert said == [{"said": "finished", "revision": "a"}, {"said": "started", "revision": "b"}, {"said": "done"}]
