"""Which database is migrated, as a setting names it; and the secrets that must stay out of the logs."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from alembic_entrypoint.address import Address, NotAnAddress, Place, parse, place_of
from alembic_entrypoint.errors import Ended
from alembic_entrypoint.logs import hide
from alembic_entrypoint.settings import Settings


@dataclass(frozen=True)
class Target:
    """The database that is migrated, and whether a setting named it."""

    address: Address
    is_given: bool
    #: what `env.py` calls this database: as the setting has it, and as was learned while observing
    places: tuple[Place, ...]
    #: the address with all its hosts: another of them may be the primary when we have waited
    whole: Address

    def at(self, address: Address) -> Target:
        """Give the same target at the host that answered, by whose name it goes, too."""
        places = dict.fromkeys((*self.places, place_from_here(address)))
        return dataclasses.replace(self, address=address, places=tuple(places))


def given(settings: Settings) -> Target | None:
    """Give the database that a setting names; None where `env.py` has to be asked."""
    hide_environment()
    return named(settings.database_url, settings, is_given=True) if settings.database_url else None


def named(address: Address, settings: Settings, *, is_given: bool) -> Target:
    """Make a target of an address, whose password is no log's business.

    One that the address lacks, or that `env.py` gave, may be a token that `env.py` makes for each connection.
    """
    keep_secret(address)
    places = (place_from_here(address),)
    if is_given and {"password", "passfile"} & address.parameters.keys():
        return Target(address, is_given, places, whole=address)
    parameters = dict(address.parameters)
    known = {"password": parameters.pop("password")} if "password" in parameters else {}
    address = dataclasses.replace(address, parameters=parameters)
    asked = _Asked(settings, Target(address, is_given, places, whole=address), known)
    address = dataclasses.replace(address, credentials=asked)
    return Target(address, is_given, places, whole=address)


@dataclass
class _Asked:
    """The credentials that `env.py` uses, for our own connections."""

    settings: Settings
    target: Target
    known: Mapping[str, str] = field(repr=False)
    refusal: str = ""

    def renew(self) -> bool:
        """Run `env.py` until it connects to the target, and tell whether it uses others than were known."""
        # Imported here, so that a start whose login is good does not pay for it.
        gc.enable()
        from alembic_entrypoint.observe import ask_credentials

        try:
            before, self.known = self.known, ask_credentials(self.settings, self.target)
        except Ended as error:
            self.refusal = error.message.splitlines()[0]
            return False
        self.refusal = "the server does not accept what it uses"
        return self.known != before


def keep_secret(address: Address) -> None:
    """Keep a password out of everything that is logged from now on."""
    hide(
        address.spellings_of_password(),
        names=(address.user or "", address.place.dbname, *address.place.hosts),
    )


def hide_environment() -> None:
    """Keep out of the logs what the environment holds as secrets: an `env.py` that fails may print its settings."""
    for name, value in os.environ.items():
        if re.search(r"PASSW|SECRET|TOKEN|API_?KEY", name, re.IGNORECASE) and not name.endswith("_FILE"):
            hide((value,))
        elif "://" in value and "@" in value:
            with contextlib.suppress(NotAnAddress):
                keep_secret(parse(value))


def place_from_here(address: Address) -> Place:
    """Name the place as libpq does here, where `PG…` variables fill what the URL leaves out."""
    return place_of(address.parameters, os.environ)
