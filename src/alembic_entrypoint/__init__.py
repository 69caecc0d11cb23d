"""Starts an app only when its database is at the revision that it needs."""

__version__ = "0.1.0"
