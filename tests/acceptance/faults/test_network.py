"""The network is cut: packets are dropped, not refused, between a network namespace of its own and the server."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from witness import SETTINGS, has_witness, measured, off, prepare, recorded, violations, witnessed

from commands import started
from servers import Database, Server, fresh_database, own_server, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.extra]

#: What `docs/how-it-locks.md` names: 10 s idle and three probes of 5 s, and the seconds in which we ask anew. Some more
#: for the ends of processes on a busy machine.
SILENCE, ASKING, ENDING = 25.0, 5.0, 5.0
LIMIT = SILENCE + ASKING + ENDING
TRUST = "local all all trust\nhost all all all trust\n"


@dataclass(frozen=True)
class Cable:
    """A pair of interfaces, one of them in a namespace."""

    namespace: str
    here: str
    address: str

    def cut(self) -> None:
        """Send every packet to a neighbour that is not there."""
        for command in (
            ["ip", "neigh", "replace", f"{self.address}.2", "lladdr", NOBODY, "dev", self.here, "nud", "permanent"],
            [
                *["ip", "netns", "exec", self.namespace],
                *["ip", "neigh", "replace", f"{self.address}.1", "lladdr", NOBODY, "dev", "inside", "nud", "permanent"],
            ],
        ):
            subprocess.run(command, check=True)


NOBODY = "02:00:00:00:00:99"


@contextmanager
def cable() -> Iterator[Cable]:
    """Lay a cable between here and a new namespace."""
    name = f"ae{secrets.token_hex(4)}"  # the last one's interface is taken away only after a while
    made = Cable(name, name, f"10.213.{secrets.randbelow(250) + 1}")
    inside = ["ip", "netns", "exec", made.namespace, "ip"]
    commands = [
        ["ip", "netns", "add", made.namespace],
        ["ip", "link", "add", made.here, "type", "veth", "peer", "name", "inside", "netns", made.namespace],
        ["ip", "address", "add", f"{made.address}.1/24", "dev", made.here],
        ["ip", "link", "set", made.here, "up"],
        [*inside, "address", "add", f"{made.address}.2/24", "dev", "inside"],
        [*inside, "link", "set", "inside", "up"],
        [*inside, "link", "set", "lo", "up"],
    ]
    try:
        for command in commands:
            subprocess.run(command, check=True)
        yield made
    finally:
        subprocess.run(["ip", "link", "delete", made.here], check=False)
        subprocess.run(["ip", "netns", "delete", made.namespace], check=False)


@contextmanager
def beyond(made: Cable) -> Iterator[tuple[Database, str]]:
    """Start a server that both sides reach; give its database, and the URL for the namespace."""
    with own_server(18, {**SETTINGS, "listen_addresses": "*"}, hba=TRUST) as server, fresh_database(server) as database:
        prepare(database)
        yield database, database.url.replace("127.0.0.1", f"{made.address}.1")


def own(database: Database) -> Server:
    assert isinstance(database.server, Server)
    return database.server


def test_a_cut_during_a_migration_is_noticed_and_a_second_replica_goes_on(tmp_path: Path) -> None:
    """Beside it, on a database of its own, one without keepalives, which notices nothing."""
    tree = witnessed(tmp_path, 2, seconds=60)
    with (
        cable() as made,
        beyond(made) as (database, url),
        fresh_database(own(database)) as other,
        ExitStack() as stack,
    ):
        prepare(other)
        inside = ["ip", "netns", "exec", made.namespace]
        bare = {"DATABASE_URL": url.replace(database.name, other.name), **off(tmp_path, "keepalives")}
        run = stack.enter_context(started(tree.folder, "migrate", env={"DATABASE_URL": url}, name="cut", within=inside))
        deaf = stack.enter_context(started(tree.folder, "migrate", env=bare, name="bare", within=inside))
        wait_until(lambda: has_witness(database, "r1") and has_witness(other, "r1"), 60)
        made.cut()
        began = time.monotonic()
        quick = witnessed(tmp_path / "quick", 2, seconds=0)
        with started(quick.folder, "migrate", env={"DATABASE_URL": database.url}) as second:
            result = run.end(60)
            given_up = time.monotonic() - began
            wait_until(lambda: second.process.poll() is not None, 60)
            gone_on = time.monotonic() - began
            assert second.end(5).code == 0
        wait_until(lambda: time.monotonic() - began > LIMIT, LIMIT + 1)
        assert deaf.process.poll() is None, deaf.log.read_text()
        assert result.code == 75, result.stderr
        assert result.named("lock.lost")
        measured("Network cut", given_up=round(given_up, 1), second_done=round(gone_on, 1))
        assert given_up < LIMIT
        assert recorded(database) == ["r2"]
        assert violations(database) == []


def test_a_cut_while_waiting_for_the_lock_ends_within_the_wait(tmp_path: Path) -> None:
    tree = witnessed(tmp_path, 1, seconds=40)
    with cable() as made, beyond(made) as (database, url):
        inside = ["ip", "netns", "exec", made.namespace]
        env = {"DATABASE_URL": url, "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "8"}
        with started(tree.folder, "migrate", env={"DATABASE_URL": database.url}, name="holder"):
            wait_until(lambda: has_witness(database, "r1"), 60)
            with started(tree.folder, "migrate", env=env, name="cut", within=inside) as run:
                wait_until(lambda: run.has("lock.waiting"), 60)
                made.cut()
                began = time.monotonic()
                result = run.end(60)
                given_up = time.monotonic() - began
    assert result.code == 69, result.stderr
    measured("Network cut while waiting", given_up=round(given_up, 1))
    assert given_up < SILENCE + 8 + ENDING


def test_a_server_that_is_only_slow_does_not_end_a_migration(tmp_path: Path) -> None:
    tree = witnessed(tmp_path, 1, seconds=1)
    with own_server(18, SETTINGS) as server:
        database = Database(server, "postgres")
        prepare(database)
        with started(tree.folder, "migrate", env={"DATABASE_URL": database.url}) as run:
            wait_until(lambda: has_witness(database, "r1"), 60)
            freeze_for(server, 5.0)
            assert run.end(60).code == 0


def freeze_for(server: Server, seconds: float) -> None:
    server.freeze()
    over = time.monotonic() + seconds
    try:
        wait_until(lambda: time.monotonic() > over, seconds + 1)
    finally:
        server.thaw()
