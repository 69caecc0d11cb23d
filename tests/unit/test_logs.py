"""Log events: one a line, keys for machines, words for people, and no secret in either."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from alembic_entrypoint import logs
from alembic_entrypoint.address import parse


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_secrets", logs._Secrets())
    monkeypatch.setattr(logs._Output, "logger", None)
    yield
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO, log_format: str = "auto", level: str = "info") -> io.StringIO:
    logs.configure(log_format, level, stream)
    return stream


def test_an_event_is_one_json_object_on_one_line() -> None:
    stream = written(io.StringIO())
    logs.log("schema.decided", state="LOST", recorded=["a", "b"], message="one\ntwo", nothing=None)
    assert stream.getvalue().count("\n") == 1
    event = json.loads(stream.getvalue())
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "schema.decided",
        "level": "info",
        "state": "LOST",
        "recorded": ["a", "b"],
        "message": "one\ntwo",
    }


def test_letters_of_every_language_stay_readable() -> None:
    stream = written(io.StringIO())
    logs.log("worker.output", line="größe ✓")
    assert "größe ✓" in stream.getvalue()


def test_on_a_terminal_a_message_stands_below_its_event_as_it_was_written() -> None:
    stream = written(Terminal())
    logs.log("schema.refused", level="error", state="LOST", message="LOST: it is.\nDo this.")
    first, *rest = stream.getvalue().splitlines()
    assert "schema.refused" in first
    assert "\x1b[" in first
    assert rest == ["LOST: it is.", "Do this."]


def test_an_event_without_a_message_is_one_line_on_a_terminal() -> None:
    stream = written(Terminal())
    logs.log("database.ready", elapsed=0.1)
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(("stream", "log_format"), [(Terminal(), "json"), (io.StringIO(), "auto")])
def test_json_is_written_where_it_is_wanted_or_nobody_looks(stream: io.StringIO, log_format: str) -> None:
    written(stream, log_format)
    logs.log("database.ready")
    assert json.loads(stream.getvalue())["event"] == "database.ready"


def test_the_console_form_has_no_colours_where_there_is_no_terminal() -> None:
    stream = written(io.StringIO(), "console")
    logs.log("database.ready", elapsed=0.1)
    assert "database.ready" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize(("level", "names"), [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")])
def test_the_level_decides_what_is_written(level: str, names: str) -> None:
    stream = written(io.StringIO(), level=level)
    for each in ("debug", "info", "warning", "error"):
        logs.log(each[0], level=each)
    assert "".join(json.loads(line)["event"] for line in stream.getvalue().splitlines()) == names


def test_a_stream_that_cannot_be_written_keeps_nobody_from_going_on() -> None:
    stream = written(io.StringIO())
    stream.close()
    logs.log("database.ready")


def test_no_stderr_at_all_keeps_nobody_from_going_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    logs.configure()
    logs.log("database.ready")
    assert capsys.readouterr().out == ""


def test_what_is_logged_before_anything_was_configured_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.log("run.ended")
    captured = capsys.readouterr()
    assert (captured.out, json.loads(captured.err)["event"]) == ("", "run.ended")


# --- secrets -------------------------------------------------------------------------------------------------------

PASSWORDS = [
    "s3cret",
    "p@ss:w/rd?#%",
    'it\'s "quoted"',
    "größe ✓ 9",
    "100%",
    "back\\slash",
    "plus+plus",
    "-dash-",
    "pw1",
    "ö\"'ö!",
    "ö\\ö!",
]


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("password", PASSWORDS)
def test_no_spelling_of_a_password_is_written(password: str, log_format: str) -> None:
    from urllib.parse import quote, quote_plus

    address = parse(f"postgresql://app:{quote(password, safe='')}@db:5432/shop")
    logs.hide(address.spellings_of_password(), names=("app", "shop", "db"))
    stream = written(io.StringIO(), log_format)
    spelled = {
        password,
        quote(password, safe=""),
        quote_plus(password),
        repr(password)[1:-1],
        password.replace("%", "%%"),
    }
    if len(password) > 3:
        for each in spelled:
            logs.log("worker.output", line=f"connecting with {each} now", url=f"x://app:{each}@db/", more=[{"k": each}])
    logs.log("worker.output", line=f"postgresql://app:{quote(password, safe='')}@db:5432/shop")
    logs.log("worker.output", line=f"host=db password={password} user=app" if " " not in password else "")
    text = stream.getvalue()
    spelled |= {json.dumps(each, ensure_ascii=ascii)[1:-1] for each in spelled for ascii in (True, False)}
    assert [each for each in spelled if each in text] == []
    assert "***" in text
    assert "shop" in text


def test_a_password_that_is_also_a_name_is_hidden_where_it_is_the_password() -> None:
    logs.hide(["postgres"], names=("postgres", "app", "db"))
    assert logs.redact("postgres at db as postgres") == "postgres at db as postgres"
    assert logs.redact("postgresql://postgres:postgres@db/postgres") == "postgresql://postgres:***@db/postgres"
    assert logs.redact("password='postgres' user=postgres") == "password='***' user=postgres"


def test_a_password_is_hidden_as_a_word_and_not_within_other_words() -> None:
    logs.hide(["pass"])
    assert logs.redact("pass (pass) passed bypass") == "*** (***) passed bypass"


def test_of_two_passwords_the_longer_is_hidden_first() -> None:
    logs.hide(["secret", "secret@more", ""])
    assert logs.redact("secret@more secret") == "*** ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mysql://app:s3cret@db/shop", "mysql://app:***@db/shop"),
        ("postgresql://app:p@ss:w/rd@db,db2/shop?x=1", "postgresql://app:***@db,db2/shop?x=1"),
        ("redis://:s3cret@cache and http://a:b@c", "redis://:***@cache and http://a:***@c"),
        ('{"url": "x://u:p\\"q@h/d", "mail": "a@b"}', '{"url": "x://u:***@h/d", "mail": "a@b"}'),
        ("CREATE ROLE app PASSWORD 's3cret' LOGIN", "CREATE ROLE app PASSWORD '***' LOGIN"),
        ("host=db password=s3cret user=app", "host=db password=*** user=app"),
        ("host=db password = 's3 cret' user=app", "host=db password = '***' user=app"),
        ("?user=app&password=s3cret&x=1", "?user=app&password=***&x=1"),
        ('password authentication failed for user "app"', 'password authentication failed for user "app"'),
        ("see https://example.com:8080/a@b", "see https://example.com:***@b"),
        ("http://localhost:8000/ is up", "http://localhost:8000/ is up"),
    ],
)
def test_what_stands_where_a_password_stands_is_hidden_though_nobody_named_it(text: str, shown: str) -> None:
    assert logs.redact(text) == shown
