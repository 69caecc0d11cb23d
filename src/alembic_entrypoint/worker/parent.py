"""The worker's end of the talk with its parent."""

from __future__ import annotations

import errno
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from alembic_entrypoint.worker.messages import PIPE_CLOSED, Lines, Message, decode, write


class Parent:
    """The parent's end: what it says, and what is said to it."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._lock = threading.Lock()
        self._lines = Lines(1 << 30)
        self._unread: list[bytes] = []
        self.words: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.at_end: Callable[[], None] = lambda: None

    def tell(self, said: str, **keys: Any) -> None:
        """Say one thing."""
        with self._lock:
            try:
                write(self._writing, {"said": said, **keys})
            except OSError as error:
                _end_if_closed(error)
                raise

    def next_word(self) -> Message:
        """Wait for one thing that the parent says; when it is gone, or says cancel, end at once."""
        while not self._unread:
            data = self._read()
            if not data:
                self._end()
            self._unread = self._lines.feed(data)
        message = decode(self._unread.pop(0))
        if message.get("order") == "cancel":
            self._end()
        return message

    def listen(self) -> None:
        """Pass on what the parent says, while env.py runs."""

        def listening() -> None:
            while True:
                self.words.put(self.next_word())

        threading.Thread(target=listening, daemon=True).start()

    def _read(self) -> bytes:
        try:
            return os.read(self._reading, 1 << 16)
        except OSError as error:
            _end_if_closed(error)
            return b""

    def _end(self) -> NoReturn:
        try:
            self.at_end()
        finally:
            if os.getpgrp() == os.getpid():
                # What a migration forked keeps our sockets, and with them the fence, for as long as it lives.
                os.killpg(0, signal.SIGKILL)
            os._exit(1)


def _end_if_closed(error: OSError) -> None:
    """End the process where what runs in it has closed our pipes."""
    if error.errno == errno.EBADF:
        os._exit(PIPE_CLOSED)


class Work:
    """What happened so far, for the message when something fails."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self.migration: Message | None = None
        self.replaying: Any = None
        self.finished: list[str] = []
        self._unseen: set[tuple[str, str]] = set()

    @property
    def under_way(self) -> str | None:
        """Name the migration that has begun and is not over."""
        revision: str | None = self.migration["revision"] if self.migration else None
        return None if revision in self.finished else revision

    def began(self, transaction: str) -> None:
        """Say that a migration goes on in another transaction, so that the server can be asked what became of it."""
        if revision := self.under_way:
            self._parent.tell("began", revision=revision, transaction=transaction)

    def commit(self) -> None:
        """Say, before it is sent, that a transaction of the migrations is about to be committed."""
        self._parent.tell("committing", revisions=self.finished, under_way=self.under_way)

    def went_unseen(self, what: str) -> None:
        """Say, before it is done, that a migration does what may be kept without a transaction that is known here."""
        revision = self.under_way
        if revision and (revision, what) not in self._unseen:
            self._unseen.add((revision, what))
            self._parent.tell("unseen", revision=revision, what=what)


def end_at_once() -> NoReturn:
    """End the process: threads, loops and exit functions that env.py left behind are not waited for."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        # env.py may have closed or replaced them.
        with suppress(Exception):
            stream.flush()  # type: ignore[union-attr]
    os._exit(0)
