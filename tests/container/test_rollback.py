"""Image 1, image 2, and image 1 again: the older one does not start on what it does not know, unless it may."""

import re
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from containers import HEAD, Container, Database

pytestmark = pytest.mark.container

NEWER = "d2b6a7c81e05"
MIGRATION = f"""
from alembic import op

revision, down_revision = "{NEWER}", "{HEAD}"
{{}}

def upgrade():
    op.execute("ALTER TABLE notes ADD COLUMN colour text")
"""
NOTHING: Mapping[str, str] = MappingProxyType({})


@pytest.fixture(scope="module")
def newer_image(build, image) -> str:
    """Build image 2: image 1 with one more migration."""
    return build(f"FROM {image}\nCOPY newer.py /app/migrations/versions/\n", {"newer.py": MIGRATION.format("")})


@pytest.fixture(scope="module")
def compatible_image(build, image) -> str:
    """Build image 2 with a migration that says that image 1 can live with it."""
    text = MIGRATION.format(f'oldest_compatible = "{HEAD}"')
    return build(f"FROM {image}\nCOPY newer.py /app/migrations/versions/\n", {"newer.py": text})


@pytest.fixture
def deploy(start, notes_database: Database):
    """Start one image after the other, to its end, with a label each."""

    def deploy(image: str, label: str, env: Mapping[str, str] = NOTHING) -> tuple[int, Container]:
        variables = {"ALEMBIC_ENTRYPOINT_IMAGE": label, **env}
        options = (*notes_database.access, *(f"--env={name}={value}" for name, value in variables.items()))
        container = start("echo", "up", options=options, image=image)
        return container.exit_code(), container

    return deploy


def test_the_older_image_is_refused_and_told_which_revision_it_lacks_since_when_and_from_where(
    deploy, image: str, newer_image: str, notes_database: Database
) -> None:
    assert deploy(image, "notes:1")[0] == 0
    assert deploy(newer_image, "notes:2")[0] == 0
    assert notes_database.recorded() == NEWER
    before = notes_database.dump()

    code, refused = deploy(image, "notes:1")

    assert (code, refused.stdout()) == (65, "")
    [refusal] = refused.named("schema.refused")
    assert (refusal["state"], refusal["recorded"], refusal["heads"]) == ("AHEAD", [NEWER], [HEAD])
    assert f"this image is older than the database: it knows {HEAD}" in refusal["message"]
    since = r"\(since \d{4}-\d\d-\d\d \d\d:\d\d UTC from image notes:2\)"
    assert re.search(f"records {NEWER} {since}", refusal["message"])
    assert f"Deploy an image that ships {NEWER}" in refusal["message"]
    assert notes_database.dump() == before

    assert deploy(newer_image, "notes:2")[0] == 0


def test_the_older_image_starts_with_a_warning_where_it_is_allowed_to(
    deploy, image: str, newer_image: str, notes_database: Database
) -> None:
    assert deploy(newer_image, "notes:2")[0] == 0

    code, started = deploy(image, "notes:1", {"ALEMBIC_ENTRYPOINT_AHEAD": "run"})

    assert (code, started.stdout()) == (0, "up\n")
    [decided] = started.named("schema.decided")
    assert (decided["level"], decided["state"], decided["action"]) == ("warning", "AHEAD", "START")
    assert "older than the database" in decided["because"]
    assert notes_database.recorded() == NEWER


def test_the_older_image_starts_where_the_migration_declares_that_it_can(
    deploy, image: str, compatible_image: str, notes_database: Database
) -> None:
    assert deploy(image, "notes:1")[0] == 0
    assert deploy(compatible_image, "notes:2")[0] == 0

    code, started = deploy(image, "notes:1")

    assert (code, started.stdout()) == (0, "up\n")
    assert started.named("app.launching")[0]["state"] == "AHEAD"
    assert notes_database.recorded() == NEWER
