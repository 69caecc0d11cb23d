"""The tables: notes, and the tags that they carry."""

import re
from datetime import datetime

from sqlalchemy import Column, DateTime, ForeignKey, Identity, MetaData, Table, Text, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Names every constraint as PostgreSQL would, so that migrations can drop them by name."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_name)s_key",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )


note_tags = Table(
    "note_tags",
    Base.metadata,
    Column("note_id", ForeignKey("notes.id", ondelete="CASCADE"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id", ondelete="CASCADE"), primary_key=True, index=True),
)


class Note(Base):
    """Something worth remembering."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text, server_default="")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), index=True)
    slug: Mapped[str] = mapped_column(Text, unique=True)
    tags: Mapped[list["Tag"]] = relationship(secondary=note_tags, order_by="Tag.name")


class Tag(Base):
    """A word that notes can be found by."""

    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)


def slug_of(title: str, note_id: int) -> str:
    """Return the note's place in the page. The id makes it unique; the migrations make it so too."""
    return re.sub(r"[^a-z0-9]+", "-", f"{title} {note_id}".lower()).strip("-")
