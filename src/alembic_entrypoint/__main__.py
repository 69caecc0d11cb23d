"""`python -m alembic_entrypoint`, and the `alembic-entrypoint` command."""

from __future__ import annotations

from typing import NoReturn

from alembic_entrypoint.boundary import guard


def main() -> NoReturn:
    """Run the command line."""

    def body() -> int:
        # Imported here, so that signals are caught before it.
        from alembic_entrypoint.cli import run_command_line

        return run_command_line()

    guard(body)


if __name__ == "__main__":
    main()
