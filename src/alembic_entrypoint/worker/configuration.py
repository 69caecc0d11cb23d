"""Alembic's configuration, read as the `alembic` command reads it, and the URL in it."""

from __future__ import annotations

import os
import sys
from typing import Any

from alembic.config import CommandLine, Config

from alembic_entrypoint.address import NotAnAddress, Place, parse
from alembic_entrypoint.worker.failures import Unusable
from alembic_entrypoint.worker.messages import Request


def read_configuration(request: Request) -> Config:
    """Read the configuration as the `alembic` command does."""
    arguments = ["-n", request.section]
    if request.config:
        arguments += ["-c", request.config]
    for each in request.x:
        arguments += ["-x", each]
    command = ["upgrade", request.target] if request.downgrade is None else ["downgrade", request.downgrade]
    command += ["--sql"] if request.order == "sql" else []
    line = CommandLine(prog="alembic")
    # What env.py, or a settings library in it, reads of the command line is Alembic's, too.
    sys.argv = ["alembic", *arguments, *command]
    options = line.parser.parse_args(sys.argv[1:])
    files: dict[str, Any]
    if hasattr(line, "_inis_from_config"):  # from Alembic 1.16 on
        toml, ini = line._inis_from_config(options)
        files = {"file_": ini, "toml_file": toml}
    else:
        files = {"file_": options.config}
    if not any(os.path.exists(file) for file in files.values()):
        looked = " or ".join(dict.fromkeys(str(file) for file in files.values()))
        raise Unusable(
            f"no Alembic configuration: there is no {looked} in {os.getcwd()}. "
            "Set ALEMBIC_ENTRYPOINT_CONFIG to where it is, or set the working directory"
        )
    try:
        return Config(ini_section=options.name, cmd_opts=options, **files)
    except Exception as error:
        raise Unusable(f"the Alembic configuration cannot be read: {error}") from error


def configured(config: Config) -> tuple[Place | None, str]:
    """Name the place of `sqlalchemy.url` where that is a PostgreSQL URL, and say what it is, without its secrets."""
    try:
        url = config.get_main_option("sqlalchemy.url")
        if not url:
            return None, "there is none"
        place = parse(url).place
    except NotAnAddress as error:  # another database, a placeholder
        return None, str(error)
    except Exception as error:  # an interpolation that env.py would mend
        return None, f"it cannot be read: {type(error).__name__}"
    return place, str(place)


def set_url(config: Config, request: Request) -> str:
    """Point `sqlalchemy.url` to the target, with the driver that stood there, else the one in the target's URL.

    Gives the driver's name.
    """
    from sqlalchemy.engine import URL

    try:
        there = parse(config.get_main_option("sqlalchemy.url") or "")
        driver = there.driver or request.driver
    except Exception:  # NotAnAddress, or an interpolation that env.py would mend
        driver = request.driver
    driver = driver or _installed_driver()
    target = dict(request.parameters or {})
    place = Place(tuple(target.get("host", "localhost").split(",")), tuple(target.get("port", "5432").split(",")), "")
    single = len(place.hosts) == 1 and not place.hosts[0].startswith("/")
    url = URL.create(
        f"postgresql+{driver}",
        username=target.get("user"),
        password=target.get("password"),
        host=place.hosts[0] if single else None,
        port=int(place.ports[0]) if single and place.ports[0] else None,
        database=target.get("dbname"),
        query={} if single else {"host": target.get("host", ""), "port": target.get("port", "5432")},
    )
    config.set_main_option("sqlalchemy.url", url.render_as_string(hide_password=False).replace("%", "%%"))
    return driver


#: Those whose connections are watched, the one to take first.
DRIVERS = ("psycopg", "psycopg2", "asyncpg")


def _installed_driver() -> str:
    from importlib.util import find_spec

    return next((name for name in DRIVERS if find_spec(name)), DRIVERS[0])
