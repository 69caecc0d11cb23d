"""A database without encoding (SQL_ASCII), whose text psycopg would give as bytes."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader


def read_text(context: psycopg.Connection[Any] | psycopg.Cursor[Any]) -> None:
    """Have a connection or cursor give text as text all the same."""
    for name in ("text", "varchar", "name"):
        context.adapters.register_loader(name, _TextOfAnyEncoding)


class _TextOfAnyEncoding(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "backslashreplace")
