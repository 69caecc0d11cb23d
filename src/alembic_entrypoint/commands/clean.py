"""`clean`: remove stale bytecode, for a Dockerfile's `RUN` or by hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from alembic_entrypoint.bytecode import remove_named
from alembic_entrypoint.errors import Usage
from alembic_entrypoint.settings import PREFIX


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
    # Not all settings are read: in a Dockerfile's RUN most of them are not yet what they will be.
    cleaned = remove_named(folders, os.environ.get(PREFIX + "CONFIG"), dry_run=dry_run)
    for because in cleaned.left_alone:
        write(f"{_shown(because)}: there bytecode is the migrations, so none of it is stale")
    for stale in cleaned.removed:
        write(f"{_shown(stale.path)}: {stale.reason.value}: {stale.reason.sentence}")
    for stale, error in cleaned.kept:
        write(f"{_shown(stale.path)}: {stale.reason.value}: {stale.reason.sentence}; not removed: {error}")
    write(_count(len(cleaned.removed), len(cleaned.kept), dry_run))
    return 0


def _count(removed: int, kept: int, dry_run: bool) -> str:
    """Say how many."""
    verb = "would be removed" if dry_run else "removed"
    line = f"{removed} stale {'file' if removed == 1 else 'files'} {verb}"
    return f"{line}, {kept} could not be" if kept else line


def _shown(path: str) -> str:
    """Make a path that is not UTF-8 fit to be printed."""
    return os.fsencode(path).decode(errors="backslashreplace")
