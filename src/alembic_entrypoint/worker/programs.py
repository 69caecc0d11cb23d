"""How a process starts others: Python's "Audit events table"."""

from __future__ import annotations

from collections.abc import Mapping

#: Audit events that start another program, with the words for it.
PROGRAMS: Mapping[str, str] = {
    "subprocess.Popen": "starts a program",
    "os.system": "starts a program",
    "os.exec": "becomes another program",
    "os.posix_spawn": "starts a program",
    "os.fork": "forks",
    "os.forkpty": "forks",
    "pty.spawn": "starts a program",
}
