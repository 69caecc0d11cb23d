"""Stale bytecode makes a real Python or a real Alembic run the wrong code; cleaned, it runs what the sources say.

`Tree` is a folder whose state is compared in twins: one cleaned, one not, the same done to both afterwards.
"""

from __future__ import annotations

import json
import os
import py_compile
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest

from alembic_entrypoint.bytecode import Cleaned, Reason, Stale, find_stale, remove_stale
from alembic_entrypoint.commands.clean import clean
from alembic_entrypoint.errors import Usage
from commands import entrypoint

SOURCES = Path(__file__).parents[2] / "src"
OLD, NEW = 'print("old")\n', 'print("new")\n'
CHECKED, UNCHECKED = PycInvalidationMode.CHECKED_HASH, PycInvalidationMode.UNCHECKED_HASH
DAY = 86_400
NOBODY = 65534


class Tree:
    """A folder with sources and bytecode, and a real Python that runs in it and leaves no bytecode behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def write(self, name: str, source: str, mtime: int | None = None) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        if mtime is not None:
            os.utime(path, (mtime, mtime))
        return path

    def compile(
        self, name: str, to: str | None = None, mode: PycInvalidationMode = PycInvalidationMode.TIMESTAMP
    ) -> Path:
        """Compile a source to its place in `__pycache__`, or `to` another."""
        made = py_compile.compile(
            str(self.folder / name),
            cfile=None if to is None else str(self.folder / to),
            invalidation_mode=mode,
            doraise=True,
        )
        assert made is not None
        return Path(made)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-B", *arguments], cwd=self.folder, env={}, capture_output=True, text=True, timeout=60
        )

    def says(self, *arguments: str) -> str:
        ran = self.run(*arguments)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout.strip()

    def twin(self) -> Tree:
        """Copy everything as it is, times included."""
        copy = self.folder.with_name(self.folder.name + "-cleaned")
        shutil.copytree(self.folder, copy, symlinks=True)
        return Tree(copy)

    def clean(self) -> dict[str, Reason]:
        """Remove what is stale; name what was removed."""
        cleaned = remove_stale([self.folder])
        assert not cleaned.kept
        return {os.path.relpath(stale.path, self.folder): stale.reason for stale in cleaned.removed}

    def stale(self) -> dict[str, Reason]:
        return {os.path.relpath(stale.path, self.folder): stale.reason for stale in find_stale([self.folder])}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "app")


@pytest.fixture
def project(tree: Tree) -> Tree:
    """A project with one revision, `a1`; `heads` needs no database."""
    tree.write("alembic.ini", "[alembic]\nscript_location = %(here)s/migrations\n")
    tree.write("migrations/env.py", 'print("env of the image")\n')
    tree.write("migrations/versions/a1.py", revision("a1"))
    return tree


def revision(name: str, parent: str | None = None) -> str:
    return f"revision = {name!r}\ndown_revision = {parent!r}\n\ndef upgrade():\n    pass\n"


def make_sourceless(project: Tree) -> None:
    with (project.folder / "alembic.ini").open("a") as ini:
        ini.write("sourceless = true\n")


def cached(name: str) -> str:
    return cache_from_source(name)


# What each kind of stale file does, and no longer does


def test_python_runs_an_unchecked_file_instead_of_an_edited_source(tree: Tree) -> None:
    tree.write("app.py", OLD)
    tree.compile("app.py", mode=UNCHECKED)
    tree.write("app.py", "# edited\n" + NEW, mtime=DAY)
    assert tree.says("-c", "import app") == "old"
    assert tree.clean() == {cached("app.py"): Reason.UNCHECKED}
    assert tree.says("-c", "import app") == "new"


def test_alembic_sees_the_revision_of_an_unchecked_file_instead_of_an_edited_source(project: Tree) -> None:
    project.compile("migrations/versions/a1.py", mode=UNCHECKED)
    project.write("migrations/versions/a1.py", revision("a2"))
    assert project.says("-m", "alembic", "heads") == "a1 (head)"
    assert project.clean() == {cached("migrations/versions/a1.py"): Reason.UNCHECKED}
    assert project.says("-m", "alembic", "heads") == "a2 (head)"


def test_a_sourceless_alembic_loads_an_orphan_as_a_revision(project: Tree) -> None:
    project.compile("migrations/versions/a1.py")
    squashed = project.write("migrations/versions/b1.py", revision("b1", "a1"))
    project.compile("migrations/versions/b1.py")
    squashed.unlink()
    cleaned = project.twin()
    assert cleaned.clean() == {cached("migrations/versions/b1.py"): Reason.ORPHAN}
    for image in project, cleaned:
        assert image.says("-m", "alembic", "heads") == "a1 (head)", "without `sourceless` an orphan is ignored"
        make_sourceless(image)
    assert project.says("-m", "alembic", "heads") == "b1 (head)"
    assert cleaned.says("-m", "alembic", "heads") == "a1 (head)"


def test_alembic_runs_the_orphan_of_an_env_py_that_is_gone(project: Tree) -> None:
    env = project.folder / "migrations/env.py"
    project.compile("migrations/env.py")
    env.rename(env.with_name("env_renamed.py"))
    assert "env of the image" in project.says("-m", "alembic", "upgrade", "head", "--sql")
    assert project.clean() == {cached("migrations/env.py"): Reason.ORPHAN}
    ran = project.run("-m", "alembic", "upgrade", "head", "--sql")
    assert ran.returncode != 0
    assert "env of the image" not in ran.stdout
    assert "Can't find Python file" in ran.stdout + ran.stderr


def test_python_runs_a_legacy_file_once_the_source_beside_it_is_deleted(tree: Tree) -> None:
    tree.write("app.py", "try:\n    import extra\nexcept ImportError:\n    print('no extra')\n")
    tree.write("extra.py", OLD)
    tree.compile("extra.py", to="extra.pyc")
    cleaned = tree.twin()
    assert cleaned.clean() == {"extra.pyc": Reason.LEGACY}
    for image in tree, cleaned:
        assert image.says("app.py") == "old", "with the source there, Python prefers it"
        (image.folder / "extra.py").unlink()
    assert tree.says("app.py") == "old"
    assert cleaned.says("app.py") == "no extra"


def test_python_runs_a_legacy_file_beside_its_source_from_a_zip(tree: Tree) -> None:
    tree.write("__main__.py", "import app\n")
    tree.write("app.py", OLD)
    tree.compile("app.py", to="app.pyc", mode=UNCHECKED)
    tree.write("app.py", "# edited\n" + NEW)
    assert tree.says("-c", "import app") == "new"
    tree.says("-m", "zipapp", ".", "-o", "../before.pyz")
    assert tree.says("../before.pyz") == "old"
    assert tree.clean() == {"app.pyc": Reason.LEGACY}
    tree.says("-m", "zipapp", ".", "-o", "../after.pyz")
    assert tree.says("../after.pyz") == "new"


def test_python_runs_an_outdated_file_once_times_are_made_equal(tree: Tree) -> None:
    """As reproducible builds do (`touch -d @0`): what Python had rightly passed over becomes valid."""
    tree.write("app.py", OLD, mtime=0)
    tree.compile("app.py")
    tree.write("app.py", NEW, mtime=DAY)
    cleaned = tree.twin()
    assert cleaned.clean() == {cached("app.py"): Reason.OUTDATED}
    for image in tree, cleaned:
        assert image.says("-c", "import app") == "new"
        os.utime(image.folder / "app.py", (0, 0))
    assert tree.says("-c", "import app") == "old"
    assert cleaned.says("-c", "import app") == "new"


@pytest.mark.parametrize(("source", "mtime"), [("# longer\n" + NEW, 0), (NEW, DAY)], ids=["size", "time"])
def test_python_itself_passes_an_outdated_file_over_and_compiles_at_each_start(
    tree: Tree, source: str, mtime: int
) -> None:
    """The honest half: as long as nothing changes the times, all that an outdated file costs is time."""
    tree.write("app.py", OLD, mtime=0)
    tree.compile("app.py")
    tree.write("app.py", source, mtime=mtime)
    for _ in range(2):
        ran = tree.run("-v", "-c", "import app")
        assert ran.stdout == "new\n"
        assert re.search(r"# code object from .*app\.py", ran.stderr)
    assert tree.clean() == {cached("app.py"): Reason.OUTDATED}
    tree.compile("app.py")
    assert not re.search(r"# code object from .*app\.py", tree.run("-v", "-c", "import app").stderr)


def test_an_edit_that_keeps_time_and_size_is_seen_by_nobody(tree: Tree) -> None:
    """Neither by Python nor by us: the header is equal. docs/bytecode.md says what helps."""
    tree.write("app.py", OLD, mtime=0)
    tree.compile("app.py")
    tree.write("app.py", NEW, mtime=0)
    assert tree.says("-c", "import app") == "old"
    assert tree.clean() == {}
    assert tree.says("-c", "import app") == "old"


# What stays


def test_fresh_bytecode_stays_byte_for_byte(tree: Tree) -> None:
    for name in "app.py", "package/__init__.py", "2024.01_users.py":
        tree.write(name, NEW)
        tree.compile(name)
        optimized = cache_from_source(name, optimization="2")
        tree.compile(name, to=optimized)
        other_python = (tree.folder / cached(name)).with_name(f"{Path(name).stem}.cpython-39.pyc")
        other_python.write_bytes(b"\x61\x0d\r\n" + (tree.folder / cached(name)).read_bytes()[4:])
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in tree.folder.rglob("*.pyc")}
    assert len(before) == 9
    assert tree.clean() == {}
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in tree.folder.rglob("*.pyc")} == before


def test_bytecode_of_another_python_is_judged_by_its_own_header(tree: Tree) -> None:
    tree.write("app.py", OLD, mtime=0)
    cache = tree.folder / "__pycache__"
    cache.mkdir()
    magic = b"\x6f\x0d\r\n"
    (cache / "app.cpython-310.pyc").write_bytes(magic + struct.pack("<III", 0, DAY, len(OLD)))
    (cache / "app.cpython-310.opt-1.pyc").write_bytes(magic + struct.pack("<III", 1, 0, 0))
    (cache / "app.cpython-310.opt-2.pyc").write_bytes(magic + struct.pack("<III", 0, 0, len(OLD)))
    (cache / "gone.pypy310.pyc").write_bytes(b"")
    assert tree.clean() == {
        "__pycache__/app.cpython-310.pyc": Reason.OUTDATED,
        "__pycache__/app.cpython-310.opt-1.pyc": Reason.UNCHECKED,
        "__pycache__/gone.pypy310.pyc": Reason.ORPHAN,
    }


def test_a_checked_hash_stays_because_python_compares_it(tree: Tree) -> None:
    tree.write("app.py", OLD)
    tree.compile("app.py", mode=CHECKED)
    tree.write("app.py", NEW)
    assert tree.says("-c", "import app") == "new"
    assert tree.clean() == {}


def test_a_module_shipped_without_its_source_stays(project: Tree) -> None:
    """Python and Alembic run it, and nothing here can prove that it is not the only copy."""
    project.compile("migrations/env.py", to="migrations/env.pyc")
    (project.folder / "migrations/env.py").unlink()
    project.write("extra.py", OLD)
    project.compile("extra.py", to="extra.pyc")
    (project.folder / "extra.py").unlink()
    assert project.clean() == {}
    assert project.says("-c", "import extra") == "old"
    assert "env of the image" in project.says("-m", "alembic", "upgrade", "head", "--sql")


def test_nothing_is_removed_from_a_sourceless_tree(project: Tree) -> None:
    project.write("migrations/versions/b1.py", revision("b1", "a1"))
    for name in "a1", "b1":
        project.compile(f"migrations/versions/{name}.py", mode=UNCHECKED)
        (project.folder / f"migrations/versions/{name}.py").unlink()
    assert len(project.stale()) == 2
    assert remove_stale([project.folder], sourceless=True) == Cleaned((), ())
    make_sourceless(project)
    assert project.says("-m", "alembic", "heads") == "b1 (head)"


# What a person names is cleaned without Alembic being asked: its configuration is found all the same

SOURCELESS = "[alembic]\nscript_location = %(here)s/migrations\nsourceless = true\n"
BELOW = SOURCELESS.replace("%(here)s", "%(here)s/..")


@dataclass(frozen=True)
class Named:
    """A way to name folders of the image in `app`: a command, from where it is run, and where the configuration is."""

    command: str
    cwd: str = "app"
    env: Mapping[str, str] = field(default_factory=dict)
    ini: str = "alembic.ini"
    text: str = SOURCELESS
    section: str = "alembic"


NAMED = {
    "here, at a start": Named("migrate", env={"ALEMBIC_ENTRYPOINT_CLEAN": "."}),
    "the versions, at a start": Named("migrate", env={"ALEMBIC_ENTRYPOINT_CLEAN": "migrations/versions"}),
    "set elsewhere, at a start": Named("migrate --clean . --config app/x/y", cwd=".", ini="x/y", text=BELOW),
    "here": Named("clean"),
    "below its ini": Named("clean {app}/migrations", cwd="/"),
    "a cache": Named("clean {app}/migrations/versions/__pycache__", cwd="/"),
    "through a link": Named("clean linked/versions", cwd="."),
    "above its ini": Named("clean ."),
    "with an ini of another name": Named("clean {app}/migrations/versions", cwd="/", ini="conf.ini"),
    "with an ini that Alembic is told of": Named(
        "clean migrations", env={"ALEMBIC_CONFIG": "x/y"}, ini="x/y", text=BELOW
    ),
    "with an ini that we are told of": Named(
        "clean migrations", env={"ALEMBIC_ENTRYPOINT_CONFIG": "x/y"}, ini="x/y", text=BELOW
    ),
    "with an ini beside the migrations": Named("clean .", ini="conf/alembic.ini", text=BELOW),
    "with another section": Named(
        "clean .", text="[alembic]\n" + SOURCELESS.replace("[alembic]", "[tenant]"), section="tenant"
    ),
}


@pytest.mark.parametrize("way", NAMED.values(), ids=NAMED)
def test_the_only_copy_of_a_migration_stays_however_its_folder_is_named(project: Tree, way: Named) -> None:
    (project.folder / "alembic.ini").unlink()
    project.write(way.ini, way.text)
    (project.folder.parent / "linked").symlink_to(project.folder / "migrations")
    only = project.compile("migrations/versions/a1.py")
    (project.folder / "migrations/versions/a1.py").unlink()
    # The port on which nobody listens: a start cleans before it waits for the database.
    given = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing", "ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT": "0"}
    command = way.command.format(app=project.folder).split()
    ended = entrypoint(*command, cwd=project.folder.parent / way.cwd, env={**given, **way.env})
    assert ended.code == (69 if "migrate" in command else 0), ended.stderr
    assert only.exists(), ended.stdout + ended.stderr
    assert project.says("-m", "alembic", "-c", way.ini, "-n", way.section, "heads") == "a1 (head)"


def test_what_is_no_loss_is_removed_beside_a_sourceless_tree(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own folder is left alone; elsewhere only orphans stay, since a configuration may name any folder."""
    for folder in "conf", "other":
        tree.write(f"{folder}/app.py", NEW)
        tree.compile(f"{folder}/app.py", to=f"{folder}/app.pyc")
    tree.write("conf/alembic.ini", BELOW)
    orphan = tree.write("other/__pycache__/gone.cpython-311.pyc", "")
    monkeypatch.chdir(tree.folder)
    lines: list[str] = []
    assert clean(["."], False, lines.append) == 0
    assert sorted(tree.folder.rglob("*.pyc")) == [tree.folder / "conf/app.pyc", orphan]
    assert lines[0].startswith("./conf/alembic.ini says sourceless = true: ")
    assert lines[-2] == (
        "./other/__pycache__/gone.cpython-311.pyc: orphan: its source is gone; not removed: it may be the only copy of "
        "a migration: ./conf/alembic.ini says sourceless = true"
    )
    assert lines[-1] == "1 stale file removed, 1 could not be"


def test_files_that_are_no_bytecode_of_a_known_kind_stay(tree: Tree) -> None:
    tree.write("app.py", NEW)
    cache = tree.folder / "__pycache__"
    cache.mkdir()
    (cache / "app.cpython-311.pyc").write_bytes(b"")
    (cache / "app.cpython-312.pyc").write_bytes(MAGIC_NUMBER + b"\1\0\0")
    (cache / "app.pyc").write_bytes(b"no tag")
    (cache / "gone.cpython-311.pyc.140234").write_bytes(b"left by a write that was cut off")
    os.mkfifo(cache / "app.cpython-313.pyc")
    assert tree.clean() == {}


# Links, places and the walk


def test_no_link_is_followed_and_none_removed(tree: Tree, tmp_path: Path) -> None:
    outside = Tree(tmp_path / "outside")
    outside.write("gone.py", OLD)
    orphan = outside.compile("gone.py")
    (outside.folder / "gone.py").unlink()
    outside.write("app.py", OLD)
    outside.compile("app.py", mode=UNCHECKED)
    tree.write("app.py", NEW)
    (tree.folder / "linked").symlink_to(outside.folder)
    (tree.folder / "__pycache__").symlink_to(outside.folder / "__pycache__")
    (tree.folder / "app.pyc").symlink_to(orphan)
    tree.write("package/__init__.py", "")
    (tree.folder / "package/__pycache__").mkdir()
    (tree.folder / "package/__pycache__/gone.cpython-311.pyc").symlink_to(orphan)
    (tree.folder / "round").symlink_to(tree.folder)
    assert tree.clean() == {}
    assert sorted(path.name for path in tree.folder.rglob("*.pyc")) == ["app.pyc", "gone.cpython-311.pyc"]
    assert len(outside.clean()) == 2


def test_a_source_that_is_a_link_counts_and_a_broken_one_does_not(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(NEW)
    for name in "kept", "broken":
        (tree.folder / f"{name}.py").symlink_to(tmp_path / "shared.py")
        tree.compile(f"{name}.py")
    (tree.folder / "broken.py").unlink()
    (tree.folder / "broken.py").symlink_to(tmp_path / "nowhere.py")
    assert tree.clean() == {cached("broken.py"): Reason.ORPHAN}


def test_a_cache_folder_can_be_named_itself(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write("app.py", NEW)
    fresh = tree.compile("app.py")
    (fresh.parent / "gone.cpython-311.pyc").write_bytes(b"")
    expected = [Stale("./gone.cpython-311.pyc", Reason.ORPHAN)]
    monkeypatch.chdir(fresh.parent)
    assert list(find_stale(["."])) == expected


def test_folders_that_overlap_are_walked_once(tree: Tree) -> None:
    tree.write("package/app.py", NEW)
    tree.compile("package/app.py", to="package/app.pyc")
    folders = [tree.folder / "package", tree.folder, tree.folder / "package/__pycache__", tree.folder / "absent"]
    assert list(find_stale(folders)) == [Stale(str(tree.folder / "package/app.pyc"), Reason.LEGACY)]


WALK = """
import json, os, sys
from alembic_entrypoint.bytecode import find_stale
from alembic_entrypoint.commands.clean import clean

def walked():
    return sum(1 for _ in find_stale([os.getcwd()]))

def commanded():
    lines = []
    clean([], True, lines.append)
    return len(lines) - 1

def bytes_read():
    with open("/proc/self/io") as counters:
        return int(counters.readline().split()[1])

seen = []
idle = bytes_read()
idle = bytes_read() - idle
sys.addaudithook(lambda event, arguments: seen.append((event, os.path.abspath(str(arguments[0]))))
                 if event in {"open", "os.scandir"} else None)
before = bytes_read()
stale = globals()[sys.argv[1]]()
read = bytes_read() - before - idle
here = [(event, path) for event, path in seen if (path + "/").startswith(os.getcwd() + "/")]
print(json.dumps({"stale": stale, "read": read, "opened": [path for event, path in here if event == "open"],
                  "listed": [path for event, path in here if event == "os.scandir"]}))
"""


def test_ten_thousand_files_take_one_pass_and_sixteen_bytes_each(tree: Tree) -> None:
    """50 packages of 100 sources and 100 files of bytecode, half of it outdated, below two configurations."""
    stamped = [MAGIC_NUMBER + struct.pack("<III", 0, mtime, len(NEW)) + bytes(4096) for mtime in (0, DAY)]
    for package in range(50):
        for module in range(100):
            source = tree.write(f"p{package}/m{module}.py", NEW, mtime=0)
            made = Path(cache_from_source(str(source)))
            made.parent.mkdir(exist_ok=True)
            made.write_bytes(stamped[module % 2])
    texts = {"alembic.ini": "[alembic]\n", "pyproject.toml": "[tool.alembic]\n"}
    files = {str(tree.write(name, text)) for name, text in texts.items()}
    for how in "walked", "commanded":
        ran = subprocess.run(
            [sys.executable, "-c", WALK, how],
            cwd=tree.folder,
            env={"PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
            check=True,
        )
        walk = json.loads(ran.stdout)
        assert walk["stale"] == 2500, how
        assert len(walk["opened"]) == len(set(walk["opened"])) == 5002, how
        assert {path for path in walk["opened"] if not path.endswith(".pyc")} == files
        assert len(walk["listed"]) == len(set(walk["listed"])) == 101, how
        if how == "walked":
            assert walk["read"] == 5000 * 16 + sum(map(len, texts.values()))


# What cannot be removed, and who removes it


AS_NOBODY = """
import json, os, sys
from alembic_entrypoint.bytecode import remove_stale
if os.geteuid() == 0:
    os.setuid(int(sys.argv[1]))
cleaned = remove_stale([".", "closed/__pycache__"])
print(json.dumps([len(cleaned.removed), [(stale.path, error) for stale, error in cleaned.kept]]))
"""


def test_what_may_not_be_removed_is_reported_and_the_rest_is_removed(tree: Tree) -> None:
    tree.write("app.py", NEW)
    locked = tree.compile("app.py", mode=UNCHECKED)
    tree.write("free/app.py", NEW)
    free = tree.compile("free/app.py", mode=UNCHECKED)
    tree.write("closed/app.py", NEW)
    closed = tree.compile("closed/app.py", mode=UNCHECKED)
    tree.folder.chmod(0o755)
    locked.parent.chmod(0o555)
    free.parent.chmod(0o777)
    closed.parent.chmod(0o777)
    closed.parent.parent.chmod(0o111)  # its sources cannot be listed, so nobody can tell what is an orphan
    orphan = tree.write("free/__pycache__/gone.cpython-311.pyc", "")  # nor what a configuration in there says
    ran = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(NOBODY)],
        cwd=tree.folder,
        env={"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
    )
    for folder in closed.parent.parent, locked.parent:
        folder.chmod(0o755)
    doubt = "it may be the only copy of a migration: ./closed cannot be read, and may say sourceless = true"
    kept = [["./" + cached("app.py"), "Permission denied"], [f"./free/__pycache__/{orphan.name}", doubt]]
    assert json.loads(ran.stdout) == [1, kept], ran.stderr
    assert (locked.exists(), free.exists(), closed.exists(), orphan.exists()) == (True, False, True, True)


COUNTED = "import sys; from alembic_entrypoint.bytecode import remove_stale; sys.stdin.read(1); " + (
    "cleaned = remove_stale(['.']); print(len(cleaned.removed), len(cleaned.kept))"
)


def test_replicas_that_clean_one_volume_at_once_remove_each_file_once(tree: Tree) -> None:
    cache = tree.folder / "__pycache__"
    cache.mkdir()
    for module in range(2000):
        (cache / f"m{module}.cpython-311.pyc").write_bytes(b"")
    replicas = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTED],
            cwd=tree.folder,
            env={"PYTHONPATH": str(SOURCES)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for replica in replicas:
        assert replica.stdin is not None
        replica.stdin.write("\n")
        replica.stdin.flush()
    counts = [tuple(map(int, replica.communicate(timeout=60)[0].split())) for replica in replicas]
    assert sum(removed for removed, _ in counts) == 2000
    assert all(kept == 0 for _, kept in counts)
    assert list(cache.iterdir()) == []


# The command


def test_clean_writes_a_line_for_each_file_and_the_count(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write("app.py", NEW)
    tree.compile("app.py", to="app.pyc")
    unchecked = tree.compile("app.py", mode=UNCHECKED)
    monkeypatch.chdir(tree.folder)
    beside = "./app.pyc: legacy: it lies beside its source, and would be run in its place if that went"
    hashed = f"./{cached('app.py')}: unchecked: nothing compares it with its source (unchecked-hash)"
    lines: list[str] = []
    assert clean([], True, lines.append) == 0
    assert lines == [beside, hashed, "2 stale files would be removed"]
    assert unchecked.exists()
    lines.clear()
    assert clean([], False, lines.append) == 0
    assert lines == [beside, hashed, "2 stale files removed"]
    assert not unchecked.exists()
    lines.clear()
    assert clean(["."], False, lines.append) == 0
    assert lines == ["0 stale files removed"]


def test_clean_removes_nothing_when_a_path_is_no_folder(tree: Tree) -> None:
    tree.write("app.py", NEW)
    legacy = tree.compile("app.py", to="app.pyc")
    with pytest.raises(Usage) as usage:
        clean([str(tree.folder), "mistyped"], False, print)
    assert str(usage.value) == (
        "There is no folder mistyped. Nothing was removed: a mistyped path in a Dockerfile would leave stale bytecode "
        "in every image. Name the folders of the sources: alembic-entrypoint clean [--dry-run] PATH…"
    )
    assert legacy.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("alembic.ini", "[alembic]\nsourceless = true\n"),
        ("setup.cfg", "[alembic]\nSourceless: %(is_image)s\n"),
        ("pyproject.toml", "[tool.alembic]\nsourceless = true\n"),
        ("pyproject.toml", "[tool]\nalembic = { 'sourceless'=true }\n"),
    ],
)
def test_clean_removes_nothing_from_a_sourceless_tree(tree: Tree, name: str, text: str) -> None:
    tree.write("app.py", NEW)
    tree.write(name, text)
    legacy = tree.compile("app.py", to="app.pyc")
    lines: list[str] = []
    assert clean([str(tree.folder)], False, lines.append) == 0
    assert lines == [
        f"{tree.folder}/{name} says sourceless = true: there bytecode is the migrations, so none of it is stale",
        "0 stale files removed",
    ]
    assert legacy.exists()
    for untrue in "[alembic]\n# sourceless = true\n", "[alembic]\nsourceless = false\n", "sourceless='no'\n":
        legacy = tree.compile("app.py", to="app.pyc")
        tree.write(name, untrue)
        assert clean([str(tree.folder)], False, lines.append) == 0
        assert not legacy.exists()


def test_a_name_that_is_not_utf_8_is_removed_and_printable(tree: Tree) -> None:
    name = os.fsencode(tree.folder) + b"/\xff"
    Path(os.fsdecode(name) + ".py").write_text(NEW)
    Path(os.fsdecode(name) + ".pyc").write_bytes(b"")
    lines: list[str] = []
    assert clean([str(tree.folder)], False, lines.append) == 0
    assert lines[0].encode("utf-8").startswith(os.fsencode(tree.folder) + rb"/\xff.pyc: legacy")
    assert lines[1] == "1 stale file removed"


def test_the_docs_name_every_reason_with_its_sentence() -> None:
    page = (SOURCES.parent / "docs" / "bytecode.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", page, re.MULTILINE)
    assert rows == [(reason.value, reason.sentence) for reason in Reason]
