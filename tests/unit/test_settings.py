"""Every setting: its name, default and reading, and what is said of one that cannot be used."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from alembic_entrypoint.address import Place
from alembic_entrypoint.errors import Misconfigured
from alembic_entrypoint.settings import PREFIX, TABLE, Settings, is_off, read

URL = "postgresql://app:s3cret@db:5433/shop"


def refused(environ: dict[str, str], options: dict[str, str] | None = None) -> str:
    with pytest.raises(Misconfigured) as caught:
        read(environ, options)
    return caught.value.message


def test_the_defaults_are_those_of_the_contract() -> None:
    assert dataclasses.asdict(read({})) == {
        "database_url": None,
        "database_url_file": None,
        "config": None,
        "section": "alembic",
        "x": (),
        "python": sys.executable,
        "mode": "migrate",
        "target": "head",
        "wait_timeout": 60,
        "await_timeout": 600,
        "lock_wait": 600,
        "ddl_lock_timeout": 5,
        "ddl_retries": 10,
        "statement_timeout": 0,
        "recover": "prove",
        "ahead": "refuse",
        "backup": None,
        "backup_keep": None,
        "clean": ("migrations",),
        "ignore": (),
        "scratch": "auto",
        "ledger": "on",
        "image": "",
        "help_url": "",
        "log_format": "auto",
        "log_level": "info",
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("CONFIG", "conf/alembic.ini", "conf/alembic.ini"),
        ("SECTION", "other", "other"),
        ("X", "tenant=a  data", ("tenant=a", "data")),
        ("PYTHON", "/app/bin/python", "/app/bin/python"),
        ("MODE", "OFF", "off"),
        ("BACKUP", "/backups", "/backups"),
        ("BACKUP", "off", None),
        ("BACKUP_KEEP", "1", 1),
        ("BACKUP_KEEP", "all", None),
        ("TARGET", "heads", "heads"),
        ("TARGET", "billing@head", "billing@head"),
        ("TARGET", "1.2.a_b", "1.2.a_b"),
        ("WAIT_TIMEOUT", "0", 0),
        ("WAIT_TIMEOUT", "2.5", 2.5),
        ("LOCK_WAIT", "1e3", 1000),
        ("DDL_LOCK_TIMEOUT", "0.25", 0.25),
        ("DDL_RETRIES", "0", 0),
        ("STATEMENT_TIMEOUT", "30", 30),
        ("CLEAN", "off", ("off",)),
        ("IGNORE", "other.* public.legacy", ("other.*", "public.legacy")),
        ("IMAGE", "v1.2 (abc)", "v1.2 (abc)"),
        ("HELP_URL", "https://example.com/help", "https://example.com/help"),
        ("LOG_FORMAT", "Console", "console"),
        ("LOG_LEVEL", "debug", "debug"),
    ],
)
def test_a_setting_is_read_from_its_variable_and_from_its_option(name: str, text: str, value: object) -> None:
    field = name.lower()
    assert getattr(read({PREFIX + name: text}), field) == value
    assert getattr(read({}, {field: text}), field) == value


def test_every_setting_but_the_urls_has_an_option_named_like_it() -> None:
    for row in TABLE:
        expected = None if row.field == "database_url" else "--" + row.field.replace("_", "-")
        assert (row.variable, row.option) == (PREFIX + row.field.upper(), expected)


def test_every_setting_is_described() -> None:
    assert [row.field for row in TABLE] == [each.name for each in dataclasses.fields(Settings)]
    assert all(row.meaning for row in TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.field)
def test_an_empty_variable_counts_as_unset(row: Any) -> None:
    assert read({row.variable: ""}) == read({})


def test_an_option_wins_over_its_variable() -> None:
    assert read({PREFIX + "TARGET": "a"}, {"target": "b"}).target == "b"


def test_an_option_wins_over_a_variable_that_cannot_be_used() -> None:
    assert read({PREFIX + "WAIT_TIMEOUT": "soon"}, {"wait_timeout": "3"}).wait_timeout == 3


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("WAIT_TIMEOUT", "5s", "a number of seconds, 0 or more"),
        ("WAIT_TIMEOUT", "-1", "a number of seconds, 0 or more"),
        ("LOCK_WAIT", "inf", "a number of seconds, 0 or more"),
        ("LOCK_WAIT", "nan", "a number of seconds, 0 or more"),
        ("DDL_RETRIES", "1.5", "a whole number, 0 or more"),
        ("DDL_RETRIES", "-1", "a whole number, 0 or more"),
        ("BACKUP_KEEP", "0", "a whole number, 1 or more, or all"),
        ("MODE", "on", "one of migrate, await, off"),
        ("LOG_LEVEL", "loud", "one of debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "one of auto, console, json"),
        ("TARGET", "base", "head, heads, <branch>@head or one exact revision"),
        ("TARGET", "+1", "head, heads, <branch>@head or one exact revision"),
        ("TARGET", "-1", "head, heads, <branch>@head or one exact revision"),
        ("TARGET", "a:b", "head, heads, <branch>@head or one exact revision"),
        ("TARGET", "a b", "head, heads, <branch>@head or one exact revision"),
        ("TARGET", " a", "head, heads, <branch>@head or one exact revision"),
    ],
)
def test_a_wrong_value_is_refused_with_name_value_and_what_is_allowed(name: str, text: str, allowed: str) -> None:
    assert refused({PREFIX + name: text}) == f"{PREFIX}{name} is {text!r}. It must be {allowed}."
    option = "--" + name.lower().replace("_", "-")
    assert refused({}, {name.lower(): text}) == f"{option} is {text!r}. It must be {allowed}."


def test_an_empty_option_is_a_wrong_value() -> None:
    assert refused({}, {"target": ""}).startswith("--target is ''.")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("LOCKWAIT", "LOCK_WAIT"), ("TARGETS", "TARGET"), ("DATABASE_URI", "DATABASE_URL"), ("", "X")],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    assert refused({PREFIX + name: ""}) == (
        f"{PREFIX}{name} is not a setting of alembic-entrypoint. A misspelt setting would silently not count. "
        f"The nearest name is {PREFIX}{nearest}; `alembic-entrypoint run --help` lists all of them."
    )


def test_variables_of_others_are_nobodys_business() -> None:
    assert read({"ALEMBIC_ENTRYPOINTS": "1", "ALEMBIC_CONFIG": "x", "alembic_entrypoint_target": "y"}) == read({})


# --- the URL -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DATABASE_URL", PREFIX + "DATABASE_URL"])
def test_the_url_is_ours_or_the_apps(name: str) -> None:
    address = read({name: URL}).database_url
    assert address is not None
    assert (address.place, address.user, address.password) == (Place(("db",), ("5433",), "shop"), "app", "s3cret")


def test_our_url_wins_over_the_apps() -> None:
    address = read({"DATABASE_URL": URL, PREFIX + "DATABASE_URL": "postgres://other/ours"}).database_url
    assert address is not None
    assert address.place.dbname == "ours"


@pytest.mark.parametrize("name", ["DATABASE_URL_FILE", PREFIX + "DATABASE_URL_FILE"])
def test_the_url_may_be_in_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"  {URL}\n")
    address = read({name: str(tmp_path / "url")}).database_url
    assert address is not None
    assert address.password == "s3cret"


def test_our_file_wins_over_the_apps_url(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgres://other/ours")
    address = read({"DATABASE_URL": URL}, {"database_url_file": str(tmp_path / "url")}).database_url
    assert address is not None
    assert address.place.dbname == "ours"


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_a_url_and_a_file_with_one_are_refused(prefix: str) -> None:
    name = prefix + "DATABASE_URL"
    assert refused({name: URL, name + "_FILE": "/run/secrets/url"}) == (
        f"{name} and {name}_FILE are both set, and may differ. Unset one of them."
    )


def test_an_empty_variable_beside_a_file_is_unset(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(URL)
    assert read({"DATABASE_URL": "", "DATABASE_URL_FILE": str(tmp_path / "url")}).database_url is not None


@pytest.mark.parametrize("name", ["DATABASE_URL", PREFIX + "DATABASE_URL"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("app:s3cret@db/shop", "it is not a URL"),
        ("mysql+pymysql://app:s3cret@db/shop", "it is a URL of mysql+pymysql, not of PostgreSQL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_not_shown(name: str, text: str, why: str) -> None:
    assert refused({name: text}) == (
        f"{name} cannot be used: {why}. "
        "It must be postgresql://user:password@host:port/database (its value is not shown here)."
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, binary = tmp_path / "missing", tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert refused({"DATABASE_URL_FILE": str(missing)}) == (
        f"DATABASE_URL_FILE is {str(missing)!r}, which cannot be read: No such file or directory."
    )
    assert refused({"DATABASE_URL_FILE": str(binary)}).endswith("which cannot be read: it is not UTF-8.")


def test_a_file_without_a_url_is_refused_without_its_content(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("s3cret")
    message = refused({"DATABASE_URL_FILE": str(tmp_path / "url")})
    assert message.startswith("DATABASE_URL_FILE cannot be used: it is not a URL.")
    assert "s3cret" not in message


# --- off -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "options", "off"),
    [
        ({}, {}, False),
        ({PREFIX + "MODE": "off"}, {}, True),
        ({PREFIX + "MODE": "OFF"}, {}, True),
        ({PREFIX + "MODE": "migrate"}, {"mode": "off"}, True),
        ({PREFIX + "MODE": "off"}, {"mode": "migrate"}, False),
        ({PREFIX + "MODE": ""}, {}, False),
    ],
)
def test_off_is_known_before_anything_else_is_read(environ: dict[str, str], options: dict[str, str], off: bool) -> None:
    assert is_off({**environ, PREFIX + "NONSENSE": "1"}, options) == off


def test_scratch_is_a_word_or_the_url_of_a_server() -> None:
    assert read({PREFIX + "SCRATCH": "Embedded"}).scratch == "embedded"
    scratch = read({PREFIX + "SCRATCH": URL}).scratch
    assert scratch.place == Place(("db",), ("5433",), "shop")  # type: ignore[union-attr]


def test_a_scratch_url_that_cannot_be_used_is_not_shown() -> None:
    message = refused({PREFIX + "SCRATCH": "mysql://app:s3cret@db/shop"})
    assert "ALEMBIC_ENTRYPOINT_SCRATCH" in message
    assert "s3cret" not in message
