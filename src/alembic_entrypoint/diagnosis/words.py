"""What was found, as one screen for a person. Pure: the document in, lines out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alembic_entrypoint.diagnosis.drawing import in_ascii

Document = Mapping[str, Any]


def lines(found: Document, *, is_ascii: bool) -> Iterator[str]:
    """Write a line for each part, the graph, and what to do now."""
    return map(in_ascii, _lines(found)) if is_ascii else _lines(found)


def _lines(found: Document) -> Iterator[str]:
    for name, say in _PARTS.items():
        part = found[name]
        said = [part["error"]] if part["error"] else [*say(part)]
        bad = bool(part["error"]) or _is_bad(name, part)
        sign = "✗" if bad else "✓"
        first, *rest = [line for each in said for line in each.splitlines()] or ["nothing"]
        yield f"{sign} {name.replace('_', ' '):<12} {first}"
        yield from (f"{'':<15}{line}" for line in rest)
    if found["migrations"]["error"] is None:
        yield ""
        yield from (f"  {row}" for row in found["migrations"]["drawing"])
    yield ""
    yield f"What to do now (run would end with {found['exit_code']}):"
    for n, step in enumerate(found["what_to_do"], 1):
        first, *rest = step["because"].splitlines()
        yield f"{n}. {first}"
        yield from (f"   {line}" for line in rest)
        if step["command"]:
            yield f"   $ {step['command']}"


def _is_bad(name: str, part: Document) -> bool:
    bad: Mapping[str, Callable[[], Any]] = {
        "settings": lambda: part["problems"],
        "network": lambda: not any(each["answers"] for each in part["hosts"]),
        "server": lambda: part["shared"] or part["standby"] or part["read_only"],
        "rights": lambda: any(each["needed"] and not each["has"] for each in part["rights"]),
        "lock": lambda: part["blocker"],
        "migrations": lambda: part["faults"] or part["unknown"],
        "state": lambda: part["action"] not in ("START", "UPGRADE") or part["drift"],
        "ledger": lambda: part["edited"],
        "left_behind": lambda: part["invalid_indexes"],
        "bytecode": lambda: part["stale"],
    }
    return name in bad and bool(bad[name]())


def _settings(part: Document) -> Iterator[str]:
    given = [f"{each['name']}={each['value']} ({each['from']})" for each in part["values"] if each["from"] != "default"]
    yield ", ".join(given) or "all are defaults"
    yield from part["problems"]


def _network(part: Document) -> Iterator[str]:
    for each in part["hosts"]:
        where = f"{each['host']}:{each['port']}"
        at = f" is {', '.join(each['addresses'])}" if each["addresses"] not in ([], [each["host"]]) else ""
        yield f"{where}{at}: {'answers' if each['answers'] else each['problem']}"


def _server(part: Document) -> Iterator[str]:
    way = (
        "through a pooler that shares sessions"
        if part["shared"]
        else "through a pooler"
        if part["pooled"]
        else "direct"
    )
    reading = ", a session that may only read" if part["read_only"] else ""
    yield f"PostgreSQL {part['version']}, {way}, {'a standby' if part['standby'] else 'a primary'}{reading}"


def _rights(part: Document) -> Iterator[str]:
    lacking = [each for each in part["rights"] if not each["has"]]
    if not lacking:
        yield "everything that we need"
    for each in lacking:
        yield f"lacks {each['name']}, {'needed' if each['needed'] else 'only'} for: {each['why']}"


def _lock(part: Document) -> Iterator[str]:
    holder, blocker = part["holder"], part["blocker"]
    yield _session(holder) if holder else "free"
    if part["migrating"]:
        yield f"migrating: {', '.join('pid ' + str(each['pid']) for each in part['migrating'])}"
    if blocker:
        yield f"in its way: {_session(blocker)}"
    for each in part["idle"]:
        yield f"idle in a transaction with locks on {', '.join(each['tables'])}: {_session(each)}"


def _session(session: Document) -> str:
    name = f"pid {session['pid']} {session['application_name']!r} from {session['client']}"
    return f"{name}, connected for {session['age']:.0f} s; {session['doing']}"


def _software(part: Document) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    yield f"alembic-entrypoint {part['alembic_entrypoint']}, {versions}; {part['interpreter']}"


def _migrations(part: Document) -> Iterator[str]:
    words = [
        (part["migrations"], "migration", "s"),
        (part["heads"], "head", "s"),
        (part["branch_points"], "branch point", "s"),
        (part["merges"], "merge", "s"),
    ]
    yield ", ".join(f"{count} {word}{plural if count != 1 else ''}" for count, word, plural in words)
    yield from part["faults"]


def _state(part: Document) -> Iterator[str]:
    yield f"{part['state']}, so {part['action']}: {part['because']}"
    if part["proof"]:
        yield part["drift"] or "Proved: the live schema is what it should be."


def _ledger(part: Document) -> Iterator[str]:
    for each in part["settlings"]:
        before, after = (", ".join(each[name] or ()) or "nothing" for name in ("before", "after"))
        image = f" from image {each['image']}" if each["image"] else ""
        yield f"{each['began'][:16]} {each['state']} {each['action']} {each['outcome']}: {before} -> {after}{image}"
    for path in part["edited"]:
        yield f"{path} was edited after it had been applied here"


def _left_behind(part: Document) -> Iterator[str]:
    yield from part["invalid_indexes"]
    yield from part["not_valid_constraints"]


def _bytecode(part: Document) -> Iterator[str]:
    if not part["stale"]:
        yield "none that is stale"
    for each in part["stale"]:
        yield f"{each['path']}: {each['meaning']}"


_PARTS = {
    "software": _software,
    "settings": _settings,
    "database": lambda part: [f"{part['name']}, says {part['from']}"],
    "network": _network,
    "login": lambda part: [f"as {part['role']}" + (", a superuser" if part["superuser"] else "")],
    "server": _server,
    "rights": _rights,
    "lock": _lock,
    "tree": lambda part: [f"{part['fingerprint']}, {part['files']} files in {', '.join(part['folders'])}"],
    "migrations": _migrations,
    "state": _state,
    "ledger": _ledger,
    "left_behind": _left_behind,
    "bytecode": _bytecode,
}
