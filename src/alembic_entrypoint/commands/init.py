"""`init`: write the drop-in files of `entrypoint/` into a project."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alembic_entrypoint.commands.demo import example
from alembic_entrypoint.dropin.files import PLATFORMS, Wanted, wanted
from alembic_entrypoint.dropin.found import Found, look
from alembic_entrypoint.errors import Misconfigured, Usage

Write = Callable[[str], Any]


def init(
    platforms: Sequence[str], folder: Path, *, yes: bool, write: Write, confirm: Callable[[str], bool] | None
) -> int:
    """Say what was found, write what is missing, and change what exists only after a yes; give the exit code.

    `confirm` asks a person; None where there is nobody to ask.
    """
    unknown = sorted({*platforms} - {*PLATFORMS})
    if unknown:
        raise Usage(
            f"There is no platform {', '.join(unknown)}. There are {', '.join(PLATFORMS)}. Nothing was written."
        )
    found = look(folder)
    chosen = tuple(dict.fromkeys(platforms or found.platforms or ("docker",)))
    _say_found(found, chosen, write)
    files = wanted(found, chosen, example().parent)
    new = {path: text for path, text in files.files.items() if found.read(path) is None}
    changed = {path: text for path, text in files.files.items() if path not in new and found.read(path) != text}
    for path, text in changed.items():
        write(_diff(path, found.read(path) or "", text))
    if changed and not yes and confirm is None:
        raise Usage(
            f"{', '.join(changed)} would be changed as shown above, and nobody is here to be asked. "
            "Nothing was written. To agree: alembic-entrypoint init --yes" + "".join(f" {name}" for name in platforms)
        )
    agreed = {path: text for path, text in changed.items() if yes or (confirm and confirm(f"Change {path}?"))}
    _write(folder, {**new, **agreed}, write)
    for path in changed:
        if path not in agreed:
            write(f"left as it was: {path}")
    if not new and not changed:
        write("Nothing to write: everything is there.")
    _say_next(found, files, chosen, write)
    return Usage.exit_code if len(agreed) < len(changed) else 0


def _say_found(found: Found, chosen: Sequence[str], write: Write) -> None:
    others = ", ".join(name for name in PLATFORMS if name not in chosen)
    write(f"Alembic configuration: {found.config}")
    write(f"The app's command:     {found.command}   ({found.command_from or 'a guess: mend it'})")
    write(f"Platforms:             {', '.join(chosen)}" + (f"   (there are {others}, too)" if others else ""))


def _diff(path: str, old: str, new: str) -> str:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), path, path, lineterm="")
    return "\n" + "\n".join(lines) + "\n"


def _write(folder: Path, files: dict[str, str], write: Write) -> None:
    """Put each file in its place whole, or not at all."""
    for path, text in files.items():
        place = (folder / path).resolve()
        verb = "changed" if place.exists() else "written"
        try:
            mode = place.stat().st_mode & 0o777 if place.exists() else 0o755 if path.endswith(".sh") else 0o644
            place.parent.mkdir(parents=True, exist_ok=True)
            _put(place, text, mode)
        except OSError as error:
            raise Misconfigured(
                f"{path} cannot be written: {error.strerror}. It is as before; what was written is named above. "
                "Mend that and start `alembic-entrypoint init` again: it writes only what is missing."
            ) from None
        write(f"{verb}: {path}")


def _put(place: Path, text: str, mode: int) -> None:
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        os.replace(name, place)
    except BaseException:
        os.unlink(name)
        raise


def _say_next(found: Found, files: Wanted, chosen: Sequence[str], write: Write) -> None:
    if found.by_hand:
        write(
            "\nThese run Alembic by themselves, or delete what it needs. Take them out: before the app starts,\n"
            "its database is brought to the revision that it needs, under a lock, or it is said why not."
        )
        for place in found.by_hand:
            write(f"  {place}")
    if files.notes:
        write("\nTo do by hand:")
        for note in files.notes:
            write(f"  {note}")
    write("\nNext:")
    write("  alembic-entrypoint plan   # with DATABASE_URL set: what a start would do, and why; changes nothing")
    for command in dict.fromkeys(PLATFORMS[name].next for name in chosen):
        write(f"  {command}")
