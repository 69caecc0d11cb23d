"""A page of notes over HTTP, kept in PostgreSQL."""
