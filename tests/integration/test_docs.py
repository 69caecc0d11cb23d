"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from alembic_entrypoint.cli import program
from commands import entrypoint
from dropins import assert_ours

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "entrypoint").glob("*/README.md")),
]


def anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_what_the_pages_say_of_the_code_is_what_it_renders() -> None:
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    for page in render.PAGES:
        assert render.rendered(page.read_text()) == page.read_text(), "run: python docs/render.py"
    text = "".join(page.read_text() for page in render.PAGES)
    for part in (render.states(), render.decisions(), render.settings(), render.exit_codes()):
        assert part in text


def test_the_commands_of_the_readme_are_those_of_the_program() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Commands") : text.index("## How it decides")]
    named = re.findall(r"^\| `(\w+)", section, re.MULTILINE)
    assert sorted(named) == sorted(program.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file that exists, and to a heading in it."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    lost = []
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(f"{path}#{anchor}")
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_setting_on_a_page_exists(page: Path) -> None:
    assert_ours(page.read_text())


def test_every_page_is_led_to() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "start.md").read_text()
    lost = [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in text]
    assert lost == []


@pytest.mark.parametrize("command", sorted(program.commands))
def test_every_command_has_help(command: str) -> None:
    result = entrypoint(command, "--help")
    assert result.code == 0
    assert f"Usage: alembic-entrypoint {command}" in result.stdout


def test_a_wrong_command_line_ends_with_two() -> None:
    result = entrypoint("run", "--no-such-option", "true")
    assert result.code == 2
    assert "No such option" in result.stderr
