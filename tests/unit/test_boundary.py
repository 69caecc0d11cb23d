"""What a signal's timer promises; that it keeps it, `tests/acceptance/test_signals.py` and the faults see."""

from __future__ import annotations

import psycopg
import pytest

from alembic_entrypoint import boundary, logs


def test_the_limit_of_a_signal_leaves_time_to_end_within_two_seconds() -> None:
    assert boundary.LIMIT <= 1.8


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            psycopg.OperationalError("server closed\n\tthe connection"),
            75,
            "did not go on: server closed the connection. Run the same again",
        ),
        (psycopg.errors.AdminShutdown("terminating"), 75, "did not go on: terminating. Run the same again"),
        (psycopg.errors.UndefinedTable("no such table"), 70, "no such table"),
        (KeyError("ours"), 70, "KeyError: 'ours'"),
    ],
)
def test_a_database_that_goes_away_anywhere_is_no_fault_of_ours(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> int:
        raise error

    monkeypatch.setattr(boundary, "_catch_signals", lambda: None)
    logs.configure()
    assert boundary._exit_code(body) == code
    assert said in capsys.readouterr().err
