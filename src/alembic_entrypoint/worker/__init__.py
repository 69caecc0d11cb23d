"""The child process in which the user's `env.py` and migrations run.

`client` is the parent's side. Everything else here runs in the app's interpreter, which may not be ours: it imports
the standard library, and Alembic and SQLAlchemy only once the request is known.
"""
