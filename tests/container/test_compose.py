"""What `compose.yaml` promises: three replicas, one migrator, and the app as if started directly."""

import pytest
from containers import HEAD

from servers import wait_until

pytestmark = pytest.mark.container


def test_exactly_one_of_three_replicas_migrates(replicas):
    logged = [replica.event_names() for replica in replicas]
    assert len(logged) == 3
    assert sum(names.count("schema.upgraded") for names in logged) == 1
    assert [names.count("app.launching") for names in logged] == [1, 1, 1]


def test_all_replicas_serve_at_the_same_revision(replicas):
    assert [replica.health() for replica in replicas] == [{"revision": HEAD, "notes": 0}] * 3


def test_the_app_is_pid_1(replicas):
    for replica in replicas:
        assert replica.read("/proc/1/cmdline").split("\0") == ["python", "-m", "notes", ""]


def test_the_app_runs_as_a_user_without_rights(replicas):
    for replica in replicas:
        status = dict(line.split(":\t", 1) for line in replica.read("/proc/1/status").splitlines())
        assert set(status["Uid"].split()) == {"10001"}
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"] == "1"


def test_replicas_that_come_again_find_nothing_to_do_and_stop_cleanly(project):
    for replica in project.up():
        wait_until(replica.health, timeout=60)
    again = project.up("--force-recreate", "app")
    for replica in again:
        assert wait_until(replica.health, timeout=60) == {"revision": HEAD, "notes": 0}
        assert "schema.upgraded" not in replica.event_names()
    assert [replica.stop() for replica in again] == [0, 0, 0]
