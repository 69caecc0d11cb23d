"""A server whose log the fault tests may read alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from witness import FIGURES, SETTINGS, prepare

from servers import Database, Server, fresh_database, own_server


@pytest.fixture(scope="session")
def watched_server() -> Iterator[Server]:
    with own_server(18, SETTINGS) as server:
        yield server


@pytest.fixture(scope="session")
def watched13() -> Iterator[Server]:
    with own_server(13, SETTINGS) as server:
        yield server


@pytest.fixture
def watched(watched_server: Server) -> Iterator[Database]:
    """Give an empty database in which migrations can note what they do."""
    with fresh_database(watched_server) as made:
        prepare(made)
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was counted, by those tests that count."""
    if FIGURES:
        terminalreporter.section("figures")
        for name, numbers in FIGURES:
            terminalreporter.line(f"{name:28} {numbers}")
