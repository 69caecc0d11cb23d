"""What each platform needs in a project: whole files where there are none, else the one change that is needed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alembic_entrypoint.dropin.found import COMPOSE_FILES, DEFAULT_COMMAND, DEFAULT_PORT, Found, bare

_ENTRYPOINT = ["alembic-entrypoint", "run", "--"]
_MIGRATE = "alembic-entrypoint migrate"
_INSTALL = """\
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt alembic-entrypoint
COPY . .
"""


@dataclass(frozen=True)
class Wanted:
    """The files as they should be, by path, and what only a person can do."""

    files: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Platform:
    """How a project gets a platform's files, and the command that comes next."""

    files: Callable[[Found, Callable[[str], str]], Wanted]
    next: str
    #: it runs an image, so that the project needs a Dockerfile
    image: bool = True


def wanted(found: Found, platforms: tuple[str, ...], templates: Path) -> Wanted:
    """Give what these platforms need."""
    names = [*platforms]
    if "github-actions" in names and "compose" not in names:
        names.insert(0, "compose")
    if any(PLATFORMS[name].image for name in names) and "docker" not in names:
        names.insert(0, "docker")
    files: dict[str, str] = {}
    notes: list[str] = []
    for name in names:

        def template(path: str, name: str = name) -> str:
            text = (templates / name / path).read_text(encoding="utf-8").replace(DEFAULT_PORT, found.port)
            return text.replace("compose.yaml", _compose_file(found) or "compose.yaml")

        part = PLATFORMS[name].files(found, template)
        files.update(part.files)
        notes += part.notes
    required = _requirements(found)
    return Wanted({**files, **required.files}, (*notes, *required.notes))


def _requirements(found: Found) -> Wanted:
    """Have the project install this program."""
    text = found.read("requirements.txt")
    if text is not None:
        if re.search(r"^alembic[-_]entrypoint\b", text, re.MULTILINE | re.IGNORECASE):
            return Wanted({})
        return Wanted({"requirements.txt": _ended(text) + "alembic-entrypoint\n"})
    if "alembic-entrypoint" in (found.read("pyproject.toml") or ""):
        return Wanted({})
    for lock, command in (("uv.lock", "uv add alembic-entrypoint"), ("poetry.lock", "poetry add alembic-entrypoint")):
        if found.has(lock):
            return Wanted({}, (f"Add the package: {command}",))
    return Wanted({}, ("Add alembic-entrypoint to the packages that your project installs.",))


def _docker(found: Found, template: Callable[[str], str]) -> Wanted:
    text, ignored = found.read("Dockerfile"), found.read(".dockerignore")
    if text is None:
        words = ["sh", "-c", f"exec {found.command}"] if "$" in found.command else shlex.split(found.command)
        text = re.sub(r"^CMD .*$", lambda _: f"CMD {json.dumps(words)}", template("Dockerfile"), flags=re.MULTILINE)
        if "$" not in found.command:
            text = re.sub(r"^# The shell .*\n", "", text, flags=re.MULTILINE)
        if not found.has("requirements.txt"):
            source = ". alembic-entrypoint" if found.has("pyproject.toml") else "alembic-entrypoint"
            text = text.replace(_INSTALL, f"COPY . .\nRUN pip install --no-cache-dir {source}\n")
    else:
        text = with_entrypoint(text)
    if ignored is None:
        ignored = template(".dockerignore")
    else:
        missing = [line for line in ("**/__pycache__", "**/*.pyc") if line not in ignored.splitlines()]
        ignored = _ended(ignored) + "".join(f"{line}\n" for line in missing) if missing else ignored
    return Wanted({"Dockerfile": text, ".dockerignore": ignored})


def with_entrypoint(dockerfile: str) -> str:
    """Have the last stage of a Dockerfile start through this program."""
    lines = dockerfile.splitlines(keepends=True)
    spans = _instructions(lines)
    last = max((n for n, (word, _, _) in enumerate(spans) if word == "FROM"), default=0)
    stage = spans[last:]
    entrypoint = next((span for span in reversed(stage) if span[0] == "ENTRYPOINT"), None)
    if entrypoint is not None:
        _, first, end = entrypoint
        argument = "".join(lines[first:end]).replace("\\\n", " ").strip()[len("ENTRYPOINT") :].strip()
        if "alembic-entrypoint" in argument:
            return dockerfile
        try:
            words = json.loads(argument)
        except ValueError:
            words = ["/bin/sh", "-c", argument]
        lines[first:end] = [f"ENTRYPOINT {json.dumps(_ENTRYPOINT + words)}\n"]
    else:
        place = next((first for word, first, _ in reversed(stage) if word == "CMD"), len(lines))
        if place and not lines[place - 1].endswith("\n"):
            lines[place - 1] += "\n"
        lines.insert(place, f"ENTRYPOINT {json.dumps(_ENTRYPOINT)}\n")
    return "".join(lines)


def _instructions(lines: list[str]) -> list[tuple[str, int, int]]:
    """Give each instruction's word, first line, and the line after its last."""
    spans = []
    n = 0
    while n < len(lines):
        first = n
        while n + 1 < len(lines) and (lines[n].rstrip().endswith("\\") or (n > first and lines[n].startswith("#"))):
            n += 1
        n += 1
        if match := re.match(r"\s*([A-Za-z]+)\s", lines[first]):
            spans.append((match[1].upper(), first, n))
    return spans


def _compose(found: Found, template: Callable[[str], str]) -> Wanted:
    there = _compose_file(found)
    if there:
        return Wanted(
            {},
            (
                f"{there} stays as it is: its services start through the image's ENTRYPOINT. Where several are of one "
                "image, give all but one of them ALEMBIC_ENTRYPOINT_MODE: await.",
            ),
        )
    # The second service is an example; a project has its own.
    text = re.sub(r"\n  worker:\n(?:    .*\n)+", "", template("compose.yaml"))
    text = text.replace(
        "# One database, and two services of one image: `app` migrates, `worker` waits until that is done.\n", ""
    )
    return Wanted({"compose.yaml": text})


def _compose_file(found: Found) -> str | None:
    return next((name for name in COMPOSE_FILES if found.has(name)), None)


def _railway(found: Found, template: Callable[[str], str]) -> Wanted:
    text = found.read("railway.json")
    if text is None:
        if found.has("railway.toml"):
            return Wanted({}, (f'In railway.toml, below [deploy]: preDeployCommand = ["{_MIGRATE}"]',))
        return Wanted({"railway.json": template("railway.json")})
    try:
        document = json.loads(text)
        deploy = document.setdefault("deploy", {})
        start = deploy.get("startCommand")
    except (ValueError, AttributeError):
        return Wanted({}, (f'In railway.json, in "deploy": "preDeployCommand": ["{_MIGRATE}"]',))
    notes: tuple[str, ...] = ()
    if start and "alembic-entrypoint" not in start:
        notes = (
            "startCommand in railway.json takes the place of ENTRYPOINT: begin it with `alembic-entrypoint run --`.",
        )
    if "alembic-entrypoint" in str(deploy.get("preDeployCommand")):
        return Wanted({}, notes)
    if deploy.get("preDeployCommand"):
        return Wanted({}, (f"preDeployCommand in railway.json: put `{_MIGRATE}` first.", *notes))
    deploy["preDeployCommand"] = [_MIGRATE]
    return Wanted({"railway.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n"}, notes)


def _heroku(found: Found, template: Callable[[str], str]) -> Wanted:
    text = found.read("Procfile")
    if text is None:
        command = re.sub(r"\$\{PORT:-\d+\}", "$PORT", found.command)
        default = re.sub(r"\$\{PORT:-\d+\}", "$PORT", DEFAULT_COMMAND)
        return Wanted({"Procfile": template("Procfile").replace(default, command)})
    notes: list[str] = []
    lines = text.splitlines()
    for n, line in enumerate(lines):
        name, _, command = line.partition(":")
        command = command.strip()
        if name == "web" and "alembic-entrypoint" not in command:
            alone = bare(command)
            if alone:
                lines[n] = f"web: alembic-entrypoint run -- {alone}"
            else:
                notes.append(
                    "Procfile runs several commands for web: leave those out that migrate, and begin the last "
                    "with `alembic-entrypoint run --`."
                )
        elif name == "release" and "alembic-entrypoint" not in command:
            if command.startswith("alembic ") and bare(f"{command} && ") == "":
                lines[n] = f"release: {_MIGRATE}"
            else:
                notes.append(f"release in Procfile: put `{_MIGRATE}` in the place of what migrates.")
    if not any(line.startswith("release:") for line in lines):
        lines.insert(0, f"release: {_MIGRATE}")
    return Wanted({"Procfile": "\n".join(lines) + "\n"}, tuple(notes))


def _fly(found: Found, template: Callable[[str], str]) -> Wanted:
    text = found.read("fly.toml")
    if text is None:
        return Wanted({"fly.toml": template("fly.toml")})
    line = re.search(r"^\s*release_command\s*=.*$", text, re.MULTILINE)
    if line:
        return Wanted({}, () if "alembic-entrypoint" in line[0] else (f'release_command in fly.toml: "{_MIGRATE}"',))
    ours = f'  release_command = "{_MIGRATE}"\n'
    if re.search(r"^\[deploy\]\s*$", text, re.MULTILINE):
        return Wanted(
            {"fly.toml": re.sub(r"^\[deploy\][ \t]*\n", lambda m: m[0] + ours, text, count=1, flags=re.MULTILINE)}
        )
    return Wanted({"fly.toml": f"{_ended(text)}\n[deploy]\n{ours}"})


def _render(found: Found, template: Callable[[str], str]) -> Wanted:
    text = found.read("render.yaml")
    if text is None:
        return Wanted({"render.yaml": template("render.yaml")})
    if "preDeployCommand" in text:
        note = f"preDeployCommand in render.yaml: {_MIGRATE}"
        return Wanted({}, () if _MIGRATE in text else (note,))
    added, count = re.subn(
        r"^([ \t]*)- type: web[ \t]*\n",
        lambda m: f"{m[0]}{m[1]}  preDeployCommand: {_MIGRATE}\n",
        text,
        count=1,
        flags=re.MULTILINE,
    )
    return Wanted({"render.yaml": added}) if count else Wanted({}, (f"In render.yaml: preDeployCommand: {_MIGRATE}",))


def _whole(*pairs: tuple[str, str]) -> Callable[[Found, Callable[[str], str]], Wanted]:
    """Write files that are not changed where they exist: where each goes, and where it is here."""

    def files(found: Found, template: Callable[[str], str]) -> Wanted:
        made = {path: template(source) for path, source in pairs if not found.has(path)}
        notes = [f"{path} is there already and stays as it is." for path, _ in pairs if path not in made]
        return Wanted(made, tuple(notes))

    return files


def _github_actions(found: Found, template: Callable[[str], str]) -> Wanted:
    made = _whole((".github/workflows/deploy.yml",) * 2, ("deploy.sh",) * 2)(found, template)
    there = _compose_file(found)
    if there is None or "${IMAGE" in (found.read(there) or ""):
        return made
    note = (
        f"In {there}, give the service that migrates `image: ${{IMAGE:-app}}`; if it is not app, name it in deploy.sh."
    )
    return Wanted(made.files, (*made.notes, note))


PLATFORMS = {
    "docker": Platform(_docker, "docker build --tag app ."),
    "compose": Platform(_compose, "docker compose up --build"),
    "railway": Platform(_railway, "railway up"),
    "heroku": Platform(_heroku, "git push heroku main", image=False),
    "fly": Platform(_fly, "fly deploy"),
    "render": Platform(_render, "git push"),
    "kubernetes": Platform(
        _whole(("kubernetes/migrate-job.yaml", "migrate-job.yaml"), ("kubernetes/deployment.yaml", "deployment.yaml")),
        "kubectl create --filename kubernetes/migrate-job.yaml && kubectl apply --filename kubernetes/deployment.yaml",
    ),
    "github-actions": Platform(_github_actions, "git push"),
}


def _ended(text: str) -> str:
    """End the last line."""
    return text if not text or text.endswith("\n") else text + "\n"
