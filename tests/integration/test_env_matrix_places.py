"""Where `env.py` takes its URL, its files and its packages from: each form works unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import alembic
import pytest
from env_forms import (
    DEAD,
    assert_migrated,
    env_on,
    env_py,
    ini_with,
    migrate,
    recorded,
    tables,
    tree_in,
)

from commands import entrypoint
from projects import DRIVERS, Project, project
from servers import Database, Server, fresh_database

pytestmark = pytest.mark.wide

ALEMBIC = str(Path(sys.executable).with_name("alembic"))
#: pyproject and pyproject_async came with Alembic 1.16.
TEMPLATES = sorted({each.name for each in (Path(alembic.__file__).parent / "templates").iterdir()} - {"multidb"})
TEMPLATES = [name for name in TEMPLATES if not name.startswith("_")]


def init(folder: Path, template: str) -> Project:
    """Make a project with the real `alembic init`, and two migrations."""
    if template.startswith("pyproject"):
        (folder / "pyproject.toml").write_text("[project]\nname = 'app'\nversion = '1'\n")
    subprocess.run([ALEMBIC, "init", "-t", template, "migrations"], cwd=folder, check=True, capture_output=True)
    made = Project(folder)
    made.add_line(2)
    return made


def driver_of(template: str) -> str:
    return "asyncpg" if "async" in template else "psycopg"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_of_alembic_with_the_url_in_its_ini(tmp_path: Path, database: Database, template: str) -> None:
    tree = init(tmp_path, template)
    ini = tmp_path / "alembic.ini"
    placeholder = "driver://user:pass@localhost/dbname"
    assert placeholder in ini.read_text()
    ini.write_text(ini.read_text().replace(placeholder, database.url_on(driver_of(template))))
    assert_migrated(migrate(tree), database)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_of_alembic_with_the_url_in_the_environment(
    tmp_path: Path, database: Database, template: str
) -> None:
    tree = init(tmp_path, template)
    result = migrate(tree, DATABASE_URL=database.url_on(driver_of(template)))
    assert_migrated(result, database)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_of_alembic_with_the_url_in_an_imported_settings_object(
    tmp_path: Path, database: Database, template: str
) -> None:
    tree = init(tmp_path, template)
    tree.write("app/settings.py", f"class Settings:\n    url = {database.url_on(driver_of(template))!r}\n")
    env = tmp_path / "migrations" / "env.py"
    text = env.read_text()
    assert "config = context.config\n" in text
    setting = "from app.settings import Settings\nconfig.set_main_option('sqlalchemy.url', Settings.url)\n"
    env.write_text(text.replace("config = context.config\n", "config = context.config\n" + setting))
    assert_migrated(migrate(tree), database)


@pytest.mark.parametrize("driver", DRIVERS)
def test_settings_that_build_the_url_from_many_variables_are_asked_of_env_py(
    tmp_path: Path, server: Server, database: Database, driver: str
) -> None:
    env = env_on(driver, "settings.url")
    tree = tree_in(tmp_path, "from app.core.config import settings" + env)
    tree.write(
        "app/core/config.py",
        f"""
        import os
        from urllib.parse import quote

        class Settings:
            @property
            def url(self):
                user, password = os.environ["POSTGRES_USER"], quote(os.environ["POSTGRES_PASSWORD"])
                place = os.environ["POSTGRES_SERVER"] + ":" + os.environ["POSTGRES_PORT"]
                return f"postgresql+{driver}://{{user}}:{{password}}@{{place}}/{{os.environ['POSTGRES_DB']}}"

        settings = Settings()
        """,
    )
    tree.write("alembic.ini", ini_with("driver://user:pass@localhost/dbname", "prepend_sys_path = ."))
    variables = {
        "POSTGRES_SERVER": "127.0.0.1",
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": "s3cr@t/pass",
        "POSTGRES_DB": database.name,
    }
    result = migrate(tree, **variables)
    assert_migrated(result, database)
    assert "s3cr" not in result.stderr


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_url_hard_coded_to_a_dead_host_gives_way_to_database_url(
    tmp_path: Path, database: Database, driver: str
) -> None:
    hard_coded = repr(DEAD.replace("postgresql:", f"postgresql+{driver}:"))
    tree = tree_in(tmp_path, env_on(driver, hard_coded))
    assert_migrated(migrate(tree, database), database)


def test_a_url_hard_coded_to_another_live_database_gives_way_to_database_url(
    tmp_path: Path, server: Server, database: Database
) -> None:
    with fresh_database(server) as other:
        tree = tree_in(tmp_path, env_py(f"create_engine({other.url_on('psycopg')!r})"))
        assert_migrated(migrate(tree, database), database)
        assert tables(other) == []


def test_an_ini_that_names_a_dead_host_gives_way_to_database_url(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py(), ini=ini_with(DEAD.replace("postgresql:", "postgresql+psycopg2:")))
    assert_migrated(migrate(tree, database), database)


def test_an_ini_that_names_sqlite_gives_way_to_database_url(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py(), ini=ini_with("sqlite:///app.db"))
    assert_migrated(migrate(tree, database), database)
    assert not (tmp_path / "app.db").exists()


def test_a_placeholder_url_in_the_ini_that_env_py_overrides_does_not_count(tmp_path: Path, database: Database) -> None:
    env = env_py(above="config.set_main_option('sqlalchemy.url', os.environ['APP_DB'])")
    tree = tree_in(tmp_path, env, ini=ini_with("postgresql://user:pass@localhost/db"))
    assert_migrated(migrate(tree, APP_DB=database.url_on("psycopg")), database)


def test_the_same_database_by_another_name_is_the_target(tmp_path: Path, database: Database) -> None:
    elsewhere = database.url_on("psycopg").replace("127.0.0.1", "localhost")
    assert elsewhere != database.url_on("psycopg")
    tree = tree_in(tmp_path, env_py(f"create_engine({elsewhere!r})"))
    assert_migrated(migrate(tree, database), database)


def test_several_hosts_in_database_url_reach_the_one_that_answers(
    tmp_path: Path, server: Server, database: Database
) -> None:
    for n, driver in enumerate(DRIVERS, 1):
        tree = tree_in(tmp_path / driver, env_on(driver))
        url = f"postgresql+{driver}://postgres@127.0.0.1:1,127.0.0.1:{server.port}/{database.name}"
        result = migrate(tree, None, "--target", "r1" if n == 1 else "r2", DATABASE_URL=url)
        assert result.code == 0, result.message
    assert recorded(database) == ["r2"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_unix_socket_in_database_url_is_used(tmp_path: Path, server: Server, database: Database, driver: str) -> None:
    tree = tree_in(tmp_path, env_on(driver))
    url = f"postgresql+{driver}://postgres@/{database.name}?host={server.sockets}&port={server.port}"
    assert_migrated(migrate(tree, DATABASE_URL=url), database)


def test_an_interpolated_percent_in_the_url_of_the_ini(tmp_path: Path, database: Database) -> None:
    url = database.url_on("psycopg").replace("postgres@", "postgres:per%25cent@")
    tree = tree_in(tmp_path, env_py(), ini=ini_with(url))
    assert "per%%25cent" in (tmp_path / "alembic.ini").read_text()
    assert_migrated(migrate(tree), database)
    assert migrate(tree, DATABASE_URL=url).state == "CURRENT"


@pytest.mark.parametrize("how", ["option", "variable", "alembic_config"])
def test_an_ini_that_is_not_in_the_working_directory(tmp_path: Path, database: Database, how: str) -> None:
    tree = tree_in(tmp_path / "deep" / "er", env_py())
    ini = str(tree.folder / "alembic.ini")
    arguments = ["--config", ini] if how == "option" else []
    variables = {"variable": {"ALEMBIC_ENTRYPOINT_CONFIG": ini}, "alembic_config": {"ALEMBIC_CONFIG": ini}}
    env = {"DATABASE_URL": database.url, **variables.get(how, {})}
    assert_migrated(entrypoint("migrate", *arguments, cwd=tmp_path, env=env), database)


def test_a_relative_script_location_counts_from_the_working_directory(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py())
    tree.write("conf/alembic.ini", ini_with("x://").replace("%(here)s/", ""))
    (tmp_path / "alembic.ini").unlink()
    assert_migrated(migrate(tree, database, "--config", "conf/alembic.ini"), database)


def test_another_section_of_the_ini(tmp_path: Path, database: Database) -> None:
    ini = ini_with("sqlite://").replace("[alembic]", "[tenant]")
    tree = tree_in(tmp_path, env_py(), ini=ini)
    assert_migrated(migrate(tree, database, "--section", "tenant"), database)


def test_script_and_versions_inside_a_package(tmp_path: Path, database: Database) -> None:
    tree = project(tmp_path, env=env_py())
    (tmp_path / "migrations").rename(tmp_path / "unused")
    tree.write("app/__init__.py", "")
    tree.write("app/db/__init__.py", "")
    tree.write("app/db/env.py", env_py())
    tree.add("r1", "op.execute('CREATE TABLE t1 ()')", folder="app/db/versions")
    tree.add("r2", "op.execute('CREATE TABLE t2 ()')", down="r1", folder="app/more")
    tree.write("app/more/__init__.py", "")
    tree.write("app/db/versions/__init__.py", "")
    tree.write(
        "alembic.ini",
        """
        [alembic]
        script_location = app:db
        prepend_sys_path = .
        version_locations = app:db/versions app:more
        """,
    )
    assert_migrated(migrate(tree, database), database)


@pytest.mark.parametrize("is_package", [False, True])
def test_a_folder_named_alembic_in_the_working_directory(tmp_path: Path, database: Database, is_package: bool) -> None:
    tree = tree_in(tmp_path, env_py(), ini=ini_with("x://", "prepend_sys_path = ."))
    (tmp_path / "migrations").rename(tmp_path / "alembic")
    if is_package:
        tree.write("alembic/__init__.py", "")
    tree.write("alembic.ini", (tmp_path / "alembic.ini").read_text().replace("/migrations", "/alembic"))
    assert_migrated(migrate(tree, database), database)


@pytest.fixture
def other_python(tmp_path: Path) -> str:
    """Make a virtual environment that has the app's packages, and not this program nor what only it needs."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    theirs = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    ours = Path(sysconfig.get_path("purelib"))
    for each in ours.iterdir():
        if not any(word in each.name.lower() for word in ("entrypoint", "structlog", "tenacity", "click", ".pth")):
            (theirs / each.name).symlink_to(each)
    (theirs / "only_there.py").write_text("")
    return str(home / "bin" / "python")


def test_python_names_the_interpreter_that_has_the_apps_packages(
    tmp_path: Path, database: Database, other_python: str
) -> None:
    driver = "asyncpg"
    check = "import importlib.util\nassert importlib.util.find_spec('structlog') is None\nimport only_there\n"
    tree = tree_in(tmp_path, check + env_on(driver))
    result = migrate(tree, DATABASE_URL=database.url_on(driver))
    assert result.code == 78
    result = migrate(tree, DATABASE_URL=database.url_on(driver), ALEMBIC_ENTRYPOINT_PYTHON=other_python)
    assert_migrated(result, database)


def test_a_package_that_is_not_installed_is_named_with_the_interpreter(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py(above="import no_such_package"))
    result = migrate(tree, database)
    assert result.code == 78
    assert "No module named 'no_such_package'" in result.message
    assert f"in {sys.executable}" in result.message
    assert "ALEMBIC_ENTRYPOINT_PYTHON" in result.message
    assert tables(database) == []


def test_a_python_that_does_not_exist_is_named(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py())
    result = migrate(tree, database, ALEMBIC_ENTRYPOINT_PYTHON="/no/such/python")
    assert result.code == 78
    assert "ALEMBIC_ENTRYPOINT_PYTHON is '/no/such/python'" in result.message


def test_a_python_without_alembic_is_named(tmp_path: Path, database: Database, other_python: str) -> None:
    site = Path(sysconfig.get_path("purelib", vars={"base": str(Path(other_python).parent.parent)}))
    os.unlink(site / "alembic")
    tree = tree_in(tmp_path, env_py())
    result = migrate(tree, database, ALEMBIC_ENTRYPOINT_PYTHON=other_python)
    assert result.code == 78
    assert "No module named 'alembic'" in result.message
    assert other_python in result.message


def test_a_missing_configuration_says_where_it_was_looked_for(tmp_path: Path, database: Database) -> None:
    result = entrypoint("migrate", cwd=tmp_path, env={"DATABASE_URL": database.url})
    assert result.code == 78
    assert "there is no " in result.message
    assert str(tmp_path) in result.message


def test_x_arguments_reach_env_py(tmp_path: Path, database: Database) -> None:
    above = "x = context.get_x_argument(as_dictionary=True)\nassert x == {'tenant': 'a=b', 'flag': ''}, x"
    tree = tree_in(tmp_path, env_py(above=above))
    assert_migrated(migrate(tree, database, "--x", "tenant=a=b flag="), database)


def test_what_env_py_sees_of_the_command_is_alembics(tmp_path: Path, database: Database) -> None:
    above = """
import sys
assert config.cmd_opts.revision == "head"
assert config.cmd_opts.cmd[0].__name__ == "upgrade"
assert os.path.basename(config.config_file_name) == "alembic.ini"
assert os.path.basename(sys.argv[0]) == "alembic" and sys.argv[-2:] == ["upgrade", "head"], sys.argv
"""
    tree = tree_in(tmp_path, env_py(above=above))
    assert_migrated(migrate(tree, database), database)
