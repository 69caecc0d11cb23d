"""Everything in the image that can change what is migrated, as one word: the same word, the same work.

Alembic is not imported here, so only what its configuration says plainly is understood: anything else has no
fingerprint, and takes the long way. Standard library only; reads files.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

try:
    from _blake2 import blake2b  # hashlib imports OpenSSL, too, for which a start has no use
except ImportError:
    from hashlib import blake2b
from importlib.util import find_spec

from alembic_entrypoint import __version__
from alembic_entrypoint.settings import Settings

#: What differs between two replicas of one image; it counts only where `env.py` asks for it by name.
_OF_ONE_PROCESS = frozenset(
    ("HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLUMNS", "LINES", "INVOCATION_ID", "JOURNAL_STREAM")
) | frozenset(("SYSTEMD_EXEC_PID", "DYNO", "FLY_ALLOC_ID", "FLY_MACHINE_ID", "FLY_PRIVATE_IP", "RAILWAY_REPLICA_ID"))
#: Stands for the whole environment among the names of variables.
ALL = "*"


@dataclass(frozen=True)
class Fingerprint:
    """A word for the image's migrations, and the folders that it covers, as real paths."""

    word: str
    folders: tuple[str, ...]

    def covers(self, folder: str) -> bool:
        """Tell whether everything below a folder counts."""
        return any(folder == each or folder.startswith(each + os.sep) for each in self.folders)

    @property
    def key(self) -> int:
        """The same as a number from 0 to 2³¹ - 1, for an advisory lock."""
        return int(self.word[:8], 16) & 0x7FFFFFFF


def fingerprint(settings: Settings) -> Fingerprint | None:
    """Hash the migrations, the configuration, the settings that matter, Alembic's version and this program's.

    None where the configuration does not say plainly where the migrations are, where another interpreter runs them,
    or where a file cannot be read.
    """
    try:
        files, folders = _configured(settings)
        alembic = find_spec("alembic")
        if settings.python != sys.executable or alembic is None or alembic.origin is None:
            return None
        sum_of = blake2b(digest_size=16)
        matters = (settings.section, settings.x, settings.target, settings.ignore, settings.ahead, settings.config)
        for each in (__version__, sys.version, sys.executable, os.getcwd(), repr(matters)):
            _add(sum_of, each.encode())
        for file in (alembic.origin, *files, ".env"):
            _add(sum_of, os.fsencode(file))
            _add(sum_of, _content(file))
        for folder in folders:
            for path in _files(folder):
                _add(sum_of, os.fsencode(path))
                _add(sum_of, _content(path))
    except (OSError, ValueError, KeyError, AttributeError, ImportError, configparser.Error):
        return None
    return Fingerprint(sum_of.hexdigest(), folders)


def environment(names: Iterable[str]) -> str:
    """Hash these variables, set or not; ALL is every one but those that differ between replicas."""
    wanted = set(names)
    if ALL in wanted:
        wanted |= os.environ.keys() - _OF_ONE_PROCESS
    sum_of = blake2b(digest_size=16)
    for name in sorted(wanted):
        _add(sum_of, os.fsencode(name))
        _add(sum_of, os.fsencode(os.environ.get(name, "\0")))
    return sum_of.hexdigest()


def _add(sum_of: blake2b, data: bytes) -> None:
    sum_of.update(len(data).to_bytes(8, "big"))
    sum_of.update(data)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        return b"\0"


def _files(folder: str) -> Iterator[str]:
    """Name every file below a folder, in the same order each time; bytecode is the importer's own."""
    below: list[str] = []
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_symlink() and entry.is_dir():
            raise ValueError("a link to a folder, which may lead in a circle")
        if entry.is_dir():
            if entry.name != "__pycache__":
                below.append(entry.path)
        elif entry.is_file():
            yield entry.path
    for each in below:
        yield from _files(each)


def _configured(settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the configuration's files, and the folders of the migrations. Raises ValueError where that is not plain."""
    ini, toml = _config_files(settings)
    section = _ini(ini, settings.section) or _toml(toml)
    if section.get("sourceless", "").lower() == "true":
        raise ValueError("the migrations are bytecode")
    locations = [section["script_location"], *section.get("version_locations", "").split()]
    if any(":" in each or "%" in each for each in locations):
        raise ValueError("a folder in a package")
    folders = tuple(dict.fromkeys(os.path.realpath(each) for each in locations))
    if not all(map(os.path.isdir, folders)):
        raise ValueError("a folder that is not there")
    return (ini, toml), folders


def _config_files(settings: Settings) -> tuple[str, str]:
    named = settings.config or os.environ.get("ALEMBIC_CONFIG", "")
    return ("alembic.ini", named) if named.endswith(".toml") else (named or "alembic.ini", "pyproject.toml")


def _ini(path: str, name: str) -> dict[str, str]:
    parser = configparser.ConfigParser({"here": os.path.dirname(os.path.abspath(path))})
    parser.read(path, encoding="utf-8")
    if not parser.has_option(name, "script_location"):
        return {}
    wanted = ("script_location", "version_locations", "sourceless")
    return {option: parser.get(name, option) for option in wanted if parser.has_option(name, option)}


def _toml(path: str) -> dict[str, str]:
    import tomllib  # from Python 3.11 on; before, such a project has no fingerprint

    with open(path, "rb") as file:
        table = tomllib.load(file)["tool"]["alembic"]
    here = os.path.dirname(os.path.abspath(path))
    plain: dict[str, str] = {}
    for name in ("script_location", "version_locations", "sourceless"):
        value = table.get(name, "")
        text = " ".join(value) if isinstance(value, list) else str(value)
        plain[name] = text.replace("%(here)s", here)
    return plain
