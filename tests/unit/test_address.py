"""URLs in every form that people write: what is read of them, and that writing and reading gives the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alembic_entrypoint.address import LIBPQ_PARAMETERS, TLS_PARAMETERS, Address, NotAnAddress, Place, parse, place_of

PLAIN = {"host": "db", "port": "5433", "dbname": "app", "user": "me", "password": "pw"}

FORMS: dict[str, dict[str, str]] = {
    # schemes and drivers
    "postgresql://me:pw@db:5433/app": PLAIN,
    "postgres://me:pw@db:5433/app": PLAIN,
    "POSTGRESQL://me:pw@db:5433/app": PLAIN,
    "postgresql+psycopg://me:pw@db:5433/app": PLAIN,
    "postgresql+asyncpg://me:pw@db:5433/app": PLAIN,
    "postgresql+any_driver2://me:pw@db:5433/app": PLAIN,
    "  postgresql://me:pw@db:5433/app\n": PLAIN,
    # what may be left out
    "postgresql://": {},
    "postgresql:///app": {"dbname": "app"},
    "postgresql://db": {"host": "db"},
    "postgresql://db/": {"host": "db"},
    "postgresql://db:5433": {"host": "db", "port": "5433"},
    "postgresql://db:/app": {"host": "db", "dbname": "app"},
    "postgresql://me@db/app": {"user": "me", "host": "db", "dbname": "app"},
    "postgresql://me:@db/app": {"user": "me", "password": "", "host": "db", "dbname": "app"},
    "postgresql://:pw@db/app": {"password": "pw", "host": "db", "dbname": "app"},
    "postgresql://me@/app": {"user": "me", "dbname": "app"},
    "postgresql://@db/app": {"host": "db", "dbname": "app"},
    "postgresql://:5433/app": {"port": "5433", "dbname": "app"},
    "postgresql://db?dbname=app": {"host": "db", "dbname": "app"},
    "postgresql://db/?user=me": {"host": "db", "user": "me"},
    # several hosts
    "postgresql://a,b/app": {"host": "a,b", "dbname": "app"},
    "postgresql://a:1,b:2/app": {"host": "a,b", "port": "1,2", "dbname": "app"},
    "postgresql://a,b:2/app": {"host": "a,b", "port": "5432,2", "dbname": "app"},
    "postgresql://me:pw@a:1,b/app": {"user": "me", "password": "pw", "host": "a,b", "port": "1,5432", "dbname": "app"},
    "postgresql://[::1]:1,[2001:db8::2]/app": {"host": "::1,2001:db8::2", "port": "1,5432", "dbname": "app"},
    "postgresql:///app?host=a:1&host=b:2": {"host": "a,b", "port": "1,2", "dbname": "app"},
    "postgresql:///app?host=a:1&host=b": {"host": "a,b", "port": "1,5432", "dbname": "app"},
    "postgresql:///app?host=a:1": {"host": "a", "port": "1", "dbname": "app"},
    "postgresql:///app?host=a,b&port=1,2": {"host": "a,b", "port": "1,2", "dbname": "app"},
    # addresses and sockets
    "postgresql://[::1]/app": {"host": "::1", "dbname": "app"},
    "postgresql://[::1]:5433/app": {"host": "::1", "port": "5433", "dbname": "app"},
    "postgresql://10.0.0.1/app": {"host": "10.0.0.1", "dbname": "app"},
    "postgresql://%2Fvar%2Frun/app": {"host": "/var/run", "dbname": "app"},
    "postgresql:///app?host=/var/run": {"host": "/var/run", "dbname": "app"},
    "postgresql://me@/app?host=/cloudsql/a:b:c": {"user": "me", "host": "/cloudsql/a:b:c", "dbname": "app"},
    "postgresql://me:pw@/app?host=/var/run&port=5433": {**PLAIN, "host": "/var/run"},
    # queries
    "postgresql://db/app?sslmode=require": {"host": "db", "dbname": "app", "sslmode": "require"},
    "postgresql://db/app?ssl=require": {"host": "db", "dbname": "app", "sslmode": "require"},
    "postgresql://db/app?ssl=true": {"host": "db", "dbname": "app", "sslmode": "require"},
    "postgresql://db/app?ssl=False": {"host": "db", "dbname": "app", "sslmode": "disable"},
    "postgresql://db/app?ssl=": {"host": "db", "dbname": "app"},
    "postgresql://db/app?": {"host": "db", "dbname": "app"},
    "postgresql://db/app?connect_timeout=3&": {"host": "db", "dbname": "app", "connect_timeout": "3"},
    "postgresql://db/app?prepared_statement_cache_size=0&async_fallback=true": {"host": "db", "dbname": "app"},
    "postgresql://db/app?options=-csearch_path%3Da%2Cb": {
        "host": "db",
        "dbname": "app",
        "options": "-csearch_path=a,b",
    },
    "postgresql://db/app?options=-c%20a=1+b": {"host": "db", "dbname": "app", "options": "-c a=1+b"},
    "postgresql://db/x?database=app": {"host": "db", "dbname": "app"},
    "postgresql://db/app?user=me@server&password=p@w": {
        "host": "db",
        "dbname": "app",
        "user": "me@server",
        "password": "p@w",
    },
    # users and passwords
    "postgresql://me%40server:p%40w@db/app": {"user": "me@server", "password": "p@w", "host": "db", "dbname": "app"},
    "postgresql://me@server@db/app": {"user": "me@server", "host": "db", "dbname": "app"},
    "postgresql://me@server:pw@db/app": {"user": "me@server", "password": "pw", "host": "db", "dbname": "app"},
    "postgresql://me:p@w@db/app": {"user": "me", "password": "p@w", "host": "db", "dbname": "app"},
    "postgresql://me:12@34@db/app": {"user": "me", "password": "12@34", "host": "db", "dbname": "app"},
    "postgresql://me:p/w@db/app": {"user": "me", "password": "p/w", "host": "db", "dbname": "app"},
    "postgresql://me:/w@db/app": {"user": "me", "password": "/w", "host": "db", "dbname": "app"},
    "postgresql://me:p:w@db/app": {"user": "me", "password": "p:w", "host": "db", "dbname": "app"},
    "postgresql://me:p?w@db/app": {"user": "me", "password": "p?w", "host": "db", "dbname": "app"},
    "postgresql://me:p@?w@db/app?sslmode=allow": {
        "user": "me",
        "password": "p@?w",
        "host": "db",
        "dbname": "app",
        "sslmode": "allow",
    },
    "postgresql://me:p#w@db/app": {"user": "me", "password": "p#w", "host": "db", "dbname": "app"},
    "postgresql://me:p%w@db/app": {"user": "me", "password": "p%w", "host": "db", "dbname": "app"},
    "postgresql://me:p%25w@db/app": {"user": "me", "password": "p%w", "host": "db", "dbname": "app"},
    "postgresql://me:p'w\"@db/app": {"user": "me", "password": "p'w\"", "host": "db", "dbname": "app"},
    "postgresql://me:p w@db/app": {"user": "me", "password": "p w", "host": "db", "dbname": "app"},
    "postgresql://me:p+w@db/app": {"user": "me", "password": "p+w", "host": "db", "dbname": "app"},
    "postgresql://me:pä密@db/app": {"user": "me", "password": "pä密", "host": "db", "dbname": "app"},
    "postgresql://me:p%C3%A4@db/app": {"user": "me", "password": "pä", "host": "db", "dbname": "app"},
    "postgresql://me:pw@db/my%20app%3F": {"user": "me", "password": "pw", "host": "db", "dbname": "my app?"},
}


@pytest.mark.parametrize("text", FORMS)
def test_a_url_is_read_as_libpqs_parameters(text: str) -> None:
    assert parse(text).parameters == FORMS[text]


@pytest.mark.parametrize("text", [text for text in FORMS if FORMS[text].get("dbname")])
def test_what_is_written_is_read_back(text: str) -> None:
    address = parse(text)
    again = parse(address.url())
    assert again.place == address.place
    assert {**place_parameters(again), **again.parameters} == {**place_parameters(again), **address.parameters}


def place_parameters(address: Address) -> dict[str, str]:
    """Give host and port with their defaults, which writing fills in."""
    return {"host": ",".join(address.place.hosts), "port": ",".join(address.place.ports)}


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("postgresql://db/app", None),
        ("postgresql+psycopg://db/app", "psycopg"),
        ("postgresql+psycopg_async://db/app", "psycopg_async"),
        ("postgresql+://db/app", None),
    ],
)
def test_the_driver_is_kept(text: str, driver: str | None) -> None:
    assert parse(text).driver == driver


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not a URL"),
        ("secret", "it is not a URL"),
        ("postgresql:/db/secret", "it is not a URL"),
        ("'postgresql://me:secret@db/app'", "it is not a URL"),
        ("jdbc:postgresql://db/secret", "it is not a URL"),
        ("host=db password=secret", "it is not a URL"),
        ("mysql+pymysql://me:secret@db/app", "it is a URL of mysql+pymysql, not of PostgreSQL"),
        ("sqlite:///secret.db", "it is a URL of sqlite, not of PostgreSQL"),
        ("driver://user:secret@localhost/dbname", "it is a URL of driver, not of PostgreSQL"),
        ("postgresql://me:secret@db:port/app", "it does not read as user:password@host:port/database"),
        ("postgresql://me:secret@db/app/more", "it does not read as user:password@host:port/database"),
        ("postgresql://me:secret@[::1/app", "it does not read as user:password@host:port/database"),
    ],
)
def test_what_is_no_address_is_refused_without_being_repeated(text: str, reason: str) -> None:
    with pytest.raises(NotAnAddress) as refused:
        parse(text)
    assert str(refused.value).startswith(reason)
    assert "secret" not in str(refused.value)


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True).filter(lambda name: name.lower() == name)
PORTS = st.integers(1, 65535).map(str)
PLACES = st.one_of(
    st.fixed_dictionaries({"host": NAMES, "port": PORTS}),
    st.fixed_dictionaries({"host": st.sampled_from(["::1", "2001:db8::1"]), "port": PORTS}),
    st.fixed_dictionaries({"host": WORDS.filter(lambda w: "," not in w).map(lambda w: "/" + w), "port": PORTS}),
    st.lists(st.tuples(NAMES, PORTS), min_size=2, max_size=4).map(
        lambda pairs: {"host": ",".join(p[0] for p in pairs), "port": ",".join(p[1] for p in pairs)}
    ),
)
REST = st.dictionaries(
    st.sampled_from(sorted(LIBPQ_PARAMETERS - {"host", "hostaddr", "port", "dbname", "user", "password"})), WORDS
)


@given(place=PLACES, user=WORDS, password=WORDS, dbname=WORDS, rest=REST)
def test_whatever_is_written_is_read_back(
    place: dict[str, str], user: str, password: str, dbname: str, rest: dict[str, str]
) -> None:
    parameters = {**place, "user": user, "password": password, "dbname": dbname, **rest}
    assert parse(Address(parameters).url()).parameters == parameters


@given(password=st.text(st.characters(exclude_characters="%", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"])))
def test_whatever_is_written_raw_is_read_as_it_stands(password: str) -> None:
    address = parse(f"postgresql://me:{password}@db:5432/app")
    # What reads as hosts, database and names with values is that: `me:x@db?a=` says more than a password could.
    if "@" not in password or "=" not in password:
        assert address.password == password
        assert address.place == Place(("db",), ("5432",), "app")


@pytest.mark.parametrize(
    ("parameters", "environ", "place"),
    [
        ({}, {}, Place(("localhost",), ("5432",), "")),
        ({"user": "me"}, {}, Place(("localhost",), ("5432",), "me")),
        ({"host": "DB.Example", "dbname": "App"}, {}, Place(("db.example",), ("5432",), "App")),
        ({"host": "/Tmp", "dbname": "a"}, {}, Place(("/Tmp",), ("5432",), "a")),
        ({"host": "a,,b", "port": "1,,3", "dbname": "a"}, {}, Place(("a", "localhost", "b"), ("1", "5432", "3"), "a")),
        ({"hostaddr": "10.0.0.1"}, {"PGDATABASE": "x"}, Place(("10.0.0.1",), ("5432",), "x")),
        ({}, {"PGHOST": "db", "PGPORT": "1", "PGUSER": "me"}, Place(("db",), ("1",), "me")),
        (PLAIN, {"PGHOST": "x", "PGPORT": "1", "PGDATABASE": "y"}, Place(("db",), ("5433",), "app")),
    ],
)
def test_a_place_has_libpqs_defaults(parameters: dict[str, str], environ: dict[str, str], place: Place) -> None:
    assert place_of(parameters, environ) == place


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@db:5433/app", "app at db:5433 as me"),
        ("postgresql://db/app", "app at db:5432"),
        ("postgresql://a,b/app", "app at a:5432,b:5432"),
        ("postgresql://a:1,b:2/app", "app at a:1,b:2"),
    ],
)
def test_an_address_is_shown_without_its_password(text: str, shown: str) -> None:
    address = parse(text)
    assert str(address) == shown
    assert "pw" not in repr(address)


@given(password=WORDS)
def test_every_spelling_of_a_password_is_known(password: str) -> None:
    address = Address({"password": password})
    assert password in address.spellings_of_password()
    written = address.url().partition("://:")[2].partition("@")[0]
    assert written in address.spellings_of_password()


def test_no_password_has_no_spellings() -> None:
    assert Address({}).spellings_of_password() == frozenset()
    assert parse("postgresql://me:@db/app").spellings_of_password() == frozenset()


def test_a_password_is_known_as_it_was_spelled() -> None:
    assert {"p%40w", "p@w", "p%%40w"} <= parse("postgresql://me:p%40w@db/app").spellings_of_password()
    assert "p%4aw" in parse("postgresql://me:p%4aw@db/app").spellings_of_password()


def test_tls_parameters_are_libpqs() -> None:
    assert TLS_PARAMETERS < LIBPQ_PARAMETERS
    assert {"sslmode", "sslrootcert", "gssencmode"} <= TLS_PARAMETERS
    assert "service" not in TLS_PARAMETERS


class Token:
    """What a program gives to log in with."""

    def __init__(self) -> None:
        self.known = {"user": "lent", "password": "token"}
        self.refusal = ""

    def renew(self) -> bool:
        return False


def test_what_is_lent_to_log_in_with_gives_way_to_what_the_address_names() -> None:
    address = Address({"host": "db", "user": "me"}, credentials=Token())
    assert address.login == {"host": "db", "user": "me", "password": "token"}
    assert Address({"host": "db"}).login == {"host": "db"}
    assert "token" not in repr(address)
