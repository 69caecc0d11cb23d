"""What a migration's file says, as words that can be compared: to see one that was edited after it was applied."""

from __future__ import annotations

import sys
from hashlib import blake2b


def content(path: str) -> str | None:
    """Hash the file as it is; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return blake2b(file.read(), digest_size=16).hexdigest()
    except OSError:
        return None


def meaning(path: str) -> str | None:
    """Hash what the file does, without white space and comments; comparable within one version of Python."""
    import ast

    try:
        with open(path, "rb") as file:
            tree = ast.dump(ast.parse(file.read()))
    except (OSError, SyntaxError, ValueError):
        return None
    return f"{sys.version_info[0]}.{sys.version_info[1]} {blake2b(tree.encode(), digest_size=16).hexdigest()}"


def is_edited(path: str, was: tuple[str, str | None]) -> bool:
    """Tell whether a file means something else than when its `content` and `meaning` were kept."""
    old_content, old_meaning = was
    if content(path) in (old_content, None):
        return False
    now = meaning(path)
    return None not in (now, old_meaning) and now.split()[0] == old_meaning.split()[0] and now != old_meaning  # type: ignore[union-attr]
