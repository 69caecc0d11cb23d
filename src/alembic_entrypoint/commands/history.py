"""`history`: who migrated what, when, from which image, with what outcome."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import psycopg

from alembic_entrypoint.errors import Refused
from alembic_entrypoint.observe import find_target
from alembic_entrypoint.postgres import ledger
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.wait import connected


def history(settings: Settings, *, as_json: bool, write: Callable[[str], Any]) -> int:
    """Print the ledger's settlings, the oldest first."""
    target = find_target(settings)
    with connected(target.address, settings.wait_timeout, needs_primary=False) as connection:
        try:
            settlings = ledger.history(connection)
        except psycopg.Error as error:
            raise Refused(f"The ledger cannot be read: {error}\nNothing was changed.") from None
    if as_json:
        write(json.dumps([document(each) for each in settlings], indent=2))
    elif not settlings:
        write("The ledger has nothing to tell: no settling was noted in this database yet.")
    else:
        for each in settlings:
            write(line(each))
    return 0


def document(settling: ledger.Settling) -> dict[str, Any]:
    """Make one entry of the document whose schema is `docs/schema/history.json`."""
    return {**dataclasses.asdict(settling), "began": settling.began.isoformat()}


def line(settling: ledger.Settling) -> str:
    """Say one settling in one line."""
    began = settling.began.strftime("%Y-%m-%d %H:%M:%S%z")
    if settling.outcome == "copied":
        return f"{began}  {settling.message}"
    before, after = (", ".join(each) or "nothing" for each in (settling.before, settling.after or ()))
    way = f"{before} -> {after}" if settling.after is not None else f"at {before}"
    took = f" in {settling.elapsed:.1f} s" if settling.elapsed is not None and settling.times == 1 else ""
    times = f", {settling.times} times" if settling.times > 1 else ""
    image = f" image {settling.image}" if settling.image else ""
    what = f"{settling.state} {settling.action}: {settling.outcome}{took}{times}"
    why = f"  ({settling.message})" if settling.message else ""
    return f"{began}  {what}  {settling.version_table} {way}  on {settling.host}{image}{why}"
