"""Nine replicas, and a database that comes twenty seconds after them: all wait, one migrates, all serve."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import pytest
from containers import HEAD, PASSWORD, Container, Database, new_network, new_postgres, starting

from servers import wait_until

pytestmark = pytest.mark.container

REPLICAS = 9
LATE = timedelta(seconds=20)


@dataclass(frozen=True)
class Patient:
    """Replicas that waited, and the database that came."""

    replicas: list[Container]
    database: Database


def waits_since(replica):
    """Return for how long a replica has said that it waits."""
    events = replica.named("database.waiting")
    if not events:
        return timedelta()
    return datetime.now(timezone.utc) - datetime.fromisoformat(events[0]["timestamp"].replace("Z", "+00:00"))


@pytest.fixture(scope="module")
def patient(image):
    """Nine replicas that had waited for twenty seconds when the server started, and serve."""
    options = (f"--env=DATABASE_URL=postgresql://notes:{PASSWORD}@db/notes", "--publish=127.0.0.1::8000")
    with new_network() as network, starting(image) as start:
        replicas = [start(options=(f"--network={network}", *options)) for _ in range(REPLICAS)]
        wait_until(
            lambda: all(waits_since(replica) >= LATE for replica in reversed(replicas)), timeout=90, interval=0.5
        )
        with new_postgres(network, "--network-alias=db") as server:
            for replica in replicas:
                wait_until(replica.health, timeout=60)
            yield Patient(replicas, Database(server, "notes"))


def test_replicas_wait_for_a_database_that_is_twenty_seconds_late(patient):
    for replica in patient.replicas:
        [ready] = replica.named("database.ready")
        assert ready["elapsed"] >= LATE.total_seconds()
        assert replica.event_names()[-1] == "app.launching"


def test_a_replica_says_once_for_each_reason_why_it_waits(patient):
    for replica in patient.replicas:
        reasons = [event["reason"] for event in replica.named("database.waiting")]
        assert reasons
        assert len(reasons) == len(set(reasons))


def test_exactly_one_of_nine_replicas_migrates(patient):
    logged = [replica.event_names() for replica in patient.replicas]
    assert len(logged) == REPLICAS
    assert sum(names.count("schema.upgraded") for names in logged) == 1
    assert sum(names.count("migration.started") for names in logged) == 4
    assert [names.count("app.launching") for names in logged] == [1] * REPLICAS


def test_all_nine_replicas_serve_at_the_same_revision(patient):
    assert [replica.health() for replica in patient.replicas] == [{"revision": HEAD, "notes": 0}] * REPLICAS


def test_nobody_but_the_apps_stays_connected(patient):
    names = patient.database.query("SELECT application_name FROM pg_stat_activity WHERE datname = 'notes'")
    assert "alembic-entrypoint" not in names
