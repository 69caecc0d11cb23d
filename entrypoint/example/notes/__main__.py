"""Start the service: `python -m notes`."""

from notes.app import serve

serve()
