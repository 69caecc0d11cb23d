"""Wrong bytecode in a layer beneath, and the three layers with which people protect themselves from it.

A release was compiled so that nothing compares bytecode with its source. The next one is copied over it: one migration
was mended, another is gone, and the bytecode of both is still there.
"""

import pytest
from containers import HEAD, LOST, ROOT

pytestmark = pytest.mark.container

NEWEST = "f00dfeedbeef"
ALEMBIC = ("--entrypoint=alembic",)
FIND = ("--entrypoint=find",)


def creates(table, revision=NEWEST, parent=HEAD):
    lines = "from alembic import op", f"revision, down_revision = {revision!r}, {parent!r}", "def upgrade():"
    return "\n".join((*lines, f"    op.execute('CREATE TABLE {table} ()')\n"))


@pytest.fixture(scope="module")
def layered_image(build, image):
    """Build an image whose bytecode is another release's: run by root, who may remove it."""
    release = {
        "old/mended.py": creates("wrong_code"),
        "old/gone.py": creates("gone", LOST, NEWEST),
        "new/mended.py": creates("right_code"),
    }
    compile_old = "python -m compileall -q --invalidation-mode unchecked-hash mended.py gone.py && rm gone.py"
    return build(
        f"FROM {image}\nUSER 0:0\nCOPY old /app/migrations/versions\n"
        f"RUN cd migrations/versions && {compile_old}\nCOPY new /app/migrations/versions\n",
        release,
    )


@pytest.fixture(scope="module")
def cleaned_image(build, layered_image):
    """Build the same image with one more line, as `docs/bytecode.md` says."""
    return build(f"FROM {layered_image}\nRUN alembic-entrypoint clean /app\n")


def made(database):
    """Return which of the two releases' tables is there."""
    return [table for table in ("wrong_code", "right_code") if database.has_table(table)]


def bytecode(start, image):
    """List the bytecode of the two migrations in an image."""
    container = start("/app", "-name", "mended.*.pyc", "-o", "-name", "gone.*.pyc", options=FIND, image=image)
    assert container.exit_code() == 0
    return sorted(line.rpartition("/")[2].partition(".")[0] for line in container.stdout().splitlines())


def test_alembic_alone_runs_the_wrong_code_of_the_layer_beneath(start, layered_image, notes_database):
    assert bytecode(start, layered_image) == ["gone", "mended"]
    alembic = start("upgrade", "head", options=(*notes_database.access, *ALEMBIC), image=layered_image)
    assert alembic.exit_code() == 0, alembic.stderr()
    assert made(notes_database) == ["wrong_code"]


def test_a_line_in_the_dockerfile_makes_alembic_alone_run_the_right_code(start, cleaned_image, notes_database):
    assert bytecode(start, cleaned_image) == []
    alembic = start("upgrade", "head", options=(*notes_database.access, *ALEMBIC), image=cleaned_image)
    assert alembic.exit_code() == 0, alembic.stderr()
    assert made(notes_database) == ["right_code"]


def test_a_start_removes_the_wrong_code_and_runs_the_right(start, layered_image, notes_database):
    container = start("true", options=notes_database.access, image=layered_image)
    assert container.exit_code() == 0, container.stderr()
    [event] = container.named("bytecode.removed")
    assert sorted(each["reason"] for each in event["removed"]) == ["orphan", "unchecked"]
    assert made(notes_database) == ["right_code"]


def test_wrong_code_that_cannot_be_removed_is_not_run(start, layered_image, notes_database):
    container = start("true", options=(*notes_database.access, "--read-only"), image=layered_image)
    assert container.exit_code() == 0, container.stderr()
    assert made(notes_database) == ["right_code"]


def test_an_orphan_is_no_revision_and_its_removal_brings_none_back(start, layered_image, cleaned_image, notes_database):
    """What the three layers were built for: they cannot help, and nothing they remove was the reason."""
    heads = start("heads", options=ALEMBIC, image=layered_image)
    assert heads.exit_code() == 0
    assert heads.stdout() == f"{NEWEST} (head)\n"

    assert start("true", options=notes_database.access, image=cleaned_image).exit_code() == 0
    notes_database.query(f"UPDATE alembic_version SET version_num = '{LOST}'")
    notes_database.query("ALTER TABLE notes ADD COLUMN colour text")
    for image in layered_image, cleaned_image:
        refused = start("true", options=notes_database.access, image=image)
        assert refused.exit_code() == 65
        assert LOST in str(refused.named("schema.refused"))


# The first layer

CONTEXT = ("__pycache__/a.cpython-311.pyc", "app/__pycache__/b.cpython-311.pyc", "app/x/__pycache__/c.cpython-311.pyc")
NESTED = [f"/context/{path}" for path in CONTEXT[1:]]
EVERYWHERE = [f"/context/{path}" for path in CONTEXT]
BESIDE = "/context/app/beside.pyc"


@pytest.mark.parametrize(
    ("ignored", "copied"),
    [
        pytest.param("", [*EVERYWHERE, BESIDE], id="nothing"),
        pytest.param("__pycache__\n*.pyc\n", [*NESTED, BESIDE], id="only-at-the-root"),
        pytest.param("**/__pycache__\n", [BESIDE], id="every-cache"),
        pytest.param("**/__pycache__\n**/*.pyc\n", [], id="as-the-docs-say"),
        pytest.param((ROOT / ".dockerignore").read_text(), [], id="our-own"),
    ],
)
def test_a_pattern_without_two_stars_ignores_bytecode_only_at_the_root(start, build, image, ignored, copied):
    files = dict.fromkeys((*CONTEXT, "app/beside.py", "app/beside.pyc"), "")
    built = build(f"FROM {image}\nCOPY . /context\n", {**files, ".dockerignore": ignored})
    container = start("/context", "-name", "*.py", "-o", "-name", "*.pyc", options=FIND, image=built)
    assert container.exit_code() == 0
    assert sorted(container.stdout().split()) == sorted(["/context/app/beside.py", *copied])
