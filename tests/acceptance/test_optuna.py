"""The migrations inside the PyPI package optuna: an ini that says SQLite, and revision ids with dots."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from commands import entrypoint
from servers import Database, Server, fresh_database

RDB = Path(optuna.__file__).parent / "storages" / "_rdb"


@pytest.fixture(params=[pytest.param("pg16", marks=pytest.mark.wide), "server"])
def each_server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


def dump(server: Server, database: Database) -> str:
    """Write the schema as text, without the lines that differ between any two dumps."""
    done = subprocess.run(
        [str(server.programs / "pg_dump"), "-s", "-N", "alembic_entrypoint", "-d", database.url],
        capture_output=True,
        text=True,
        check=True,
    )
    return re.sub(r"^(--.*|\\(un)?restrict .*)$", "", done.stdout, flags=re.MULTILINE)


def test_optunas_migrations_give_what_plain_alembic_gives(each_server: Server) -> None:
    ini = str(RDB / "alembic.ini")
    with fresh_database(each_server) as ours, fresh_database(each_server) as plain:
        env = {"DATABASE_URL": ours.url, "ALEMBIC_ENTRYPOINT_CONFIG": ini}
        result = entrypoint("migrate", cwd=RDB, env=env)
        assert result.code == 0, result.stderr
        upgraded = result.named("schema.upgraded")[0]
        assert upgraded["migrations"] >= 5
        assert all(re.match(r"v\d\.\d", each) for each in upgraded["after"])

        url = plain.url.replace("postgresql://", "postgresql+psycopg://")
        script = (
            "from alembic.config import Config; from alembic import command; import sys; "
            "c = Config(sys.argv[1]); c.set_main_option('sqlalchemy.url', sys.argv[2]); command.upgrade(c, 'head')"
        )
        subprocess.run([sys.executable, "-c", script, ini, url], cwd=RDB, check=True, capture_output=True)
        assert dump(each_server, ours) == dump(each_server, plain)
        assert ours.query("TABLE alembic_version") == plain.query("TABLE alembic_version")

        again = entrypoint("run", "echo", "started", cwd=RDB, env=env)
        assert (again.code, again.stdout, again.state) == (0, "started\n", "CURRENT")
        assert not again.named("lock.acquired")
