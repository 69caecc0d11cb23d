"""Log events on stderr: constant dotted names, everything that varies in keys, no secret in any of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import structlog

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


#: Passwords that nobody told us of: in a URL that was given as something else, or that env.py prints, or in its SQL.
_IN_ITS_PLACE = re.compile(
    r"""(://[^\s:@/"']*:)(?:\\.|[^\s"\\])+(?=@)  |  (password\s*=?\s*')[^']+(?=')  |  (password=)[^\s"'\\&,;)]+""",
    re.IGNORECASE | re.VERBOSE,
)


class _Secrets:
    """The passwords of this run, and the expression that finds them in a line."""

    def __init__(self) -> None:
        self._words: set[str] = set()
        self._names: set[str] = set()
        self.pattern: re.Pattern[str] | None = None

    def add(self, words: Iterable[str], names: Iterable[str]) -> None:
        self._words |= {word for word in words if word}
        self._names |= {name for name in names if name}
        longest_first = sorted(self._words, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(self._expression, longest_first))) if longest_first else None

    def _expression(self, word: str) -> str:
        # A password that is also the user's or the database's name is no secret as a word by itself, and
        # hiding it everywhere would make the log unreadable; it is hidden where it stands as a password.
        if word in self._names or len(word) < 4:
            return rf"(?<=:){re.escape(word)}(?=@)|(?<=password=){re.escape(word)}|(?<=password=['\"]){re.escape(word)}"
        left = r"(?<![A-Za-z0-9_])" if word[0].isalnum() else ""
        right = r"(?![A-Za-z0-9_])" if word[-1].isalnum() else ""
        return left + re.escape(word) + right


_secrets = _Secrets()


def hide(words: Iterable[str], names: Iterable[str] = ()) -> None:
    """Keep these words out of every line from now on; `names` are words that are printed anyway."""
    words = set(words)
    words |= {repr(word)[1:-1] for word in words}
    # Twice: an app that logs JSON prints a line that we log as JSON.
    for _ in range(2):
        words |= {form for word in words for form in _in_json(word)}
    _secrets.add(words, names)


def redact(text: str) -> str:
    """Replace every hidden word in a text, and whatever stands where a password stands."""
    if _secrets.pattern:
        text = _secrets.pattern.sub("***", text)
    return _IN_ITS_PLACE.sub(lambda found: (found[1] or found[2] or found[3]) + "***", text)


def _in_json(word: str) -> Iterable[str]:
    import json

    return (json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1])


def configure(log_format: str = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Choose how events are written: `console`, `json`, or by whether the stream is a terminal."""
    stream = stream or sys.stderr
    is_terminal = stream is not None and stream.isatty()
    console = log_format == "console" or (log_format == "auto" and is_terminal)
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console)
    structlog.configure(
        processors=[structlog.processors.add_log_level, stamp, _renderer(console, is_terminal)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: _Lines(stream),
        cache_logger_on_first_use=False,
    )
    _Output.logger = structlog.get_logger().bind()


class _Output:
    """What events are written to, as it was configured last: a thousand migrations are two thousand events."""

    logger: Any = None


class _Lines:
    """Lines on a stream. One that is closed, or that nobody reads, is no reason to keep the app from starting."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        with suppress(OSError, ValueError):
            # With no stream at all it would go to stdout, which is not ours.
            if self._stream is not None:
                print(line, file=self._stream, flush=True)

    debug = info = warning = error = write


def _renderer(console: bool, is_terminal: bool) -> Any:
    inner: Any
    if console:
        inner = _console(structlog.dev.ConsoleRenderer(colors=is_terminal))
    else:
        inner = structlog.processors.JSONRenderer(ensure_ascii=False, default=str)

    def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        return redact(str(inner(logger, method, event)))

    return render


def _console(inner: Any) -> Any:
    """On a terminal a message for a person stands below its event, as it was written."""

    def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        message = event.pop("message", None)
        line = str(inner(logger, method, event))
        return f"{line}\n{message}" if message else line

    return render


def log(event: str, *, level: str = "info", **keys: Any) -> None:
    """Write one event; keys that are None are left out."""
    if _Output.logger is None:
        configure()
    getattr(_Output.logger, level)(event, **{name: key for name, key in keys.items() if key is not None})
