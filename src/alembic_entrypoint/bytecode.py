"""Stale bytecode: find and remove the `.pyc` files that can make other code run than the sources say.

Named is only what can be wrong and is no loss: its source is there to be compiled again, or Python could not
import it anyway. So these stay: a `.pyc` in a normal folder with no `.py` beside it, because modules are
shipped so without sources, and it may be the only copy; hash-checked files, which Python compares at every
import; links; and files whose header is cut short or not importlib's: Python passes those over as well.
In a `sourceless` tree an orphan *is* the migration. Only a configuration tells, which can have any name and any
section, and name a folder beside its own: so one that may say so keeps every orphan, and its own folder whole.
`docs/bytecode.md` tells users the same, and what cannot be seen at all.
"""

from __future__ import annotations

import dataclasses
import os
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeAlias

CACHE = "__pycache__"
HEADER = struct.Struct("<2s2sIII")  # PEP 552: version, "\r\n", flags, then mtime and size of the source
HASHED, CHECKED = 0b01, 0b10
UINT32 = 0xFFFFFFFF
#: How the name of an Alembic configuration ends.
CONFIGURATIONS = (".ini", ".cfg", ".conf", ".toml")
#: A line that sets it, in whatever section or table, to anything but what is plainly false.
_SOURCELESS = re.compile(
    rb"""^(?![ \t]*[#;]).*\bsourceless\b["']?[ \t]*[=:](?![ \t]*["']?(?:false|no|off|0)\b)""",
    re.IGNORECASE | re.MULTILINE,
)

UNREADABLE = "cannot be read, and may say sourceless = true"

Folder: TypeAlias = "str | os.PathLike[str]"
Sources: TypeAlias = "dict[str, os.DirEntry[str]]"


class Reason(Enum):
    """Why bytecode can be wrong; each with the sentence that a person reads."""

    sentence: str

    ORPHAN = "orphan", "its source is gone"
    LEGACY = "legacy", "it lies beside its source, and would be run in its place if that went"
    UNCHECKED = "unchecked", "nothing compares it with its source (unchecked-hash)"
    OUTDATED = "outdated", "the source it was made from had another time or size"

    def __new__(cls, word: str, sentence: str) -> Reason:
        """Make the word the value, and keep the sentence beside it."""
        reason = object.__new__(cls)
        reason._value_ = word
        reason.sentence = sentence
        return reason


@dataclass(frozen=True)
class Stale:
    """One `.pyc` that can be wrong."""

    path: str
    reason: Reason
    #: why it may be the only copy of a migration all the same
    doubt: str | None = None


@dataclass(frozen=True)
class LeftAlone:
    """A folder in which bytecode may be the migrations; `because` names the configuration."""

    because: str


@dataclass(frozen=True)
class Cleaned:
    """What was removed (in a dry run: would be), what was not and why, and why folders were left alone."""

    removed: tuple[Stale, ...]
    kept: tuple[tuple[Stale, str], ...]
    left_alone: tuple[str, ...] = ()

    def document(self) -> dict[str, object]:
        """Say it as a log event has it."""
        return {
            "removed": [{"path": stale.path, "reason": stale.reason.value} for stale in self.removed],
            "kept": [{"path": stale.path, "reason": stale.reason.value, "error": error} for stale, error in self.kept],
            "left_alone": self.left_alone,
        }


@dataclass(frozen=True)
class Listing:
    """What is of interest in one folder."""

    sources: Sources = field(default_factory=dict)
    bytecode: list[os.DirEntry[str]] = field(default_factory=list)
    configurations: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def remove_named(folders: Sequence[str], configuration: str | None, *, dry_run: bool = False) -> Cleaned:
    """Remove the stale bytecode in folders that a person names, about which Alembic was not asked.

    `configuration` is the one that a setting names. Where it, Alembic's own, or one in the current folder or above the
    named ones may say `sourceless`, nothing is removed.
    """
    doubt: str | None = None
    for path in _around(folders, filter(None, (configuration, os.environ.get("ALEMBIC_CONFIG")))):
        if (because := _sourceless(path)) is None:
            continue
        if not os.path.isdir(path):
            return Cleaned((), (), (because,))
        doubt = doubt or because
    return remove_stale(folders, doubt=doubt, dry_run=dry_run)


def remove_stale(
    folders: Iterable[Folder], *, sourceless: bool = False, doubt: str | None = None, dry_run: bool = False
) -> Cleaned:
    """Remove the stale bytecode in `folders`; a file that cannot be removed is reported, never an error."""
    removed: list[Stale] = []
    kept: list[tuple[Stale, str]] = []
    left_alone: list[str] = []
    for found in find_stale(folders, sourceless=sourceless, doubt=doubt):
        if isinstance(found, LeftAlone):
            left_alone.append(found.because)
            continue
        if found.doubt is not None:
            kept.append((found, f"it may be the only copy of a migration: {found.doubt}"))
            continue
        try:
            if not dry_run:
                os.unlink(found.path)
        except FileNotFoundError:
            continue  # another replica on the same volume was quicker, and counts it
        except OSError as error:
            kept.append((found, error.strerror or str(error)))
        else:
            removed.append(found)
    return Cleaned(tuple(removed), tuple(kept), tuple(left_alone))


def find_stale(
    folders: Iterable[Folder], *, sourceless: bool = False, doubt: str | None = None
) -> Iterator[Stale | LeftAlone]:
    """Walk `folders` once and yield the bytecode that can be wrong, orphans last; what cannot be read is passed over.

    A folder in `folders` may be a link; below it none is followed. In a `sourceless` tree nothing is ever
    stale: there, bytecode without a source *is* the migration. `doubt` is why an orphan may be one all the same.
    """
    if sourceless:
        return
    walked: set[tuple[int, int]] = set()  # folders overlap, or are mounted twice
    waiting = [(os.fspath(folder), _sources_beside(os.fspath(folder))) for folder in folders]
    orphans: list[Stale] = []
    while waiting:
        folder, beside = waiting.pop()
        if not _is_new(folder, walked):
            continue
        if (listing := _list(folder)) is None:
            doubt = doubt or f"{folder} {UNREADABLE}"
            continue
        if because := next(filter(None, map(_sourceless, listing.configurations)), None):
            doubt = doubt or because
            yield LeftAlone(because)
            continue
        if _is_cache(folder):
            if beside is not None:
                for stale in _stale_in_cache(listing.bytecode, beside):
                    if stale.reason is Reason.ORPHAN:
                        orphans.append(stale)
                    else:
                        yield stale
            continue
        for entry in listing.bytecode:
            if entry.name[:-1] in listing.sources:
                yield Stale(entry.path, Reason.LEGACY)
        waiting.extend((below, listing.sources) for below in reversed(listing.folders))
    for orphan in orphans:
        yield dataclasses.replace(orphan, doubt=doubt)


def judge(header: bytes, mtime: float, size: int) -> Reason | None:
    """Say why a `.pyc` with these first 16 bytes can be wrong for a source of this mtime and size, if it can.

    The layout is importlib's, whatever interpreter wrote it, and so is the arithmetic
    (`importlib._bootstrap_external`, `_classify_pyc` and `_validate_timestamp_pyc`).
    """
    if len(header) < HEADER.size:
        return None
    _, end, flags, recorded_mtime, recorded_size = HEADER.unpack(header)
    if end != b"\r\n" or flags & ~(HASHED | CHECKED):
        return None
    if flags & HASHED:
        return None if flags & CHECKED else Reason.UNCHECKED
    is_fresh = (recorded_mtime, recorded_size) == (int(mtime) & UINT32, size & UINT32)
    return None if is_fresh else Reason.OUTDATED


def source_name(bytecode: str, sources: Collection[str]) -> str | None:
    """Find among `sources` the file that a name in `__pycache__` was made from.

    Modules can have dots in their names (`2024.01_users.py`), and so can tags (`cpython-311-pytest-8.0.0`):
    the longest beginning that is a source is taken.
    """
    stem = bytecode.removesuffix(".pyc")
    while (dot := stem.rfind(".")) > 0:
        stem = stem[:dot]
        if f"{stem}.py" in sources:
            return f"{stem}.py"
    return None


def _stale_in_cache(bytecode: Iterable[os.DirEntry[str]], sources: Sources) -> Iterator[Stale]:
    for entry in bytecode:
        if entry.name.count(".") < 2:
            continue  # no tag: not a name that an interpreter reads or writes here
        source = source_name(entry.name, sources)
        reason = Reason.ORPHAN if source is None else _compare(entry.path, sources[source])
        if reason is not None:
            yield Stale(entry.path, reason)


def _compare(path: str, source: os.DirEntry[str]) -> Reason | None:
    """Judge a file by its source; what cannot be read, or went meanwhile, is not judged."""
    try:
        made_from = source.stat()  # the entry keeps it for the files of other interpreters
        return judge(_header(path), made_from.st_mtime, made_from.st_size)
    except OSError:
        return None


def _header(path: str) -> bytes:
    """Read the first 16 bytes and no more; the flags matter if a link or a pipe took the file's place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(descriptor, HEADER.size)
    finally:
        os.close(descriptor)


def _sourceless(path: str) -> str | None:
    """Say why the migrations of a configuration may be bytecode, if they may."""
    try:
        with open(path, "rb") as file:
            return f"{path} says sourceless = true" if _SOURCELESS.search(file.read()) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return f"{path} {UNREADABLE}"


def _around(folders: Iterable[str], configurations: Iterable[str]) -> list[str]:
    """Name the configurations that may be for these folders and that a walk through them does not meet.

    A folder among them could not be listed.
    """
    roots = {Path(os.path.realpath(folder)) for folder in folders}
    places = [Path.cwd()]
    for folder in folders:
        # Above a link to the migrations, and above what it leads to.
        places += [*Path(os.path.abspath(folder)).parents, *Path(os.path.realpath(folder)).parents]
    found = [*configurations]
    for place in dict.fromkeys(places):
        if not roots & {place, *place.parents}:
            listing = _list(str(place))
            found += [str(place)] if listing is None else listing.configurations
    real = dict.fromkeys(map(os.path.realpath, found))
    return [each for each in real if not (each.endswith(CONFIGURATIONS) and roots & {*Path(each).parents})]


def _list(folder: str) -> Listing | None:
    """List a folder; None if any of it cannot be looked at: a source that is not seen would make orphans."""
    listing = Listing()
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    listing.folders.append(entry.path)
                elif entry.name.endswith(".py") and entry.is_file():  # Python, too, follows a link to a source
                    listing.sources[entry.name] = entry
                elif entry.name.endswith(CONFIGURATIONS) and entry.is_file():
                    listing.configurations.append(entry.path)
                elif entry.name.endswith(".pyc") and entry.is_file(follow_symlinks=False):
                    listing.bytecode.append(entry)
    except OSError:
        return None
    return listing


def _sources_beside(folder: str) -> Sources | None:
    """List the sources of a `__pycache__` that was itself named to be cleaned."""
    if not _is_cache(folder):
        return None
    listing = _list(os.path.dirname(os.path.abspath(folder)))
    return None if listing is None else listing.sources


def _is_cache(folder: str) -> bool:
    return os.path.basename(os.path.abspath(folder)) == CACHE


def _is_new(folder: str, walked: set[tuple[int, int]]) -> bool:
    """Tell whether a folder was not walked before, and note that it is now."""
    try:
        found = os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # it cannot be listed either
    place = (found.st_dev, found.st_ino)
    is_new = place not in walked
    walked.add(place)
    return is_new
