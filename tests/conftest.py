"""What every test may ask for: real servers, a database of its own, an environment that says nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest

from servers import MAJOR, Database, Server, fresh_database, own_server

# A shell that starts something in the background has it ignore Ctrl-C, and so do we, and so would every child.
for _signum in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, signal.default_int_handler if _signum == signal.SIGINT else signal.SIG_DFL)

OURS = ("ALEMBIC_ENTRYPOINT_*", "DATABASE_URL", "DATABASE_URL_FILE", "ALEMBIC_CONFIG", "PG*")


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take out of the environment whatever would answer for a test."""
    for name in list(os.environ):
        if any(fnmatch(name, pattern) for pattern in OURS):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def pg13() -> Iterator[Server]:
    with own_server(13) as server:
        yield server


@pytest.fixture(scope="session")
def pg15() -> Iterator[Server]:
    with own_server(15) as server:
        yield server


@pytest.fixture(scope="session")
def pg16() -> Iterator[Server]:
    with own_server(16) as server:
        yield server


@pytest.fixture(scope="session")
def pg18() -> Iterator[Server]:
    with own_server(18) as server:
        yield server


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Server:
    """Give the server that a test uses when it does not care which."""
    chosen: Server = request.getfixturevalue(f"pg{MAJOR}")
    return chosen


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """Give an empty database that no other test sees."""
    with fresh_database(server) as made:
        yield made
