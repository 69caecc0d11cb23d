"""`demo` tells the whole story, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from commands import entrypoint, started
from servers import wait_until


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Give a folder for temporary files that the server's unprivileged user may enter, too."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def left_behind(folder: Path) -> list[str]:
    """Name the files and the processes that are left."""
    files = [str(path) for path in folder.iterdir()]
    processes = [
        " ".join(each.info["cmdline"])
        for each in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in each.info["cmdline"] or ())
    ]
    return files + processes


def test_the_demo_shows_its_starts_and_leaves_nothing_behind(temporary: Path) -> None:
    result = entrypoint("demo", env={"TMPDIR": str(temporary)})
    assert result.code == 0, result.stdout + result.stderr
    for part in (
        "A first start",
        "schema.upgraded",
        "A second start",
        "nothing is pending",
        "Three replicas at once",
        "A lost revision that can be proved",
        "schema.stamped",
        "A refusal",
        "notes.author: text here, missing in c46b1d9e20f8",
        "LOST: public.alembic_version records a2242b61af45",
        "  65",
    ):
        assert part in result.stdout
    assert result.stdout.count("waited for it and found nothing left to do") == 2
    assert result.stdout.count(": migrated;") == 1
    assert left_behind(temporary) == []


def test_control_c_ends_the_demo_and_leaves_nothing_behind(temporary: Path, tmp_path: Path) -> None:
    with started(tmp_path, "demo", "--serve", env={"TMPDIR": str(temporary)}) as demo:
        out = tmp_path / "run.stdout"
        wait_until(lambda: "Open http://127.0.0.1:" in out.read_text(), timeout=60, what="the service is up")
        assert left_behind(temporary)
        demo.signal(signal.SIGINT)
        assert demo.end().code == 130
    wait_until(lambda: not left_behind(temporary), what="everything is gone")
