"""Stale bytecode: find and remove the `.pyc` files that can make other code run than the sources say.

Named is only what can be wrong and is no loss: its source is there to be compiled again, or Python could not
import it anyway. So these stay: a `.pyc` in a normal folder with no `.py` beside it, because modules are
shipped so without sources, and it may be the only copy; hash-checked files, which Python compares at every
import; links; and files whose header is cut short or not importlib's: Python passes those over as well.
`docs/bytecode.md` tells users the same, and what cannot be seen at all.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

CACHE = "__pycache__"
HEADER = struct.Struct("<2s2sIII")  # PEP 552: version, "\r\n", flags, then mtime and size of the source
HASHED, CHECKED = 0b01, 0b10
UINT32 = 0xFFFFFFFF

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


@dataclass(frozen=True)
class Cleaned:
    """What was removed (in a dry run: would be), and what could not be, with the system's words for why."""

    removed: tuple[Stale, ...]
    kept: tuple[tuple[Stale, str], ...]

    def document(self) -> dict[str, object]:
        """Say it as a log event has it."""
        return {
            "removed": [{"path": stale.path, "reason": stale.reason.value} for stale in self.removed],
            "kept": [{"path": stale.path, "reason": stale.reason.value, "error": error} for stale, error in self.kept],
        }


@dataclass(frozen=True)
class Listing:
    """What is of interest in one folder."""

    sources: Sources = field(default_factory=dict)
    bytecode: list[os.DirEntry[str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def remove_stale(folders: Iterable[Folder], *, sourceless: bool = False, dry_run: bool = False) -> Cleaned:
    """Remove the stale bytecode in `folders`; a file that cannot be removed is reported, never an error."""
    removed: list[Stale] = []
    kept: list[tuple[Stale, str]] = []
    for stale in find_stale(folders, sourceless=sourceless):
        try:
            if not dry_run:
                os.unlink(stale.path)
        except FileNotFoundError:
            continue  # another replica on the same volume was quicker, and counts it
        except OSError as error:
            kept.append((stale, error.strerror or str(error)))
        else:
            removed.append(stale)
    return Cleaned(tuple(removed), tuple(kept))


def find_stale(folders: Iterable[Folder], *, sourceless: bool = False) -> Iterator[Stale]:
    """Walk `folders` once and yield the bytecode that can be wrong; what cannot be read is passed over.

    A folder in `folders` may be a link; below it none is followed. In a `sourceless` tree nothing is ever
    stale: there, bytecode without a source *is* the migration.
    """
    if sourceless:
        return
    walked: set[tuple[int, int]] = set()  # folders overlap, or are mounted twice
    waiting = [(os.fspath(folder), _sources_beside(os.fspath(folder))) for folder in folders]
    while waiting:
        folder, beside = waiting.pop()
        if not _is_new(folder, walked) or (listing := _list(folder)) is None:
            continue
        if _is_cache(folder):
            if beside is not None:
                yield from _stale_in_cache(listing.bytecode, beside)
            continue
        for entry in listing.bytecode:
            if entry.name[:-1] in listing.sources:
                yield Stale(entry.path, Reason.LEGACY)
        waiting.extend((below, listing.sources) for below in reversed(listing.folders))


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
    except OSError:
        return False
    place = (found.st_dev, found.st_ino)
    is_new = place not in walked
    walked.add(place)
    return is_new
