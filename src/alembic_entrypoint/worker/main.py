"""The worker: take one request, run `env.py`, tell the parent what happens, and die with it."""

from __future__ import annotations

import functools
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TextIO, cast

from alembic_entrypoint.address import Place
from alembic_entrypoint.worker import connections
from alembic_entrypoint.worker.messages import Lines, Message, Request, decode, write


class Parent:
    """The parent's end: what it says, and what is said to it."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._lock = threading.Lock()
        self.words: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.at_end: Callable[[], None] = lambda: None

    def tell(self, said: str, **keys: Any) -> None:
        """Say one thing."""
        with self._lock:
            write(self._writing, {"said": said, **keys})

    def listen(self) -> None:
        """Pass on what the parent says; when it is gone, or says cancel, end at once. For a thread."""
        lines = Lines(1 << 30)
        while data := self._read():
            for line in lines.feed(data):
                message = decode(line)
                if message.get("order") == "cancel":
                    self._end()
                self.words.put(message)
        self._end()

    def _read(self) -> bytes:
        try:
            return os.read(self._reading, 1 << 16)
        except OSError:
            return b""

    def _end(self) -> NoReturn:
        try:
            self.at_end()
        finally:
            os._exit(1)


class Work:
    """What happened so far, for the message when something fails."""

    def __init__(self) -> None:
        self.migration: Message | None = None
        self.finished: list[str] = []
        self.committed: list[str] = []
        self.is_partly_committed = False

    def commit(self) -> None:
        """A transaction of the migrations was committed."""
        self.committed = list(self.finished)
        current = self.migration["revision"] if self.migration else None
        self.is_partly_committed = current is not None and current not in self.finished


def main(reading: int, writing: int) -> NoReturn:
    """Run one request and end."""
    parent = Parent(reading, writing)
    threading.Thread(target=parent.listen, daemon=True).start()
    request = Request.decode(parent.words.get())
    policy = connections.Policy(connect_timeout=request.connect_timeout)
    parent.at_end = functools.partial(_cancel_all, policy)
    work = Work()
    try:
        # Everything below imports the user's packages.
        _ORDERS[request.order](request, parent, policy, work)
        parent.tell("done")
    except BaseException as error:  # env.py may raise anything, SystemExit and KeyboardInterrupt included
        parent.tell("failed", **_failure(error, work), places=_places(policy))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    # Threads, loops and exit functions that env.py left behind are not waited for.
    os._exit(0)


def _ask(request: Request, parent: Parent, policy: connections.Policy, work: Work) -> None:
    """Run env.py until it connects, and tell where to."""

    def asked(place: Place, parameters: Mapping[str, Any], driver: str) -> None:
        parent.tell("asked", parameters=dict(parameters), driver=driver)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    policy.asked = asked
    connections.install(policy)
    from alembic_entrypoint.worker.environment import Environment, Unusable

    Environment(request, policy).run(lambda recorded, context: [], dont_mutate=True)
    raise Unusable("env.py runs the migrations without connecting to PostgreSQL")


def _observe(request: Request, parent: Parent, policy: connections.Policy, work: Work) -> None:
    """Look at the migrations and the database; everything is read-only."""
    policy.target = request.parameters if request.is_redirecting else None
    policy.places = set(request.places) or None
    policy.steps = connections.read_only_steps
    connections.install(policy)
    from alembic_entrypoint.worker import transactions
    from alembic_entrypoint.worker.environment import Environment, look

    transactions.keep_read_only()
    environment = Environment(request, policy)
    if environment.cleaned:
        parent.tell("cleaned", removed=environment.cleaned)
    parent.tell("loaded", migrations=environment.migrations(), unloadable=environment.unloadable)

    def at_migrations(recorded: tuple[str, ...], context: Any) -> list[Any]:
        parent.tell("observed", **_seen(environment, look(context, recorded)))
        return []

    environment.run(at_migrations, dont_mutate=True)


def _migrate(request: Request, parent: Parent, policy: connections.Policy, work: Work) -> None:
    """Look once more, over the connection that will migrate; wait for the word; then upgrade."""
    assert request.token is not None
    policy.target = request.parameters
    policy.places = set(request.places) or None
    policy.steps = functools.partial(connections.fence_steps, request.token, request.session)
    policy.left_alone = lambda place: parent.tell("left_alone", place=str(place))
    connections.install(policy)
    from alembic_entrypoint.worker import transactions
    from alembic_entrypoint.worker.environment import Environment, Unusable, look

    transactions.keep_fenced(policy, request.token, request.session, work.commit)
    environment = Environment(request, policy)
    if environment.configured_place and policy.places is not None:
        policy.places.add(environment.configured_place)
    parent.tell("loaded", migrations=environment.migrations(), unloadable=environment.unloadable)

    def at_migrations(recorded: tuple[str, ...], context: Any) -> list[Any]:
        if environment.made is None or not environment.made.is_fenced:
            raise Unusable(f"env.py migrates {environment.made and environment.made.place}, not the target")
        parent.tell("observed", **_seen(environment, look(context, recorded)))
        word = parent.words.get()
        if word["order"] != "upgrade":
            return []
        if not recorded:
            context._ensure_version_table()
        steps = _steps(environment, word["revisions"], recorded)
        context.on_version_apply_callbacks = (*context.on_version_apply_callbacks, _finished(parent, work))
        return [_watched(step, n, len(steps), parent, work) for n, step in enumerate(steps, 1)]

    # With dont_mutate Alembic leaves the version table alone until the parent has decided.
    environment.run(at_migrations, dont_mutate=True)


def _sql(request: Request, parent: Parent, policy: connections.Policy, work: Work) -> None:
    """Print what an upgrade would run, without a connection."""
    policy.target = request.parameters
    policy.steps = connections.read_only_steps
    connections.install(policy)
    from alembic_entrypoint.worker import transactions
    from alembic_entrypoint.worker.environment import Environment

    transactions.keep_read_only()
    environment = Environment(request, policy)
    environment.config.output_buffer = cast(TextIO, _Telling(parent))
    revisions = environment.target_revisions()

    def at_migrations(recorded: tuple[str, ...], context: Any) -> list[Any]:
        return _steps(environment, revisions, recorded)

    environment.run(at_migrations, as_sql=True, starting_rev=request.starting or None)


def _steps(environment: Any, revisions: list[str], recorded: tuple[str, ...]) -> list[Any]:
    """Ask Alembic for the way; several revisions at once are what `heads` means to it."""
    steps: list[Any] = environment.script._upgrade_revs(tuple(revisions), recorded)
    return steps


class _Telling:
    """A stream whose text goes to the parent."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent

    def write(self, text: str) -> int:
        self._parent.tell("sql", text=text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _seen(environment: Any, seen: Message) -> Message:
    """Complete what was observed by what the image is, which env.py may have changed."""
    made = environment.made
    return {
        **seen,
        "migrations": environment.migrations(),
        "unloadable": environment.unloadable,
        "target_revisions": environment.target_revisions() if "@" in environment.request.target else None,
        "place": _place(made.place) if made else None,
        "is_target": made.is_target if made else None,
        "configured_place": _place(environment.configured_place) if environment.configured_place else None,
    }


def _watched(step: Any, n: int, of: int, parent: Parent, work: Work) -> Any:
    """Tell when a migration begins."""
    run, revision = step.migration_fn, step.revision
    path = os.path.relpath(revision.path)

    @functools.wraps(run)
    def watched(**keys: Any) -> None:
        work.migration = {
            "revision": revision.revision,
            "path": path,
            "n": n,
            "of": of,
            "doc": revision.doc or "",
        }
        parent.tell("started", **work.migration)
        run(**keys)

    step.migration_fn = watched
    return step


def _finished(parent: Parent, work: Work) -> Callable[..., None]:
    def finished(*, step: Any, **_: Any) -> None:
        work.finished += step.up_revision_ids
        parent.tell("finished", revision=step.up_revision_id)

    return finished


def _failure(error: BaseException, work: Work) -> Message:
    """Describe an error so that the parent can tell it to a person."""
    from alembic_entrypoint.worker import failures

    return {
        **failures.describe(error),
        "migration": work.migration,
        "committed": work.committed,
        "is_partly_committed": work.is_partly_committed,
    }


def _place(place: Place) -> Message:
    return {"hosts": place.hosts, "ports": place.ports, "dbname": place.dbname}


def _places(policy: connections.Policy) -> list[Message]:
    return [_place(made.place) for made in policy.made.values()]


def _cancel_all(policy: connections.Policy) -> None:
    """Cancel what runs on the server, with each driver's own cancel, within a second."""
    threads = [
        threading.Thread(target=connections.cancel, args=(connection,), daemon=True)
        for connection in list(policy.made.keys())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1.0)


_ORDERS: Mapping[str, Callable[[Request, Parent, connections.Policy, Work], None]] = {
    "ask": _ask,
    "observe": _observe,
    "migrate": _migrate,
    "sql": _sql,
}
