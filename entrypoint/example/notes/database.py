"""Where the notes are kept."""

import os

from sqlalchemy import URL, make_url


def database_url() -> URL:
    """Return `DATABASE_URL`, whichever of the usual spellings it has, for the psycopg driver."""
    return make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
