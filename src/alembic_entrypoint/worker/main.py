"""The worker: take a request, run `env.py`, tell the parent what happens, and die with it.

Importing Alembic, SQLAlchemy and a thousand migrations takes longer than most of what follows. So a worker that looks
does it in a fork, loads the migrations meanwhile, and goes on to migrate itself, with everything imported and `env.py`
never run before.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO, cast

from alembic_entrypoint.address import Place, place_of
from alembic_entrypoint.worker import connections, drivers
from alembic_entrypoint.worker.loading import looked_in_a_fork, unswept
from alembic_entrypoint.worker.messages import Message, Request
from alembic_entrypoint.worker.parent import Parent, Work, end_at_once
from alembic_entrypoint.worker.steps import finished, see_what_no_transaction_shows, watched


def main(reading: int, writing: int) -> NoReturn:
    """Run one request, or a look and what comes after it, and end."""
    for descriptor in (reading, writing):
        os.set_inheritable(descriptor, False)
    parent = Parent(reading, writing)
    request = Request.decode(parent.next_word())
    policy = connections.Policy(connect_timeout=request.connect_timeout)
    work = Work(parent)
    _route(request, parent, policy, work)
    parent.at_end = functools.partial(_cancel_all, policy)
    with _telling_why(parent, policy, work):
        # Everything below imports the user's packages.
        environment = _prepared(request, policy)

        def look() -> NoReturn:
            with _telling_why(parent, policy, work):
                _run(request, parent, policy, work, environment)
            end_at_once()

        if request.stays and looked_in_a_fork(look, request, parent, policy, environment):
            if policy.made:
                end_at_once()  # an import has connected, and only to look
            parent.tell("idle")
            request = environment.request = Request.decode(parent.next_word())
            _route(request, parent, policy, work)
        else:
            with unswept():
                environment.load()
        _run(request, parent, policy, work, environment)
    end_at_once()


@contextmanager
def _telling_why(parent: Parent, policy: connections.Policy, work: Work) -> Iterator[None]:
    """Tell why it failed; env.py may raise anything, SystemExit and KeyboardInterrupt included."""
    try:
        yield
    except BaseException as error:
        parent.tell("failed", **_failure(error, work), places=_places(policy))


def _route(request: Request, parent: Parent, policy: connections.Policy, work: Work) -> None:
    """Say where connections go, and what they run first."""
    policy.places = set(request.places)
    policy.asked = functools.partial(_confide, parent, request)
    if request.lent:
        policy.lent = frozenset(request.lent)
        policy.own = frozenset((request.places[0], place_of(request.parameters or {}, os.environ)))
    if request.order == "load":
        return
    if request.order == "ask":
        policy.asked = functools.partial(_answer, parent, request)
        policy.steps = lambda _: connections.read_only_steps()
    elif request.order in ("observe", "sql"):
        policy.target = request.parameters if request.is_redirecting and request.is_given else None
        if request.is_redirecting and not request.is_learned:
            policy.places = None
        policy.steps = lambda _: connections.read_only_steps()
    elif request.order == "replay":
        from alembic_entrypoint.worker import replay

        replay.prepare(request, parent, policy, work)
    else:
        assert request.token is not None
        fence = functools.partial(connections.fence_steps, request.token, request.session)
        policy.target = request.parameters if request.is_given else None
        policy.steps = lambda is_target: fence() if is_target else None
        policy.left_alone = lambda place: parent.tell("left_alone", place=str(place))


def _answer(parent: Parent, request: Request, made: connections.Made) -> None:
    """Tell where env.py connects to and how, and end; other places than the request names are passed over."""
    if not request.places or made.place in request.places:
        parent.tell("asked", parameters=made.parameters, driver=made.driver)
        end_at_once()


def _confide(parent: Parent, request: Request, made: connections.Made) -> None:
    """Tell of a password that the parent does not know, so that it stays out of the log."""
    password = made.parameters.get("password")
    if password and password != (request.parameters or {}).get("password"):
        parent.tell("secret", parameters=made.parameters)


def _prepared(request: Request, policy: connections.Policy) -> Any:
    """Wrap the drivers, then import Alembic; the migrations, which may import drivers, are loaded later."""
    drivers.install(policy)
    with unswept():
        from alembic_entrypoint.worker.environment import Environment

        return Environment(request, policy)


def _run(request: Request, parent: Parent, policy: connections.Policy, work: Work, environment: Any) -> None:
    parent.listen()
    _ORDERS[request.order](request, parent, policy, work, environment)
    parent.tell("done")


def _load(request: Request, parent: Parent, policy: connections.Policy, work: Work, environment: Any) -> None:
    """Tell what the image ships, as far as it can be told without running env.py."""
    from alembic_entrypoint.worker.environment import versions

    parent.tell(
        "loaded",
        **environment.loaded(),
        folders=environment.folders,
        sourceless=environment.script.sourceless,
        versions=versions(),
        interpreter=sys.executable,
    )


def _ask(request: Request, parent: Parent, policy: connections.Policy, work: Work, environment: Any) -> None:
    """Run env.py until it connects, and tell where to."""
    from alembic_entrypoint.worker import transactions
    from alembic_entrypoint.worker.failures import Unusable

    transactions.keep_read_only()
    parent.tell("configured", url=environment.configured_url)
    environment.run(lambda recorded, context: [], dont_mutate=True)
    where = request.places[0] if request.places else "PostgreSQL"
    raise Unusable(f"env.py runs the migrations without connecting to {where}")


def _observe(request: Request, parent: Parent, policy: connections.Policy, work: Work, environment: Any) -> None:
    """Look at the migrations and the database; everything is read-only."""
    from alembic_entrypoint.worker import transactions
    from alembic_entrypoint.worker.environment import look

    transactions.keep_read_only()
    if environment.cleaned:
        parent.tell("cleaned", **environment.cleaned)

    def at_migrations(recorded: tuple[str, ...], context: Any) -> list[Any]:
        parent.tell("observed", **_seen(environment, look(context, recorded)))
        return []

    environment.run(at_migrations, dont_mutate=True)


def _migrate(request: Request, parent: Parent, policy: connections.Policy, work: Work, environment: Any) -> None:
    """Look once more, over the connection that will migrate; wait for the word; then upgrade."""
    assert request.token is not None
    from alembic_entrypoint.worker import transactions
    from alembic_entrypoint.worker.environment import look
    from alembic_entrypoint.worker.failures import Unusable

    fence = transactions.Fence(policy, request.token, request.session, work)
    fence.keep()
    if request.order == "look" and not request.keeps:
        transactions.keep_nothing()
    if environment.configured_place and request.is_given and policy.places is not None:
        policy.places.add(environment.configured_place)

    def at_migrations(recorded: tuple[str, ...], context: Any) -> list[Any]:
        if environment.made is None or not environment.made.is_target:
            raise Unusable(
                f"env.py migrates {environment.made and environment.made.place}, not the target; "
                "set ALEMBIC_ENTRYPOINT_DATABASE_URL to what it should migrate"
            )
        parent.tell("observed", **_seen(environment, look(context, recorded)))
        if request.order == "look":
            return []
        expected, expected_steps = _expected(environment, recorded)  # while the parent decides
        word = parent.words.get()
        if word["order"] == "stop":
            return []
        if not recorded:
            context._ensure_version_table()
        steps = expected_steps
        if request.downgrade is not None or word["revisions"] != expected:
            steps = _steps(environment, word.get("revisions"), recorded)
        if request.downgrade and {each.revision.revision for each in steps} != {*word["undone"]}:
            raise Unusable(
                f"to come down to {request.downgrade}, Alembic would undo other revisions than were confirmed: "
                + ", ".join(each.revision.revision for each in steps)
            )
        check = functools.partial(fence.check_migration, context.connection)
        fence.check(context.connection)
        see_what_no_transaction_shows(policy, work)
        context.on_version_apply_callbacks = (*context.on_version_apply_callbacks, finished(parent, work))
        # An empty database is made anew after a failure; in any other, what was left behind has to be told apart.
        tells = bool(recorded)
        return [watched(step, n, len(steps), parent, work, context, check, tells) for n, step in enumerate(steps, 1)]

    # With dont_mutate Alembic leaves the version table alone until the parent has decided.
    environment.run(at_migrations, dont_mutate=True)


def _sql(request: Request, parent: Parent, policy: connections.Policy, work: Work, environment: Any) -> None:
    """Print what an upgrade would run, without a connection."""
    from alembic_entrypoint.worker import transactions

    transactions.keep_read_only()
    environment.config.output_buffer = cast(TextIO, _Telling(parent))
    revisions = None if request.downgrade else environment.target_revisions()

    def at_migrations(recorded: tuple[str, ...], context: Any) -> list[Any]:
        return _steps(environment, revisions, recorded)

    environment.run(at_migrations, as_sql=True, starting_rev=request.starting or None)


def _replay(request: Request, parent: Parent, policy: connections.Policy, work: Work, environment: Any) -> None:
    """Run migrations in scratch, and tell what each of them makes."""
    from alembic_entrypoint.worker import replay

    replay.run(request, parent, policy, work, environment)


def _steps(environment: Any, revisions: list[str] | None, recorded: tuple[str, ...]) -> list[Any]:
    """Ask Alembic for the way, down where the request says so; several revisions at once are its `heads`."""
    steps: list[Any]
    if (down := environment.request.downgrade) is not None:
        steps = environment.script._downgrade_revs(down, recorded)
    else:
        steps = environment.script._upgrade_revs(tuple(revisions or ()), recorded)
    return steps


def _expected(environment: Any, recorded: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    """Find the heads and the way to them, which is the one that is taken most often."""
    if environment.request.downgrade is None:
        with suppress(Exception):  # where there is no way, the parent does not go it
            heads = list(environment.script.get_heads())
            return heads, _steps(environment, heads, recorded)
    return [], []


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
    is_told = environment.moved or (environment.is_loaded and not environment.request.is_known)
    return {
        **seen,
        "inputs": environment.inputs(seen["version_table"]["schema"]),
        "migrations": environment.migrations() if is_told else None,
        "moved": environment.moved,
        "unloadable": environment.unloadable,
        "target_revisions": environment.target_revisions() if "@" in environment.request.target else None,
        "place": _place(made.place) if made else None,
        "parameters": made.parameters if made else None,
        "driver": made.driver if made else None,
        "configured_place": _place(environment.configured_place) if environment.configured_place else None,
    }


def _failure(error: BaseException, work: Work) -> Message:
    """Describe an error so that the parent can tell it to a person."""
    from alembic_entrypoint.worker import failures

    return {**failures.describe(error), "migration": work.migration}


def _place(place: Place) -> Message:
    return {"hosts": place.hosts, "ports": place.ports, "dbname": place.dbname}


def _places(policy: connections.Policy) -> list[Message]:
    return [_place(made.place) for made in policy.made.values()]


def _cancel_all(policy: connections.Policy) -> None:
    """Cancel what runs on the server, with each driver's own cancel, within a second."""
    threads = [
        threading.Thread(target=drivers.cancel, args=(connection,), daemon=True)
        for connection in list(policy.made.keys())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1.0)


_ORDERS: Mapping[str, Callable[[Request, Parent, connections.Policy, Work, Any], None]] = {
    "load": _load,
    "ask": _ask,
    "observe": _observe,
    "look": _migrate,
    "migrate": _migrate,
    "sql": _sql,
    "replay": _replay,
}
