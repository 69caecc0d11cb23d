"""What an exception in the user's code means, as far as its type and SQLSTATE tell."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from alembic_entrypoint.worker.connections import FenceError

READ_ONLY = "25006"


class Unusable(Exception):
    """The image cannot be used as it is; the message says why."""


def describe(error: BaseException) -> dict[str, Any]:
    """Give kind, text, SQLSTATE and statement of an error. Kinds: unusable, fence, import, read_only, exit, error."""
    original, sqlstate = _original(error), _sqlstate(error)
    return {
        "kind": _kind(error),
        "error": _text(error, original, sqlstate),
        "sqlstate": sqlstate,
        "statement": getattr(error, "statement", None),
        # SQLAlchemy's own word for a connection that ended [E7].
        "is_disconnected": bool(getattr(error, "connection_invalidated", False)),
        "interpreter": sys.executable,
        "traceback": _trace(error),
    }


def _trace(error: BaseException) -> str:
    """Write the traceback as the user's own files have it: from env.py on, without the frames of libraries."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and not any(part in frame.filename for part in _LIBRARIES)
    ]
    return "".join(traceback.format_list(frames) + traceback.format_exception_only(type(error), error)).rstrip()


_LIBRARIES = tuple(
    f"{os.sep}{name}{os.sep}"
    for name in ("alembic_entrypoint", "site-packages", "dist-packages", "importlib", "asyncio")
)


def _original(error: BaseException) -> BaseException:
    """SQLAlchemy wraps the driver's error, and its asyncpg dialect wraps once more."""
    original = getattr(error, "orig", None) or error
    cause = original.__cause__
    return cause if cause is not None and getattr(cause, "sqlstate", None) else original


def _sqlstate(error: BaseException) -> str | None:
    original = _original(error)
    return getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)


def _kind(error: BaseException) -> str:
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and not any(each is known for known in chain):
        chain.append(each)
        each = each.__cause__ or each.__context__
    if any(isinstance(each, FenceError) for each in chain):
        return "fence"
    if isinstance(error, Unusable):
        return "unusable"
    if any(_sqlstate(each) == READ_ONLY for each in chain):
        return "read_only"
    if isinstance(error, ModuleNotFoundError):
        return "import"
    if isinstance(error, SystemExit):
        return "exit"
    return "error"


def _words(error: BaseException) -> str:
    try:
        return str(error).strip()
    except Exception:  # somebody's __str__
        return ""


def _text(error: BaseException, original: BaseException, sqlstate: str | None) -> str:
    if isinstance(error, SystemExit):
        return f"env.py ended the interpreter: sys.exit({error.code!r})"
    if sqlstate:
        return f"{_words(original)} (SQLSTATE {sqlstate})".strip()
    name = type(original).__name__
    text = _words(original)
    return text if type(error).__name__ == "Unusable" else f"{name}: {text}" if text else name
