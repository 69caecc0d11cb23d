"""Every setting in one table: name, default, meaning. `--help`, the README and the environment are read from it.

Standard library only, and no I/O but the one file that a `…_FILE` setting names.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from alembic_entrypoint.address import Address, NotAnAddress, parse
from alembic_entrypoint.errors import Misconfigured

PREFIX = "ALEMBIC_ENTRYPOINT_"
T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """How a value is read from text, and the words that say what is allowed."""

    read: Callable[[str], Any]
    allowed: str


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 10**9:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _one_of(*words: str) -> Reader:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(text)
        return text.lower()

    return Reader(read, "one of " + ", ".join(words))


def _target(text: str) -> str:
    if not text or text != text.strip() or " " in text or text.startswith(("+", "-")) or ":" in text or text == "base":
        raise ValueError(text)
    return text


def _scratch(text: str) -> str | Address:
    word = text.lower()
    return word if word in ("auto", "embedded", "off") else parse(text)


SECONDS = Reader(_seconds, "a number of seconds, 0 or more")
COUNT = Reader(_count, "a whole number, 0 or more")
TEXT = Reader(str, "any text")
WORDS = Reader(lambda text: tuple(text.split()), "words separated by spaces")
FOLDER = Reader(lambda text: None if text == "off" else text, "a folder, or off")
KEPT = Reader(lambda text: None if text == "all" else _at_least_one(text), "a whole number, 1 or more, or all")
TARGET = Reader(_target, "head, heads, <branch>@head or one exact revision")
SCRATCH = Reader(_scratch, "auto, embedded, off, or the URL of a server (postgresql://user:password@host:port)")


def setting(default: T, meaning: str, reader: Reader, *, shown: str | None = None, option: bool = True) -> T:
    """Describe one setting: its default, what it means to a person, and how it is read from text."""
    shown = shown if shown is not None else str(default)
    keys = {"meaning": meaning, "reader": reader, "shown": shown, "option": option}
    return dataclasses.field(default=default, metadata=keys)


@dataclass(frozen=True)
class Settings:
    """What this run was told, read and checked. Times are seconds."""

    database_url: Address | None = setting(
        None,
        "where to migrate; without it the app's own `DATABASE_URL`, else `env.py` is asked",
        TEXT,
        shown="`DATABASE_URL`, else asked of `env.py`",
        option=False,
    )
    database_url_file: str | None = setting(
        None, "the same from a file; also the app's own `DATABASE_URL_FILE`", TEXT, shown=""
    )
    config: str | None = setting(
        None, "the Alembic configuration", TEXT, shown="`$ALEMBIC_CONFIG`, `alembic.ini`, `pyproject.toml`"
    )
    section: str = setting("alembic", "the section of the ini file, as Alembic's `-n`", TEXT)
    x: tuple[str, ...] = setting((), "arguments for `env.py`, as Alembic's `-x`, separated by spaces", WORDS, shown="")
    python: str = setting(
        sys.executable,
        "the interpreter that has the app's packages, when that is another",
        TEXT,
        shown="this one",
    )
    mode: str = setting(
        "migrate",
        "what `run` does: `migrate`, `await` (wait until another has migrated) or `off` (only start the app)",
        _one_of("migrate", "await", "off"),
    )
    target: str = setting("head", "what to upgrade to: `head`, `heads`, `<branch>@head` or a revision", TARGET)
    wait_timeout: float = setting(60.0, "seconds for the database to answer", SECONDS, shown="60")
    await_timeout: float = setting(600.0, "seconds for `await head`", SECONDS, shown="600")
    lock_wait: float = setting(600.0, "seconds for another replica's migration", SECONDS, shown="600")
    ddl_lock_timeout: float = setting(
        5.0, "seconds that a migration's statement may queue for a table lock; 0 is off", SECONDS, shown="5"
    )
    ddl_retries: int = setting(10, "how often such a migration is tried again, while nothing is committed", COUNT)
    statement_timeout: float = setting(
        0.0, "seconds that a migration's statement may take; 0 is off", SECONDS, shown="0"
    )
    recover: str = setting(
        "prove",
        "what is done where only a proof can tell: `prove`, or `off` (refuse)",
        _one_of("prove", "off"),
    )
    ahead: str = setting(
        "refuse",
        "what an image does that is older than the database: `refuse`, or `run` the app with a warning",
        _one_of("refuse", "run"),
    )
    backup: str | None = setting(
        None, "a folder for `pg_dump` files, written and read back before anything changes", FOLDER, shown="off"
    )
    backup_keep: int | None = setting(None, "how many backups of this database to keep", KEPT, shown="all")
    clean: tuple[str, ...] = setting(
        ("migrations",),
        "where stale bytecode is removed: `migrations`, `off`, or folders separated by spaces",
        WORDS,
        shown="migrations",
    )
    ignore: tuple[str, ...] = setting(
        (), "tables that belong to others: `schema.name`, with `*`, separated by spaces", WORDS, shown=""
    )
    scratch: str | Address = setting(
        "auto",
        "where migrations are replayed for a proof: `auto` (a scratch database on the same server), `embedded` "
        "(an embedded PostgreSQL), the URL of a server, or `off`",
        SCRATCH,
    )
    ledger: str = setting(
        "on", "whether to remember in the database what was migrated: `on` or `off`", _one_of("on", "off")
    )
    image: str = setting("", "a label for logs and ledger: tag or commit", TEXT)
    help_url: str = setting("", "shown with every refusal: for those who ship images to strangers", TEXT)
    log_format: str = setting(
        "auto",
        "`console`, `json`, or `auto`: console on a terminal, else json",
        _one_of("auto", "console", "json"),
    )
    log_level: str = setting(
        "info", "`debug`, `info`, `warning` or `error`", _one_of("debug", "info", "warning", "error")
    )


@dataclass(frozen=True)
class Row:
    """One line of the settings' table."""

    field: str
    variable: str
    option: str | None
    default: str
    meaning: str
    reader: Reader


def _rows() -> tuple[Row, ...]:
    rows = []
    for each in dataclasses.fields(Settings):
        option = "--" + each.name.replace("_", "-") if each.metadata["option"] else None
        rows.append(
            Row(
                each.name,
                PREFIX + each.name.upper(),
                option,
                each.metadata["shown"],
                each.metadata["meaning"],
                each.metadata["reader"],
            )
        )
    return tuple(rows)


TABLE = _rows()


def read(environ: Mapping[str, str], options: Mapping[str, str] | None = None) -> Settings:
    """Read every setting; an option wins over its variable, and an empty variable counts as unset.

    Raises Misconfigured, naming the variable, the value and what is allowed.
    """
    options = options or {}
    _refuse_unknown(environ)
    values: dict[str, Any] = {}
    for row in TABLE:
        if row.field in options:
            values[row.field] = _value(row.option or row.variable, options[row.field], row.reader)
        elif text := environ.get(row.variable):
            values[row.field] = text if row.field == "database_url" else _value(row.variable, text, row.reader)
    values["database_url"] = _address(environ, values)
    return Settings(**values)


def is_off(environ: Mapping[str, str], options: Mapping[str, str]) -> bool:
    """Tell whether only the app is to be started: asked first, so that no other setting can be in the way."""
    return options.get("mode", environ.get(PREFIX + "MODE", "")).lower() == "off"


def _value(name: str, text: str, reader: Reader) -> Any:
    try:
        return reader.read(text)
    except NotAnAddress as error:
        raise Misconfigured(
            f"{name} cannot be used: {error}. It must be {reader.allowed} (its value is not shown here)."
        ) from None
    except ValueError:
        raise Misconfigured(f"{name} is {text!r}. It must be {reader.allowed}.") from None


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {row.variable for row in TABLE}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            import difflib

            nearest = difflib.get_close_matches(name, sorted(known), 1, 0.0)[0]
            raise Misconfigured(
                f"{name} is not a setting of alembic-entrypoint. A misspelt setting would silently not count. "
                f"The nearest name is {nearest}; `alembic-entrypoint run --help` lists all of them."
            )


def _address(environ: Mapping[str, str], values: Mapping[str, Any]) -> Address | None:
    """Find the URL: our own variable or file, else the app's own."""
    ours = (PREFIX + "DATABASE_URL", values.get("database_url"), values.get("database_url_file"))
    theirs = ("DATABASE_URL", environ.get("DATABASE_URL"), environ.get("DATABASE_URL_FILE"))
    for name, text, file in (ours, theirs):
        if text and file:
            raise Misconfigured(f"{name} and {name}_FILE are both set, and may differ. Unset one of them.")
        if file:
            return _parsed(f"{name}_FILE", _from_file(f"{name}_FILE", file))
        if text:
            return _parsed(name, text)
    return None


def _from_file(name: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is not UTF-8"
        raise Misconfigured(f"{name} is {path!r}, which cannot be read: {reason}.") from None


def _parsed(name: str, text: str) -> Address:
    try:
        return parse(text)
    except NotAnAddress as error:
        raise Misconfigured(
            f"{name} cannot be used: {error}. "
            "It must be postgresql://user:password@host:port/database (its value is not shown here)."
        ) from None
