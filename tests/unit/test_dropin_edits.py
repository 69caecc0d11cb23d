"""The one change that a file needs which is there already, as tables of before and after."""

from __future__ import annotations

from pathlib import Path

import pytest

from alembic_entrypoint.dropin.files import PLATFORMS, with_entrypoint
from alembic_entrypoint.dropin.found import bare, look

ENTRYPOINT = 'ENTRYPOINT ["alembic-entrypoint", "run", "--"]\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('FROM a\nCMD ["x"]\n', f'FROM a\n{ENTRYPOINT}CMD ["x"]\n'),
        ("FROM a\nCMD x y", f"FROM a\n{ENTRYPOINT}CMD x y"),
        ("FROM a", f"FROM a\n{ENTRYPOINT}"),
        ('FROM a\nENTRYPOINT ["./x.sh"]\n', 'FROM a\nENTRYPOINT ["alembic-entrypoint", "run", "--", "./x.sh"]\n'),
        (
            "FROM a\nENTRYPOINT x  y\n",
            'FROM a\nENTRYPOINT ["alembic-entrypoint", "run", "--", "/bin/sh", "-c", "x  y"]\n',
        ),
        (
            'FROM a\nENTRYPOINT ["x", \\\n  "y"]\nCMD z\n',
            'FROM a\nENTRYPOINT ["alembic-entrypoint", "run", "--", "x", "y"]\nCMD z\n',
        ),
        # Only the last stage is what runs.
        (
            'FROM a AS b\nENTRYPOINT ["x"]\nFROM c\nCMD y\n',
            f'FROM a AS b\nENTRYPOINT ["x"]\nFROM c\n{ENTRYPOINT}CMD y\n',
        ),
        # A line that goes on is no instruction of its own.
        ("FROM a\nRUN x && \\\n  CMD y\nCMD z\n", f"FROM a\nRUN x && \\\n  CMD y\n{ENTRYPOINT}CMD z\n"),
        (f"FROM a\n{ENTRYPOINT}CMD x\n", f"FROM a\n{ENTRYPOINT}CMD x\n"),
    ],
)
def test_the_last_stage_of_a_dockerfile_starts_through_us(before: str, after: str) -> None:
    assert with_entrypoint(before) == after
    assert with_entrypoint(after) == after


@pytest.mark.parametrize(
    ("command", "alone"),
    [
        ("gunicorn a:b", "gunicorn a:b"),
        ("alembic upgrade head && gunicorn a:b", "gunicorn a:b"),
        ("alembic -c x.ini upgrade head && exec gunicorn a:b", "gunicorn a:b"),
        ("alembic-entrypoint run -- gunicorn a:b", "gunicorn a:b"),
        ("bash scripts/init.sh && gunicorn a:b", None),
        ("alembic upgrade head || alembic stamp head; gunicorn a:b", None),
    ],
)
def test_the_apps_own_command_is_found_among_what_is_run_before_it(command: str, alone: str | None) -> None:
    assert bare(command) == alone


@pytest.mark.parametrize(
    ("platform", "path", "before", "after"),
    [
        ("heroku", "Procfile", "web: x\n", "release: alembic-entrypoint migrate\nweb: alembic-entrypoint run -- x\n"),
        (
            "heroku",
            "Procfile",
            "release: ./release.sh\nworker: y\n",
            None,
        ),
        ("fly", "fly.toml", 'app = "x"', 'app = "x"\n\n[deploy]\n  release_command = "alembic-entrypoint migrate"\n'),
        ("fly", "fly.toml", '[deploy]\n  release_command = "alembic upgrade head"\n', None),
        (
            "render",
            "render.yaml",
            "services:\n  - type: web\n    name: x\n",
            "services:\n  - type: web\n    preDeployCommand: alembic-entrypoint migrate\n    name: x\n",
        ),
        ("render", "render.yaml", "services:\n  - type: web\n    preDeployCommand: alembic upgrade head\n", None),
        ("railway", "railway.json", '{"deploy": {"preDeployCommand": ["npm run x"]}}', None),
        ("railway", "railway.json", "{broken", None),
        ("compose", "docker-compose.yml", "services: {}\n", None),
    ],
)
def test_a_file_gets_its_line_or_a_person_is_told(
    tmp_path: Path, platform: str, path: str, before: str, after: str | None
) -> None:
    (tmp_path / "alembic.ini").write_text("[alembic]\n")
    (tmp_path / path).write_text(before)
    made = PLATFORMS[platform].files(look(tmp_path), lambda _: pytest.fail("no template is needed"))
    if after is None:
        assert made.files.get(path, before) == before
        assert made.notes
    else:
        assert made.files == {path: after}
        assert made.notes == ()
