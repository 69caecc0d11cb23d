"""Run the user's `env.py` as Alembic does, and see what it sees: configuration, migrations, connection, version table.

Public Alembic API where there is one. The private names used here are few and are tried on the lowest and the newest
supported version: `ScriptDirectory._load_revisions`, `Script._from_path`, `ScriptDirectory._upgrade_revs` and
`_downgrade_revs`, `MigrationContext._ensure_version_table` and `_version`.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionMap
from sqlalchemy import text

from alembic_entrypoint.bytecode import remove_stale
from alembic_entrypoint.worker.configuration import DRIVERS, configured, read_configuration, set_url
from alembic_entrypoint.worker.connections import Made, Policy
from alembic_entrypoint.worker.failures import Unusable
from alembic_entrypoint.worker.messages import Message, Request

LEDGER_SCHEMA = "alembic_entrypoint"
#: Where paths are shown from; env.py may go elsewhere.
_FOLDER = os.getcwd()


class Environment:
    """One run of `env.py`."""

    def __init__(self, request: Request, connections: Policy) -> None:
        """Read the configuration and find the migrations. Raises Unusable."""
        self.request = request
        self.connections = connections
        self.config = read_configuration(request)
        self.variables = watch_variables()
        self.configured_place, self.configured_url = configured(self.config)
        self._driver = request.driver
        if request.is_given and request.parameters is not None:
            self._driver = set_url(self.config, request)
        try:
            self.script = ScriptDirectory.from_config(self.config)
        except Exception as error:
            raise Unusable(f"the migrations were not found: {error}") from error
        self.unloadable: list[str] = []
        self.scripts: list[Any] = []
        self.is_loaded = False
        self._locations = _locations(self.script)
        self.cleaned = self._clean() if request.is_cleaning else None

    def _clean(self) -> Message:
        """Remove the bytecode in the migrations' folders that can be wrong; a read-only file system is no error."""
        return remove_stale(self.folders, sourceless=self.script.sourceless).document()

    @property
    def folders(self) -> list[str]:
        """Name every folder that the migrations are in."""
        return [str(self.script.dir), *_locations(self.script)]

    def load(self) -> None:
        """Load every migration file once, noting each that does not load; Alembic uses what was loaded."""
        self.unloadable.clear()
        with _collecting(self.unloadable):
            self.scripts = list(self.script._load_revisions())
        self.script.revision_map = RevisionMap(lambda: iter(self.scripts))
        self._locations = _locations(self.script)
        self.is_loaded = True

    def migrations(self) -> list[Message]:
        """Describe the migrations, in the form of `facts.Migration`."""
        return [
            {
                "revision": str(each.revision),
                "parents": _words(each.down_revision),
                "depends_on": _words(self._resolved(each.dependencies)),
                "replaces": _words(getattr(each.module, "replaces", None)),
                "oldest_compatible": getattr(each.module, "oldest_compatible", None),
                "path": shown(each.path),
                "doc": each.doc or "",
            }
            for each in self.scripts
        ]

    def loaded(self) -> Message:
        """Tell what was loaded, and which variables that has read."""
        return {
            "migrations": self.migrations(),
            "unloadable": self.unloadable,
            "variables": sorted(self.variables),
        }

    def _resolved(self, dependencies: Any) -> Any:
        """`depends_on` may name a branch label; give the revision that carries it."""
        if not dependencies:
            return ()
        labels = {label: each.revision for each in self.scripts for label in each._orig_branch_labels}
        return [labels.get(each, each) for each in _words(dependencies)]

    def prepare(self) -> None:
        """Load what `env.py` and an upgrade will need, while a fork looks."""
        self.load()
        with suppress(Exception):
            if self._driver in DRIVERS:
                import_module(self._driver)
            self.script.get_heads()

    def target_revisions(self) -> list[str]:
        """Resolve `<branch>@head` as Alembic does. Raises Unusable."""
        try:
            return [each.revision for each in self.script.get_revisions(self.request.target) if each]
        except Exception as error:
            raise Unusable(f"the target {self.request.target!r} means nothing here: {error}") from error

    def run(self, at_migrations: Callable[[tuple[str, ...], Any], Any], **options: Any) -> None:
        """Execute `env.py`; where it runs the migrations, call back with what is recorded and the context.

        Raises Unusable where it migrates something else than one PostgreSQL database.
        """
        reached: list[bool] = []
        self.moved = False

        def migrations(recorded: tuple[str, ...], context: Any) -> Any:
            reached.append(True)
            if _locations(self.script) != self._locations:
                # Prefect chooses its version locations in env.py.
                self.moved = True
                self.load()
            return at_migrations(recorded, context)

        environment = EnvironmentContext(
            self.config,
            self.script,
            fn=migrations,
            destination_rev=self.request.downgrade or self.request.target,
            **options,
        )
        environment.configure = self._examining(environment.configure)  # type: ignore[method-assign]
        with environment:
            try:
                self.script.run_env()
            except SystemExit as error:
                if not reached or error.code not in (None, 0):
                    raise
        if not reached and not options.get("as_sql"):
            raise Unusable("env.py ended without calling context.run_migrations()")

    def _examining(self, configure: Callable[..., None]) -> Callable[..., None]:
        """Look at each connection that reaches `configure()`."""
        calls: list[bool] = []

        @functools.wraps(configure)
        def examined(connection: Any = None, **keys: Any) -> None:
            calls.append(True)
            if len(calls) > 1:
                raise Unusable(
                    "env.py calls context.configure() more than once in one run, as Alembic's multidb template and "
                    "loops over tenants do: several databases or schemas in one run cannot be settled together"
                )
            if connection is not None:
                self.made = self._reached(connection)
            configure(connection=connection, **keys)

        return examined

    def _reached(self, connection: Any) -> Made:
        dialect = connection.dialect.name
        if dialect != "postgresql":
            raise Unusable(f"env.py migrates a {dialect} database, not PostgreSQL")
        driver_connection = connection.connection.driver_connection
        try:
            return self.connections.made[driver_connection]
        except (KeyError, TypeError):
            name = type(driver_connection).__module__.partition(".")[0]
            raise Unusable(
                f"env.py connects through {name}, whose connections cannot be watched; "
                "use psycopg, psycopg2 or asyncpg for the migrations"
            ) from None

    made: Made | None = None
    #: whether env.py chose other version locations than the configuration names
    moved = False

    def inputs(self, schema: str | None) -> Message:
        """Say what was taken into account, in the form of `facts.Inputs`; `schema` is the version table's."""
        folders = [
            os.path.realpath(os.path.join(_FOLDER, each)) for each in (self.script.dir, *_locations(self.script))
        ]
        return {
            "folders": list(dict.fromkeys(folders)),
            "variables": sorted(self.variables),
            "is_fixed": not (self.moved or schema or self.script.sourceless),
        }


def watch_variables() -> set[str]:
    """Note from now on which variables of the environment are read; `*` for all of them."""
    read: set[str] = set()

    class Watched(type(os.environ)):  # type: ignore[misc]
        def __getitem__(self, name: Any) -> Any:
            read.add(os.fsdecode(name) if isinstance(name, (str, bytes)) else "*")
            return super().__getitem__(name)

        def __iter__(self) -> Any:
            read.add("*")
            return super().__iter__()

    for environment in (os.environ, os.environb):
        environment.__class__ = Watched
    return read


def look(context: Any, recorded: tuple[str, ...]) -> Message:
    """Read what the database holds, over the connection of `env.py` itself, so that its search_path counts.

    Catalog pages: pg_class, pg_namespace, pg_attribute, pg_depend.
    """
    connection = context.connection
    table, schema = context.version_table, context.version_table_schema
    prepare = connection.dialect.identifier_preparer
    qualified = (prepare.quote_schema(schema) + "." if schema else "") + prepare.quote(table)
    found = connection.execute(
        text(
            "SELECT n.nspname, a.atttypmod FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'version_num' "
            "WHERE c.oid = pg_catalog.to_regclass(:qualified)"
        ),
        {"qualified": qualified},
    ).first()
    # As text: psycopg2 gives an array of names as it is written.
    path = connection.execute(text("SELECT pg_catalog.array_to_json(pg_catalog.current_schemas(false))::text")).scalar()
    search_path: list[str] = json.loads(path or "[]")
    resolved = found[0] if found else schema or next(iter(search_path), None)
    return {
        "recorded": list(recorded),
        "search_path": search_path,
        "version_table": {
            "name": table,
            "schema": schema,
            "resolved_schema": resolved or "public",
            "exists": found is not None,
            "width": _width(found[1]) if found else getattr(context._version.c.version_num.type, "length", None),
        },
        "tables": [] if recorded else _tables(connection, resolved, table),
    }


def _width(typmod: int | None) -> int | None:
    """varchar(n) has n + 4 as its type modifier; text and varchar have -1."""
    return typmod - 4 if typmod is not None and typmod > 0 else None


def _tables(connection: Any, schema: str | None, version_table: str) -> list[str]:
    rows = connection.execute(
        text(
            "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname <> 'information_schema' "
            "AND n.nspname !~ '^pg_' AND n.nspname <> :ledger "
            "AND NOT (n.nspname = :schema AND c.relname = :version_table) "
            "AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass "
            "AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1"
        ),
        {"ledger": LEDGER_SCHEMA, "schema": schema or "public", "version_table": version_table},
    )
    return [row[0] for row in rows]


def versions() -> dict[str, str]:
    """Tell what is installed of that with which migrations are run."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("alembic", "sqlalchemy", "psycopg", "psycopg2", "psycopg2-binary", "asyncpg"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def shown(path: str) -> str:
    """Write a path as it is from where the worker was started."""
    path, here = os.path.normpath(path), os.path.join(_FOLDER, "")
    return path[len(here) :] if path.startswith(here) else os.path.relpath(path, _FOLDER)  # which is slow


def _locations(script: ScriptDirectory) -> tuple[str, ...]:
    # Alembic keeps what it finds at the first look, which in plain Alembic comes after env.py has run.
    script.__dict__.pop("_version_locations", None)
    return tuple(str(each) for each in script._version_locations)


@contextmanager
def _collecting(unloadable: list[str]) -> Iterator[None]:
    """Note every migration file that does not load, instead of ending at the first."""
    # Alembic before 1.16 has the file's loading in _from_filename, which _from_path calls.
    name = "_from_filename" if hasattr(Script, "_from_filename") else "_from_path"
    original = Script.__dict__[name]

    def collecting(cls: type[Script], *arguments: Any) -> Script | None:
        try:
            loaded: Script | None = original.__func__(cls, *arguments)
        except Exception as error:
            where = shown(os.path.join(*map(str, arguments[1:])))
            unloadable.append(f"{where} does not load: {type(error).__name__}: {error}")
            return None
        return loaded

    setattr(Script, name, classmethod(collecting))
    try:
        yield
    finally:
        setattr(Script, name, original)


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(each) for each in value]
