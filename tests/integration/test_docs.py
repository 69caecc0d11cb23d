"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from alembic_entrypoint.cli import program
from commands import entrypoint

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def test_the_tables_of_the_readme_are_what_the_code_renders() -> None:
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    text = (ROOT / "README.md").read_text()
    assert render.rendered(text) == text, "run: python docs/render.py"
    for table in (render.states(), render.settings(), render.exit_codes()):
        assert table in text


def test_the_commands_of_the_readme_are_those_of_the_program() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Commands") : text.index("## How it decides")]
    named = re.findall(r"^\| `(\w+)", section, re.MULTILINE)
    assert sorted(named) == sorted(program.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("command", sorted(program.commands))
def test_every_command_has_help(command: str) -> None:
    result = entrypoint(command, "--help")
    assert result.code == 0
    assert f"Usage: alembic-entrypoint {command}" in result.stdout


def test_a_wrong_command_line_ends_with_two() -> None:
    result = entrypoint("run", "--no-such-option", "true")
    assert result.code == 2
    assert "No such option" in result.stderr
