"""Look at a project: its configuration, its app's command, what it is deployed with. Reads files, runs nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alembic_entrypoint.errors import Misconfigured

#: In a shell's words. `$PORT` is what platforms give.
DEFAULT_COMMAND = "uvicorn app.main:app --host 0.0.0.0 --port ${PORT:-8000}"
DEFAULT_PORT = "8000"
COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")

# A framework's class, and the server that its apps are started with.
_SERVERS = {
    "FastAPI": "uvicorn {app} --host 0.0.0.0 --port ${{PORT:-8000}}",
    "Starlette": "uvicorn {app} --host 0.0.0.0 --port ${{PORT:-8000}}",
    "Litestar": "uvicorn {app} --host 0.0.0.0 --port ${{PORT:-8000}}",
    "Flask": "gunicorn {app} --bind 0.0.0.0:${{PORT:-8000}}",
}
_APP = re.compile(
    r"^(?P<name>\w+)\s*(?::[^=\n]+)?=\s*(?:\w+\.)?(?P<framework>" + "|".join(_SERVERS) + r")\(", re.MULTILINE
)
_BY_HAND = re.compile(
    r"""\balembic\s+(?:-\S+\s+\S+\s+)*(?:upgrade|stamp|downgrade)\b[^"'&|;\n]*
    | (?:DROP\ TABLE(?:\ IF\ EXISTS)?|DELETE\ FROM|INSERT\ INTO|UPDATE)\ (?:public\.)?alembic_version\b
    | \bdocker\ (?:system|volume)\ prune\b[^"'&|;\n]*
    | \bcompose\ down\ (?:.*\ )?(?:-v|--volumes)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_NOT_LOOKED_INTO = {"node_modules", "tests", "test", "docs", "build", "dist", "site-packages", "venv"}


@dataclass(frozen=True)
class Found:
    """What a project is."""

    folder: Path
    #: the Alembic configuration
    config: str
    #: what starts the app, in a shell's words, and where that was seen
    command: str
    command_from: str
    framework: str | None
    port: str
    #: the platforms whose files are there
    platforms: tuple[str, ...]
    #: places that run Alembic by themselves, or delete what it needs: `path:line: command`
    by_hand: tuple[str, ...]

    def has(self, path: str) -> bool:
        return (self.folder / path).is_file()

    def read(self, path: str) -> str | None:
        """Give a file's text, or None where there is none."""
        return read(self.folder / path)


def read(path: Path) -> str | None:
    """Give a file's text with its ends of lines as they are, or None where there is no file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path} cannot be read: {error}. Nothing was written.") from None


def look(folder: Path) -> Found:
    """Look at a project. Raises Misconfigured where there is no Alembic configuration."""
    command, command_from, framework = _command(folder)
    return Found(
        folder,
        _config(folder),
        command,
        command_from,
        framework,
        _port(folder, command),
        _platforms(folder),
        tuple(_run_by_hand(folder)),
    )


def _config(folder: Path) -> str:
    if (folder / "alembic.ini").is_file():
        return "alembic.ini"
    if re.search(r"^\[tool\.alembic\]", read(folder / "pyproject.toml") or "", re.MULTILINE):
        return "pyproject.toml"
    elsewhere = [path for path in _files(folder, depth=2) if path.name == "alembic.ini"]
    hint = (
        f"There is one in {elsewhere[0].parent.name}: cd {shlex.quote(str(elsewhere[0].parent.relative_to(folder)))}"
        " && alembic-entrypoint init"
        if elsewhere
        else "Change to the folder of your project, or make one with `alembic init migrations`."
    )
    raise Misconfigured(f"There is no alembic.ini here, and no [tool.alembic] in a pyproject.toml. {hint}")


def _command(folder: Path) -> tuple[str, str, str | None]:
    """Find what starts the app; where it was seen; the framework."""
    framework, served = _framework(folder)
    for path, text in (("Procfile", _web(folder)), ("Dockerfile", _dockerfile_command(folder))):
        if text:
            return text, path, framework
    if served:
        return served, f"{framework} in the sources", framework
    mains = [path.parent.name for path in _files(folder, depth=2) if path.name == "__main__.py"]
    if mains:
        return f"python -m {mains[0]}", f"{mains[0]}/__main__.py", None
    return DEFAULT_COMMAND, "", None


def _framework(folder: Path) -> tuple[str | None, str | None]:
    for path in _files(folder, depth=4):
        if path.suffix == ".py" and (match := _APP.search(read_or_nothing(path))):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[1:] if parts[0] == "src" else parts
            module = ".".join(part for part in parts if part != "__init__")
            framework = match["framework"]
            return framework, _SERVERS[framework].format(app=f"{module}:{match['name']}")
    return None, None


def _web(folder: Path) -> str | None:
    match = re.search(r"^web:\s*(.+?)\s*$", read(folder / "Procfile") or "", re.MULTILINE)
    return bare(match[1]) if match else None


def bare(command: str) -> str | None:
    """Give an app's command without what ran Alembic before it; None where more than one command is left."""
    command = re.sub(r"^alembic-entrypoint run (?:--\s+)?", "", command)
    command = re.sub(r"^(?:alembic\s[^&|;]*&&\s*)+", "", command)
    command = re.sub(r"^exec\s+", "", command)
    return None if re.search(r"[&|;]", command) else command


def _dockerfile_command(folder: Path) -> str | None:
    found = re.findall(r"^CMD[ \t]+(.+)$", read(folder / "Dockerfile") or "", re.MULTILINE)
    if not found or found[-1].endswith("\\"):
        return None
    try:
        words = json.loads(found[-1])
    except ValueError:
        return bare(found[-1].strip())
    if words[:2] == ["sh", "-c"] and len(words) == 3:
        return bare(words[2])
    return shlex.join(words)


def _port(folder: Path, command: str) -> str:
    for text, pattern in (
        (command, r"(?:--port[ =]|-p |:)(?:\$\{PORT:-)?(\d{2,5})\b"),
        (read(folder / "Dockerfile") or "", r"(?m)^EXPOSE\s+(\d+)"),
    ):
        if match := re.search(pattern, text):
            return match[1]
    return DEFAULT_PORT


def _platforms(folder: Path) -> tuple[str, ...]:
    signs = {
        "compose": COMPOSE_FILES,
        "railway": ("railway.json", "railway.toml"),
        "heroku": ("Procfile", "app.json"),
        "fly": ("fly.toml",),
        "render": ("render.yaml",),
        "kubernetes": ("kubernetes", "k8s", "skaffold.yaml", "kustomization.yaml"),
    }
    return tuple(name for name, paths in signs.items() if any((folder / path).exists() for path in paths))


def _run_by_hand(folder: Path) -> Iterator[str]:
    """Name the places that run Alembic themselves, or delete what it needs: not needed any more, and harmful."""
    names = ("Procfile", "Dockerfile", "railway.json", "railway.toml", "fly.toml", "render.yaml", *COMPOSE_FILES)
    for path in _files(folder, depth=4):
        if path.suffix in (".sh", ".yml", ".yaml") or path.name in names:
            for number, line in enumerate(read_or_nothing(path).splitlines(), 1):
                if not line.lstrip().startswith("#"):
                    for match in _BY_HAND.finditer(line):
                        yield f"{path.relative_to(folder)}:{number}: {match[0].strip()}"


def read_or_nothing(path: Path) -> str:
    """Give a file's text, or nothing where it cannot be read: for a search only."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Walk through a project's own files, in order, down to a depth."""
    for here, folders, files in os.walk(folder):
        level = len(Path(here).relative_to(folder).parts)
        folders[:] = sorted(
            name
            for name in folders
            if level + 1 < depth
            and name not in _NOT_LOOKED_INTO
            and (name == ".github" or not name.startswith("."))
            and not Path(here, name, "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            yield Path(here, name)
