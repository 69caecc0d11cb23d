"""`python -m alembic_entrypoint`, and the `alembic-entrypoint` command."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

from alembic_entrypoint.boundary import guard


def main() -> NoReturn:
    """Run the command line."""
    # What is imported from here on stays; looking through it for garbage is a tenth of a start with nothing to do.
    gc.disable()
    guard(_body)


def _body() -> int:
    # Imported here, so that signals are caught before it.
    from alembic_entrypoint.launch import become_if_off

    if (command := plain_run(sys.argv[1:])) is not None:
        become_if_off(command)
        from alembic_entrypoint.start import run_plainly

        run_plainly(command)
    gc.enable()
    from alembic_entrypoint.cli import run_command_line

    return run_command_line()


def plain_run(arguments: Sequence[str]) -> list[str] | None:
    """Give CMD of a plain `run [--] CMD [ARG…]`, for which no command line library is needed; None for all others."""
    if arguments[:1] != ["run"]:
        return None
    command = list(arguments[2:] if arguments[1:2] == ["--"] else arguments[1:])
    is_plain = bool(command) and (arguments[1] == "--" or not command[0].startswith("-"))
    return command if is_plain else None


if __name__ == "__main__":
    main()
