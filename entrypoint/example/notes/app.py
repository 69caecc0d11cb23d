"""The service: `GET /` shows the notes, `POST /` adds one, `GET /health` tells how it is."""

import json
import os
import signal
import threading
from collections.abc import Sequence
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from urllib.parse import parse_qs

from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, selectinload

from notes.database import database_url
from notes.models import Note, Tag, slug_of

NEWEST = 100
LONGEST_FORM = 64 * 1024  # bytes

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Notes</title>
<style>
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }}
  form {{ display: grid; gap: .5rem }}
  article p {{ white-space: pre-wrap }}
</style>
<h1>Notes</h1>
<form method="post" action="/">
  <label>Title <input name="title" required></label>
  <label>Note <textarea name="body"></textarea></label>
  <label>Tags <input name="tags" placeholder="home, garden"></label>
  <button>Add</button>
</form>
{notes}
"""

NOTE = """\
<article id="{slug}">
  <h2><a href="#{slug}">{title}</a></h2>
  <p>{body}</p>
  <small><time>{created_at:%Y-%m-%d %H:%M}</time> {tags}</small>
</article>
"""


class Service(ThreadingHTTPServer):
    """Answers each request in a thread of its own, and waits for them when it is closed."""

    daemon_threads = False

    def __init__(self, address: tuple[str, int], engine: Engine) -> None:
        super().__init__(address, Exchange)
        self.engine = engine


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    server: Service
    timeout = 2  # seconds for a client that sends nothing: it must not hold up a stop

    def do_GET(self) -> None:
        """Answer `/` and `/health`."""
        if self.path == "/":
            with Session(self.server.engine) as session:
                self.answer(HTTPStatus.OK, "text/html; charset=utf-8", page(newest_notes(session)))
        elif self.path == "/health":
            self.answer_health()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Add the note that the form holds, and show it."""
        if self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
            return
        if int(length) > LONGEST_FORM:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        form = parse_qs(self.rfile.read(int(length)).decode(errors="replace"))
        # PostgreSQL's text holds every character but this one.
        title, body, tags = (form.get(name, [""])[0].replace("\0", "") for name in ("title", "body", "tags"))
        if not title.strip():
            self.send_error(HTTPStatus.BAD_REQUEST, "A note needs a title")
            return
        with Session(self.server.engine) as session, session.begin():
            slug = add_note(session, title.strip(), body, tags)
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", f"/#{slug}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer_health(self) -> None:
        """Say at which revision the database is, or that it does not answer."""
        try:
            with Session(self.server.engine) as session:
                status, health = HTTPStatus.OK, health_of(session)
        except OperationalError:
            status, health = HTTPStatus.SERVICE_UNAVAILABLE, {"revision": None, "notes": None}
        self.answer(status, "application/json", json.dumps(health))

    def answer(self, status: HTTPStatus, content_type: str, content: str) -> None:
        """Send one whole answer."""
        payload = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


def newest_notes(session: Session) -> Sequence[Note]:
    """Return the newest notes, with their tags."""
    newest_first = select(Note).order_by(Note.created_at.desc(), Note.id.desc()).limit(NEWEST)
    return session.scalars(newest_first.options(selectinload(Note.tags))).all()


def add_note(session: Session, title: str, body: str, tags: str) -> str:
    """Add a note with the tags that `tags` lists, separated by commas; return its slug."""
    # Sorted, so that two requests that bring the same new tags wait for each other in one order.
    names = sorted({name.strip().lower() for name in tags.split(",")} - {""})
    if names:
        rows = [{"name": name} for name in names]
        session.execute(insert(Tag).values(rows).on_conflict_do_nothing())
    note_id = session.scalars(select(func.nextval("notes_id_seq"))).one()
    note = Note(id=note_id, title=title, body=body, slug=slug_of(title, note_id))
    note.tags.extend(session.scalars(select(Tag).where(Tag.name.in_(names))))
    session.add(note)
    return note.slug


def health_of(session: Session) -> dict[str, str | int | None]:
    """Return the revision that the database records, and how many notes it holds."""
    return {
        "revision": session.scalar(text("SELECT version_num FROM alembic_version")),
        "notes": session.scalar(select(func.count()).select_from(Note)),
    }


def page(notes: Sequence[Note]) -> str:
    """Return the page that shows these notes. Everything that a visitor typed is escaped here."""
    return PAGE.format(
        notes="\n".join(
            NOTE.format(
                slug=escape(note.slug),
                title=escape(note.title),
                body=escape(note.body),
                created_at=note.created_at,
                tags=" ".join(f"#{escape(tag.name)}" for tag in note.tags),
            )
            for note in notes
        )
    )


def serve() -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests that are under way."""
    address = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8000"))
    engine = create_engine(database_url(), pool_pre_ping=True)
    with Service(address, engine) as service:

        def stop(_signal: int, _frame: FrameType | None) -> None:
            # In a thread, because shutdown() waits for the loop that this signal interrupts.
            threading.Thread(target=service.shutdown).start()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        service.serve_forever()
    engine.dispose()
