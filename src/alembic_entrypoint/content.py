"""What a migration's file says, as words that can be compared: to see one that was edited after it was applied."""

from __future__ import annotations

import sys
from hashlib import blake2b

#: What a meaning can be compared with: the same words for the same tree (change the number with them), of the same
#: grammar.
_FORM = f"2/{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"


def learned(path: str) -> tuple[str | None, str | None]:
    """Hash the file as it is, and what it means; None where it cannot be read or parsed."""
    text = _read(path)
    return _hash(text), _meaning(text)


def is_edited(path: str, was: tuple[str, str | None]) -> bool:
    """Tell whether a file means something else than when it was `learned`."""
    old_content, old_meaning = was
    text = _read(path)
    if _hash(text) in (old_content, None):
        return False
    now = _meaning(text)
    return None not in (now, old_meaning) and now.split()[0] == old_meaning.split()[0] and now != old_meaning  # type: ignore[union-attr]


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _hash(text: bytes | None) -> str | None:
    return None if text is None else blake2b(text, digest_size=16).hexdigest()


def _meaning(text: bytes | None) -> str | None:
    """Hash what a file does, without white space and comments; comparable within one version of Python."""
    if text is None:
        return None
    import ast

    words: list[str] = []
    say, node_class = words.append, ast.AST

    # Not ast.dump, which takes twice as long: a thousand files are read while their migrations run.
    def read(node: ast.AST) -> None:
        say(node.__class__.__name__)
        fields = node.__dict__
        for name in node._fields:
            value = fields.get(name)
            if isinstance(value, list):
                say(str(len(value)))
                for each in value:
                    read(each) if isinstance(each, node_class) else say(repr(each))
            elif isinstance(value, node_class):
                read(value)
            else:
                say(repr(value))

    try:
        read(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return f"{_FORM} {_hash(chr(10).join(words).encode())}"
