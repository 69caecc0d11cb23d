"""What the pages show is what happens: blocks marked with `run` are typed, in the example, on a fresh database."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands import environment
from servers import Database

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "<!-- run -->" in page.read_text()]
_BLOCK = re.compile(r"<!-- (?:(?P<run>run)|file: (?P<file>\S+)) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)
_END = "=== the end of a command"


@dataclass(frozen=True)
class Typed:
    """A command, and the lines that it is to print: `…` stands for anything, alone for any lines."""

    command: str
    expected: list[str]

    def assert_printed(self, printed: list[str]) -> None:
        """See that the lines are there, in this order, with nothing in between but what `…` stands for."""
        pattern = ""
        for line in self.expected:
            pattern += r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        text = "".join(f"{line}\n" for line in printed)
        assert re.fullmatch(pattern, text), f"$ {self.command}\nprinted:\n{text}\nand not:\n" + "\n".join(self.expected)


def typed(text: str) -> list[Typed]:
    found: list[Typed] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Typed(line[2:], []))
        else:
            found[-1].expected.append(line)
    return found


@pytest.mark.extra
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_happens(page: Path, tmp_path: Path, database: Database) -> None:
    folder = tmp_path / "example"
    shutil.copytree(ROOT / "entrypoint" / "example", folder, ignore=shutil.ignore_patterns("__pycache__", "README.md"))
    commands: list[Typed] = []
    script = ["exec 2>&1"]
    for block in _BLOCK.finditer(page.read_text()):
        if block["file"]:
            script += [f"cat > {block['file']} <<'END'", block["text"] + "END"]
        else:
            for each in typed(block["text"]):
                commands.append(each)
                script += [each.command, f"echo; echo '{_END}'"]
    path = f"{Path(sys.executable).parent}:{database.server.binaries}:/usr/local/bin:/usr/bin:/bin"
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_LOG_FORMAT": "console", "PATH": path}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env=environment(env), capture_output=True, text=True, check=False
    )
    outputs = done.stdout.split(f"{_END}\n")
    assert len(outputs) == len(commands) + 1, done.stdout + done.stderr
    for each, output in zip(commands, outputs, strict=False):
        # The empty line is ours, or ends a line that the command left open.
        each.assert_printed(output.removesuffix("\n").splitlines())


def test_a_page_that_shows_something_else_is_noticed() -> None:
    shown = Typed("x", ["one", "…", "t…o"])
    shown.assert_printed(["one", "two"])
    shown.assert_printed(["one", "and", "more", "t o"])
    for printed in (["one"], ["two"], ["one", "two", "three"], ["zero", "one", "two"]):
        with pytest.raises(AssertionError):
            shown.assert_printed(printed)
