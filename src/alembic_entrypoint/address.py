"""Where a database is: URLs in every form that people write, as libpq's parameters. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, quote, quote_plus, unquote

SCHEMES = ("postgres", "postgresql")

# libpq's own parameter keywords (PostgreSQL documentation, "Parameter Key Words"); anything else in a
# URL's query belongs to a driver, such as asyncpg's prepared_statement_cache_size.
LIBPQ_PARAMETERS = frozenset(
    [
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "dbname",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "gsslib",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "options",
        "passfile",
        "password",
        "port",
        "replication",
        "require_auth",
        "requirepeer",
        "scram_client_key",
        "scram_server_key",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcertmode",
        "sslcompression",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslkeylogfile",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "sslsni",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    ]
)
TLS_PARAMETERS = frozenset(name for name in LIBPQ_PARAMETERS if name.startswith("ssl") or name == "gssencmode")

_HOST = r"(?:\[[^\]]*\]|[^][:/?@,]*)(?::\d*)?"
# Names and values only: behind an `@` inside of a password there may be a `?`, too.
_QUERY = r"(?:[\w.]+=[^&]*(?:&[\w.]+=[^&]*)*)?&?"
_AFTER_USER = re.compile(rf"(?P<hosts>{_HOST}(?:,{_HOST})*)(?:/(?P<dbname>[^/?@]*))?(?:\?(?P<query>{_QUERY}))?\Z")


class NotAnAddress(ValueError):
    """The text is no URL of a PostgreSQL database. The message never repeats the text, which may hold a password."""


@dataclass(frozen=True)
class Place:
    """What a connection is for, whoever opens it: hosts, ports and the name of the database."""

    hosts: tuple[str, ...]
    ports: tuple[str, ...]
    dbname: str

    def __str__(self) -> str:
        ports = self.ports * len(self.hosts) if len(self.ports) == 1 else self.ports
        hosts = ",".join(f"{host}:{port}" for host, port in zip(self.hosts, ports, strict=False))
        return f"{self.dbname} at {hosts}"


class Credentials(Protocol):
    """What logs in where an address names no password: a token, perhaps, that is good for a while or only once."""

    #: libpq's parameters, as they were given last; empty where nobody had to ask for them yet
    known: Mapping[str, str]
    #: why none were given
    refusal: str

    def renew(self) -> bool:
        """Ask for others, and tell whether there are."""


@dataclass(frozen=True)
class Address:
    """A database and the way to log in: libpq's parameters, and the driver that the URL named."""

    parameters: Mapping[str, str] = field(repr=False)
    driver: str | None = None
    spelled_password: str | None = field(default=None, repr=False)
    credentials: Credentials | None = field(default=None, repr=False, compare=False)

    @property
    def place(self) -> Place:
        """What is connected to, with libpq's defaults filled in."""
        return place_of(self.parameters)

    @property
    def lent(self) -> Mapping[str, str]:
        """What others gave to log in with, since the address did not name it."""
        return self.credentials.known if self.credentials else {}

    @property
    def login(self) -> Mapping[str, str]:
        """Everything to connect with."""
        return {**self.lent, **self.parameters}

    @property
    def user(self) -> str | None:
        """The role that logs in; None is the operating system's user."""
        return self.parameters.get("user")

    @property
    def password(self) -> str | None:
        """The password in clear."""
        return self.parameters.get("password")

    def __str__(self) -> str:
        return f"{self.place} as {self.user}" if self.user else str(self.place)

    def url(self) -> str:
        """Write it as a URL without a driver, everything percent-encoded, password included."""
        user = quote(self.user or "", safe="")
        if self.password is not None:
            user += ":" + quote(self.password, safe="")
        place = self.place
        extra = {k: v for k, v in self.parameters.items() if k not in ("user", "password", "dbname")}
        if any(host.startswith("/") for host in place.hosts) or len(place.hosts) > 1:
            hosts = ""
        else:
            host = place.hosts[0]
            hosts = (f"[{host}]" if ":" in host else quote(host, safe="")) + ":" + place.ports[0]
            extra.pop("host", None)
            extra.pop("port", None)
        query = "&".join(f"{k}={quote(v, safe='')}" for k, v in extra.items())
        return f"postgresql://{user}@{hosts}/{quote(place.dbname, safe='')}" + (f"?{query}" if query else "")

    def spellings_of_password(self) -> frozenset[str]:
        """Every form in which the password could turn up in a log."""
        if not self.password:
            return frozenset()
        raw = self.password
        forms = {raw, quote(raw, safe=""), quote(raw), quote_plus(raw), self.spelled_password or raw}
        forms |= {form.replace("%", "%%") for form in forms}
        forms |= {raw.replace("\\", "\\\\").replace("'", "\\'"), raw.replace("'", "''"), repr(raw)[1:-1]}
        forms.add(raw.encode("unicode_escape").decode("ascii"))
        return frozenset(forms)


def place_of(parameters: Mapping[str, str], environ: Mapping[str, str] | None = None) -> Place:
    """Name the place that libpq's parameters mean; `environ` gives the `PG…` defaults."""
    environ = environ or {}
    host = parameters.get("host") or parameters.get("hostaddr") or environ.get("PGHOST") or "localhost"
    port = parameters.get("port") or environ.get("PGPORT") or "5432"
    user = parameters.get("user") or environ.get("PGUSER") or ""
    dbname = parameters.get("dbname") or environ.get("PGDATABASE") or user
    ports = tuple(each or "5432" for each in port.split(","))
    # Names of hosts have no case, paths of sockets have.
    hosts = tuple(each if each.startswith("/") else each.lower() or "localhost" for each in host.split(","))
    return Place(hosts, ports, dbname)


def parse(text: str) -> Address:
    """Read a URL the way SQLAlchemy and libpq do, and more leniently: `@ : / ? # %` may stand in a password.

    Source: libpq, "Connection URIs"; SQLAlchemy, `engine/url.py`. Raises NotAnAddress.
    """
    scheme, separator, rest = text.strip().partition("://")
    dialect, _, driver = scheme.partition("+")
    if not separator or not re.fullmatch(r"[A-Za-z][\w.+-]*", scheme):
        raise NotAnAddress("it is not a URL")
    if dialect.lower() not in SCHEMES:
        raise NotAnAddress(f"it is a URL of {scheme}, not of PostgreSQL")
    userinfo, match = _split_user(rest)
    parameters = _hosts(match["hosts"])
    spelled_password = None
    if userinfo:
        user, colon, spelled = userinfo.partition(":")
        if user:
            parameters["user"] = unquote(user)
        if colon:
            spelled_password = spelled
            parameters["password"] = unquote(spelled)
    if match["dbname"]:
        parameters["dbname"] = unquote(match["dbname"])
    _add_query(parameters, match["query"] or "")
    return Address(parameters, driver or None, spelled_password)


def query_of(text: str) -> list[tuple[str, str]]:
    """Give what a URL's query says, as it stands there. Raises NotAnAddress."""
    parse(text)
    query = _split_user(text.strip().partition("://")[2])[1]["query"]
    return parse_qsl((query or "").replace("+", "%2B"), keep_blank_values=True)


def _split_user(rest: str) -> tuple[str, re.Match[str]]:
    """Split after the first `@` behind which everything reads as hosts, database and query."""
    ends = [-1, *(i for i, letter in enumerate(rest) if letter == "@")]
    for end in ends:
        if match := _AFTER_USER.match(rest, end + 1):
            return rest[: max(end, 0)], match
    raise NotAnAddress("it does not read as user:password@host:port/database; percent-encode what is special in it")


def _hosts(text: str) -> dict[str, str]:
    if not text:
        return {}
    pairs = re.findall(r"(?:^|,)(?:\[([^\]]*)\]|([^:,]*))(?::(\d*))?", text)
    hosts = [unquote(literal or name) for literal, name, _ in pairs]
    ports = [port for _, _, port in pairs]
    found = {"host": ",".join(hosts)}
    if any(ports):
        found["port"] = ",".join(port or "5432" for port in ports)
    return {name: value for name, value in found.items() if value}


def _add_query(parameters: dict[str, str], query: str) -> None:
    """Take what libpq knows from a query; SQLAlchemy's `host=a:1&host=b:2` and asyncpg's `ssl=` are translated."""
    hosts: list[str] = []
    for name, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True):
        if name == "host":
            hosts.append(value)
        elif name == "ssl" and value:
            parameters["sslmode"] = {"true": "require", "false": "disable"}.get(value.lower(), value)
        elif name in ("database", "dbname"):
            parameters["dbname"] = value
        elif name in LIBPQ_PARAMETERS:
            parameters[name] = value
    if len(hosts) > 1 or (hosts and re.fullmatch(r"[^/:]+:\d+", hosts[0])):
        pairs = [each.rpartition(":") if ":" in each else (each, "", "5432") for each in hosts]
        parameters["host"] = ",".join(pair[0] for pair in pairs)
        parameters["port"] = ",".join(pair[2] for pair in pairs)
    elif hosts:
        parameters["host"] = hosts[0]
