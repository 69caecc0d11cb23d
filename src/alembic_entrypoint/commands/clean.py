"""`clean`: remove stale bytecode, for a Dockerfile's `RUN` or by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from alembic_entrypoint.bytecode import remove_stale
from alembic_entrypoint.errors import Usage


def clean(paths: Sequence[str], dry_run: bool, write: Callable[[str], None]) -> int:
    """Remove the stale bytecode beneath `paths` (none: the current folder) and write what was removed.

    One line for each file, then the count. Raises Usage for a path that is no folder.
    """
    folders = paths or (".",)
    missing = [path for path in folders if not os.path.isdir(path)]
    if missing:
        raise Usage(
            f"There is no folder {', '.join(map(_shown, missing))}. Nothing was removed: a mistyped path "
            "in a Dockerfile would leave stale bytecode in every image. Name the folders of the sources: "
            "alembic-entrypoint clean [--dry-run] PATH…"
        )
    sourceless = is_sourceless((".", *folders))
    if sourceless:
        write("sourceless = true: here bytecode is the migrations, so none of it is stale")
    cleaned = remove_stale(folders, sourceless=sourceless, dry_run=dry_run)
    for stale in cleaned.removed:
        write(f"{_shown(stale.path)}: {stale.reason.value}: {stale.reason.sentence}")
    for stale, error in cleaned.kept:
        write(f"{_shown(stale.path)}: {stale.reason.value}: {stale.reason.sentence}; not removed: {error}")
    write(_count(len(cleaned.removed), len(cleaned.kept), dry_run))
    return 0


def is_sourceless(folders: Sequence[str]) -> bool:
    """Tell whether an Alembic configuration in one of these folders says `sourceless = true`."""
    from configparser import ConfigParser, Error

    for folder in folders:
        ini = ConfigParser(interpolation=None)
        try:
            ini.read(os.path.join(folder, "alembic.ini"))
            if ini.has_section("alembic") and ini.getboolean("alembic", "sourceless", fallback=False):
                return True
            with open(os.path.join(folder, "pyproject.toml"), encoding="utf-8") as file:
                table = file.read().partition("[tool.alembic]")[2].partition("\n[")[0]
        except (Error, OSError, ValueError):
            continue
        if re.search(r"^\s*sourceless\s*=\s*true\b", table, re.MULTILINE):
            return True
    return False


def _count(removed: int, kept: int, dry_run: bool) -> str:
    """Say how many."""
    verb = "would be removed" if dry_run else "removed"
    line = f"{removed} stale {'file' if removed == 1 else 'files'} {verb}"
    return f"{line}, {kept} could not be" if kept else line


def _shown(path: str) -> str:
    """Make a path that is not UTF-8 fit to be printed."""
    return os.fsencode(path).decode(errors="backslashreplace")
