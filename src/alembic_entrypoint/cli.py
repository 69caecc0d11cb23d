"""Commands and options. Imports nothing heavy: each command imports what it needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from alembic_entrypoint import __version__
from alembic_entrypoint.errors import Usage
from alembic_entrypoint.settings import TABLE, Settings, is_off

_NAME = "alembic-entrypoint"


def run_command_line(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code. Raises Ended."""
    try:
        return int(program.main(arguments, prog_name=_NAME, standalone_mode=False) or 0)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        # Somebody may have given the URL as an argument.
        import io

        from alembic_entrypoint.logs import redact

        shown = io.StringIO()
        error.show(shown)
        sys.stderr.write(redact(shown.getvalue()))
        return Usage.exit_code
    except click.Abort:
        return Usage.exit_code


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for each setting."""
    for row in reversed(TABLE):
        if row.option:
            default = f" [{row.default}]" if row.default else ""
            command = click.option(row.option, row.field, help=f"{row.meaning}{default}", metavar="TEXT")(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name=_NAME)
def program() -> None:
    """Start an app only when its database is at the revision that it needs."""


_VARIABLES = "Every option is also a variable: --lock-wait is ALEMBIC_ENTRYPOINT_LOCK_WAIT. The option wins."


@program.command(context_settings={"allow_interspersed_args": False}, epilog=_VARIABLES)
@with_settings
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def run(command: tuple[str, ...], **options: str | None) -> None:
    """Settle the database, then become COMMAND: the ENTRYPOINT of an image."""
    from alembic_entrypoint.launch import become_if_off

    become_if_off(command, _given(options))
    from alembic_entrypoint.start import run_plainly

    run_plainly(command, _given(options))


@program.command(epilog=_VARIABLES)
@with_settings
def migrate(**options: str | None) -> int:
    """Do the same without starting anything: release commands, Jobs, init containers."""
    given = _given(options)
    if is_off(os.environ, given):
        return 0
    settings = _settings(given)
    if settings.mode == "await":
        from alembic_entrypoint.commands.awaiting import await_and_become

        return await_and_become(settings, "head", ())
    from alembic_entrypoint import start

    start.settle(settings, start.Steps())
    return 0


@program.command("await", epilog=_VARIABLES)
@with_settings
@click.argument("what", type=click.Choice(["connection", "head"]))
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def wait_for(what: str, command: tuple[str, ...], **options: str | None) -> int:
    """Wait until the database answers, or is where this image needs it; then become COMMAND. Never migrates."""
    from alembic_entrypoint.commands.awaiting import await_and_become

    return await_and_become(_settings(_given(options)), what, command)


@program.command(epilog=_VARIABLES)
@with_settings
@click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout")
@click.option("--sql", "as_sql", is_flag=True, help="the SQL that would run, on stdout")
@click.option("--prove", "proves", is_flag=True, help="where only a proof can tell, prove: in a scratch database")
def plan(as_json: bool, as_sql: bool, proves: bool, **options: str | None) -> int:
    """Say what `run` would do, and why; change nothing."""
    settings = _settings(_given(options))
    from alembic_entrypoint.commands.plan import plan as make_plan

    return make_plan(settings, as_json=as_json, as_sql=as_sql, proves=proves, write=click.echo)


@program.command(epilog=_VARIABLES)
@with_settings
@click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout")
def history(as_json: bool, **options: str | None) -> int:
    """Tell who migrated what, when, from which image, and how it ended."""
    settings = _settings(_given(options))
    from alembic_entrypoint.commands.history import history as tell

    return tell(settings, as_json=as_json, write=click.echo)


@program.command(epilog=_VARIABLES)
@with_settings
@click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout")
@click.option(
    "--prove", "proves", is_flag=True, help="see in a scratch database whether the schema is what it should be"
)
def diagnose(as_json: bool, proves: bool, **options: str | None) -> int:
    """Answer what a person asks first, from whatever is reachable, and say what to do now; change nothing."""
    from alembic_entrypoint.commands.diagnose import diagnose as examine

    return examine(os.environ, _given(options), as_json=as_json, proves=proves, write=click.echo)


# -1 is a revision, not an option.
@program.command(epilog=_VARIABLES, context_settings={"ignore_unknown_options": True})
@with_settings
@click.option("--yes", is_flag=True, help="do not ask")
@click.argument("rev")
def downgrade(rev: str, yes: bool, **options: str | None) -> int:
    """Undo migrations down to REV: a revision, base, or -1 for the last one. Asks first."""
    settings = _settings(_given(options))
    from alembic_entrypoint.commands.downgrade import downgrade as go_down

    return go_down(settings, rev, is_confirmed=yes, write=click.echo)


@program.command(epilog=_VARIABLES)
@with_settings
@click.option("--unproven", is_flag=True, help="record it though nothing is proved, after the database's name is typed")
@click.option("--yes", is_flag=False, flag_value="", metavar="[NAME]", help="do not ask; NAME is the database's")
@click.argument("revs", nargs=-1, required=True, metavar="REV...")
def record(revs: tuple[str, ...], unproven: bool, yes: str | None, **options: str | None) -> int:
    """Record REV, after a proof that the schema is that revision's. Asks first. The manual way out."""
    settings = _settings(_given(options))
    from alembic_entrypoint.commands.record import record as record_by_hand

    return record_by_hand(settings, revs, unproven=unproven, yes=yes, write=click.echo)


@program.command(epilog=_VARIABLES)
@with_settings
@click.option("--yes", metavar="NAME", help="do not ask; NAME is the database's")
def rebuild(yes: str | None, **options: str | None) -> int:
    """For development: drop everything that the migrations made, and migrate again. Asks for the database's name."""
    settings = _settings(_given(options))
    from alembic_entrypoint.commands.rebuild import rebuild as drop_and_migrate

    return drop_and_migrate(settings, yes=yes, write=click.echo)


@program.command()
@click.argument("paths", nargs=-1, type=click.Path())
@click.option("--dry-run", is_flag=True, help="say what would be removed")
def clean(paths: tuple[str, ...], dry_run: bool) -> int:
    """Remove stale bytecode below PATHS (default: here): for a Dockerfile's RUN, or by hand."""
    from alembic_entrypoint.commands.clean import clean as remove

    return remove(paths or (".",), dry_run, click.echo)


@program.command()
@click.argument("platforms", nargs=-1, metavar="[PLATFORM]…")
@click.option("--yes", is_flag=True, help="change files that exist without asking")
def init(platforms: tuple[str, ...], yes: bool) -> int:
    """Write the files that each PLATFORM needs; shows a diff and asks before it changes a file that exists.

    PLATFORM: docker, compose, railway, heroku, fly, render, kubernetes or github-actions; without one, what is found
    in the current folder.
    """
    from pathlib import Path

    from alembic_entrypoint.commands.init import init as write_files

    asked = click.confirm if sys.stdin.isatty() and sys.stdout.isatty() else None
    return write_files(platforms, Path.cwd(), yes=yes, write=click.echo, confirm=asked)


@program.command()
@click.option("--serve", is_flag=True, help="keep the example service up on loopback until Ctrl-C")
def demo(serve: bool) -> int:
    """Show the whole story on an embedded PostgreSQL, in a temporary folder."""
    from alembic_entrypoint.commands.demo import demo as show

    return show(click.echo, serve=serve)


def _given(options: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}


def _settings(given: dict[str, str]) -> Settings:
    from alembic_entrypoint.start import read_settings

    return read_settings(given)
