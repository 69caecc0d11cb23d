"""Render what README and pages say of the code: `python docs/render.py` rewrites it; a test compares it."""

from __future__ import annotations

import re
from pathlib import Path

from alembic_entrypoint.decide import ROWS
from alembic_entrypoint.errors import ENDINGS
from alembic_entrypoint.settings import TABLE

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "how-it-decides.md")


def states() -> str:
    """One line for each state."""
    lines = ["| state | what was seen | action |", "|---|---|---|"]
    for row in ROWS:
        action = row.action.value + (" (78)" if row.image else " (65)" if row.action.value == "REFUSE" else "")
        lines.append(f"| {row.state.value} | {row.seen} | {action} |")
    return "\n".join(lines)


def decisions() -> str:
    """One section for each state, with what an operator reads; what is filled in stands in angle brackets."""
    sections = []
    for row in ROWS:
        action = row.action.value + (" (78)" if row.image else " (65)" if row.action.value == "REFUSE" else "")
        said = "\n".join(each for each in (f"{row.state.value}: {row.because}", row.danger, row.remedy) if each)
        said = re.sub(r"{(\w+)}", r"<\1>", said)
        sections.append(f"### {row.state.value}\n\n{_sentence(row.seen)} **{action}**\n\n```text\n{said}\n```")
    return "\n\n".join(sections)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def settings() -> str:
    """One line for each setting."""
    lines = ["| name | default | meaning |", "|---|---|---|"]
    for row in TABLE:
        default = row.default if "`" in row.default or " " in row.default or not row.default else f"`{row.default}`"
        lines.append(f"| `{row.field.upper()}` | {default} | {row.meaning} |")
    return "\n".join(lines)


def exit_codes() -> str:
    """One line for each code of ours."""
    lines = ["| code | name | when |", "|---|---|---|", "| 0 | ok | nothing left to do |"]
    lines += [f"| {each.exit_code} | {each.name} | {each.meaning} |" for each in ENDINGS]
    return "\n".join(lines)


def rendered(text: str) -> str:
    """Fill the places that the comments mark."""
    parts = {"states": states(), "decisions": decisions(), "settings": settings(), "exit codes": exit_codes()}
    for name, table in parts.items():
        mark = f"<!-- {name}: rendered by docs/render.py -->"
        text = re.sub(
            re.escape(mark) + r".*?<!-- end -->",
            lambda _, m=mark, t=table: f"{m}\n{t}\n<!-- end -->",  # type: ignore[misc]
            text,
            count=1,
            flags=re.S,
        )
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
