"""What a signal's timer promises; that it keeps it, `tests/acceptance/test_signals.py` and the faults see."""

from __future__ import annotations

from alembic_entrypoint import boundary


def test_the_limit_of_a_signal_leaves_time_to_end_within_two_seconds() -> None:
    assert boundary.LIMIT <= 1.8
