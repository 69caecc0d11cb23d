"""`demo`: the main story on an embedded PostgreSQL, each step with the command and what it really prints."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from alembic_entrypoint.errors import Misconfigured
from alembic_entrypoint.postgres.embedded import Embedded, embedded_server, free_port

Write = Callable[[str], None]
LOST = "a2242b61af45"


def demo(write: Write, *, serve: bool = False) -> int:
    """Tell the story, or with `serve` keep the example service up until it is interrupted."""
    with tempfile.TemporaryDirectory(prefix="alembic-entrypoint-demo-") as folder, embedded_server() as server:
        service = Path(folder, "example")
        shutil.copytree(example(), service, ignore=shutil.ignore_patterns("__pycache__"))
        stage = Stage(service, server, write)
        if serve:
            _serve(stage)
        else:
            for act in (_first_start, _second_start, _three_replicas, _recovery, _refusal):
                act(stage)
            write("\nThe demo is over: its PostgreSQL and its files are gone.")
    return 0


def example() -> Path:
    """Find the example service: inside the installed package, or in a checkout beside it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "entrypoint" / "example", package.parents[1] / "entrypoint" / "example"):
        if folder.is_dir():
            return folder
    raise Misconfigured("The example service is not in this installation; install alembic-entrypoint from its wheel.")


class Stage:
    """The service's folder, its database server, and where to write."""

    def __init__(self, service: Path, server: Embedded, write: Write) -> None:
        self.service = service
        self.server = server
        self.write = write

    def title(self, text: str) -> None:
        """Begin a step."""
        self.write(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n== {text}")

    def create(self, database: str) -> str:
        """Create a database; give its URL."""
        import psycopg

        with psycopg.connect(self.server.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"'.encode())
        return self.server.url_for(database)

    def query(self, url: str, statement: str) -> list[tuple[object, ...]]:
        """Run one statement; give its rows."""
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def start(self, command: Sequence[str], url: str, output: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run `alembic-entrypoint …` in the service's folder, its output into a file; end it with the block."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ALEMBIC")},
            "DATABASE_URL": url,
            "ALEMBIC_ENTRYPOINT_LOG_FORMAT": "console",
            "PYTHONDONTWRITEBYTECODE": "1",
            **env,
        }
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "alembic_entrypoint", *command],
                cwd=self.service,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(3)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.wait()

    def show(self, output: Path, *, most: int = 30) -> None:
        """Print what a command printed, indented."""
        lines = output.read_text(errors="replace").rstrip().splitlines()
        for line in lines[:most]:
            self.write(f"  {line}")
        if len(lines) > most:
            self.write(f"  … and {len(lines) - most} lines more")


def _first_start(stage: Stage) -> None:
    stage.title("A first start: the database is empty")
    _start_service(stage, stage.create("notes"))


def _second_start(stage: Stage) -> None:
    stage.title("A second start: nothing to do")
    _start_service(stage, stage.server.url_for("notes"))


def _start_service(stage: Stage, url: str) -> None:
    """Start the service, ask it for its health, and stop it."""
    port = free_port()
    output = stage.service.parent / "output"
    stage.write(f"$ DATABASE_URL=… PORT={port} alembic-entrypoint run -- python -m notes")
    with stage.start(["run", "--", sys.executable, "-m", "notes"], url, output, PORT=str(port)) as process:
        health = _health(port, process)
    stage.show(output)
    stage.write(f"$ curl http://127.0.0.1:{port}/health")
    stage.write(f"  {health}")


def _three_replicas(stage: Stage) -> None:
    stage.title("Three replicas at once, on an empty database")
    url = stage.create("replicas")
    stage.write("$ for i in 1 2 3; do alembic-entrypoint run -- python -m notes & done")
    with ExitStack() as stack:
        ports = [free_port() for _ in range(3)]
        outputs = [stage.service.parent / f"output-{port}" for port in ports]
        processes = [
            stack.enter_context(stage.start(["run", "--", sys.executable, "-m", "notes"], url, output, PORT=str(port)))
            for port, output in zip(ports, outputs, strict=True)
        ]
        answers = [_health(port, process) for port, process in zip(ports, processes, strict=True)]
    for n, (output, answer) in enumerate(zip(outputs, answers, strict=True), 1):
        text = output.read_text(errors="replace")
        did = "migrated" if "schema.upgraded" in text else "waited for it and found nothing left to do"
        stage.write(f"  replica {n}: {did}; serves {answer}")


def _recovery(stage: Stage) -> None:
    stage.title(f"A lost revision that can be proved: the migrations were squashed, and {LOST} is still recorded")
    url = stage.server.url_for("notes")
    stage.query(url, f"UPDATE alembic_version SET version_num = '{LOST}'")
    _start_service(stage, url)


def _refusal(stage: Stage) -> None:
    stage.title("A refusal: the same, and somebody has added a column by hand")
    url = stage.server.url_for("notes")
    stage.query(url, f"UPDATE alembic_version SET version_num = '{LOST}'; ALTER TABLE notes ADD author text")
    output = stage.service.parent / "output"
    stage.write("$ alembic-entrypoint run -- python -m notes; echo $?")
    with stage.start(["run", "--", sys.executable, "-m", "notes"], url, output) as process:
        code = process.wait(60)
    stage.show(output)
    stage.write(f"  {code}")
    rows = stage.query(url, "SELECT version_num FROM alembic_version")
    stage.write(f"$ psql -c 'TABLE alembic_version'   # nothing was changed\n  {rows[0][0]}")


def _serve(stage: Stage) -> None:
    stage.title("The example service; Ctrl-C ends it")
    port = free_port()
    output = stage.service.parent / "output"
    command = ["run", "--", sys.executable, "-m", "notes"]
    with stage.start(command, stage.create("notes"), output, PORT=str(port)) as process:
        _health(port, process)
        stage.show(output)
        stage.write(f"Open http://127.0.0.1:{port}/")
        process.wait()


def _health(port: int, process: subprocess.Popen[bytes], timeout: float = 60.0) -> str:
    """Wait until the service answers; give what it says. Raises Misconfigured when it ends before."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise Misconfigured(f"The example service did not come up on port {port} (its status: {process.poll()}).")
