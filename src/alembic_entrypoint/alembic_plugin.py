"""Hide the ledger from `alembic revision --autogenerate` and `alembic check`, from Alembic 1.18 on.

Alembic imports this module whenever it is imported itself, so nothing but this is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def setup(plugin: Any) -> None:
    """Register what runs before the tables are compared. Source: `alembic.runtime.plugins.Plugin`."""
    from alembic.util import DispatchPriority

    plugin.add_autogenerate_comparator(_without_ledger, "schema", "ledger", priority=DispatchPriority.FIRST)


def _without_ledger(context: Any, operations: Any, schemas: set[str | None]) -> None:
    schemas.discard("alembic_entrypoint")


class _Iterable(ModuleType):
    """A module that is also a collection of itself: the first releases of Alembic with plugins iterate over it."""

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


sys.modules[__name__].__class__ = _Iterable
