"""The environment of a replay: whatever reads the target's URL or `PG…` variables there by itself reads scratch's.

Connections through the drivers are led to scratch wherever they name the target; this is for what goes past them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from urllib.parse import quote

from alembic_entrypoint.address import TLS_PARAMETERS, Address, NotAnAddress, Place, parse, place_of, query_of
from alembic_entrypoint.worker.messages import Request

#: Where the target's URL stands, whatever it says there: the database may have several names.
_URLS = ("DATABASE_URL", "ALEMBIC_ENTRYPOINT_DATABASE_URL")
#: What a URL's query says of where it leads to.
_PLACE = frozenset(["host", "hostaddr", "port", "user", "password", "dbname", "database", "passfile", "service"])


def lead_to_scratch(request: Request) -> set[Place]:
    """Change this process's variables, and give the places which now mean scratch.

    The `PG…` variables fill what a URL or a call leaves out, so that any part of a place may be scratch's.
    """
    parameters = dict(request.parameters or {})
    before = dict(os.environ)
    for name, value in request.variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    scratch = place_of(parameters, os.environ)
    for name, text in before.items():
        with suppress(NotAnAddress, OSError, UnicodeError):
            if name.removesuffix("_FILE") in _URLS and name.endswith("_FILE"):
                with open(text, encoding="utf-8") as file:
                    os.environ[name] = _file_with(scratch_url(file.read(), parameters))
            elif name in _URLS or place_of(parse(text).parameters, before) in request.places:
                os.environ[name] = scratch_url(text, parameters)
    return {*request.places, *_mixed(request.places, scratch)}


def scratch_url(text: str, parameters: Mapping[str, str]) -> str:
    """Write scratch's URL in the form of this one: its scheme, its driver, its query. Raises NotAnAddress."""
    kept = [
        f"{name}={quote(value, safe='')}"
        for name, value in query_of(text)
        if name not in _PLACE and (name not in TLS_PARAMETERS | {"ssl"} or "sslmode" in parameters)
    ]
    names = ("host", "port", "user", "password", "dbname")
    base, _, query = Address({name: parameters[name] for name in names if name in parameters}).url().partition("?")
    more = "&".join([*([query] if query else []), *kept])
    return text.strip().partition("://")[0] + base[base.index("://") :] + (f"?{more}" if more else "")


def _file_with(text: str) -> str:
    """Give the name of a file that is there as long as this process, and nobody else's."""
    descriptor = os.memfd_create("url")
    os.write(descriptor, text.encode())
    return f"/proc/self/fd/{descriptor}"


def _mixed(places: Collection[Place], scratch: Place) -> Iterator[Place]:
    """Give every place whose hosts, ports and database are each either one's or scratch's."""
    for each in places:
        hosts, ports, names = {each.hosts, scratch.hosts}, {each.ports, scratch.ports}, {each.dbname, scratch.dbname}
        yield from itertools.starmap(Place, itertools.product(hosts, ports, names))
