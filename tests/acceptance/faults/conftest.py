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


@pytest.fixture(autouse=True)
def _figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hand what a test has counted to its report, which also reaches us from another process."""
    yield
    request.node.user_properties.extend(FIGURES)
    FIGURES.clear()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was counted, by those tests that count."""
    reports = [each for reports in terminalreporter.stats.values() for each in reports]
    figures = [
        each for report in reports if getattr(report, "when", "") == "teardown" for each in report.user_properties
    ]
    if figures:
        terminalreporter.section("figures")
    for name, numbers in sorted(figures):
        terminalreporter.line(f"{name:26} {numbers}")
