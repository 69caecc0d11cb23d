"""Bring what the server deparses to one normal form. No I/O here.

PostgreSQL prints an expression from its parse tree, and some trees print differently after their own text was
read back once, as a dump and restore does [R15]. The normal form is the text after that.
Storage parameters, which do not count, stand within an index's definition: they are taken out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Union

from alembic_entrypoint.schema.facts import Kind, Value

#: The attributes that the server deparses. A body is as its author wrote it, so it is none of them.
DEPARSED = frozenset(
    {"arguments", "bounds", "check", "constraints", "default", "definition"}
    | {"generated", "partition key", "sql body", "using"}
)

#: A bracket with what is in it: the first item opens it, the last one closes it; both are empty for a whole text.
_Bracket = list[Union[str, "_Bracket"]]
_QUOTES = ("'", '"')
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[^'"()\[\]]+|.""", re.DOTALL)
_ARRAY_TYPE = re.compile(r"""::((?:"(?:[^"]|"")*"|[\w. ]|\(\d+(?:, ?-?\d+)?\))+)\[\]""")
#: Nested deeper than this, an expression is left as it is: Python would run out of stack at about 400.
_DEEPEST = 200
_CHANGING = re.compile(r"\(ARRAY\[| OR .* OR | AND .* AND ", re.DOTALL)


def normal(kind: Kind, told: Mapping[str, Value]) -> Mapping[str, Value]:
    """Return the attributes of a thing with every deparsed text in its normal form."""
    reshaped = {attribute: _each(settled, told[attribute]) for attribute in DEPARSED & told.keys()}
    if kind in (Kind.INDEX, Kind.CONSTRAINT):
        reshaped["definition"] = _each(without_parameters, reshaped["definition"])
    return {**told, **reshaped}


def without_parameters(definition: str) -> str:
    """Return an index's or constraint's definition without its storage parameters, ``WITH (fillfactor='70')``."""
    if " WITH (" not in definition:
        return definition
    tree = _tree(definition)
    for at, item in enumerate(tree):
        if isinstance(item, str) and item.endswith(" WITH "):
            tree[at : at + 2] = [item.removesuffix(" WITH ")]
            break
    return _text(tree)


def settled(expression: str) -> str:
    """Return the text that the expression has after it was read back by the server.

    ``(ARRAY['a'::varchar])::text[]``, which ``x IN ('a')`` becomes, is then ``ARRAY[('a'::varchar)::text]``
    (``transformTypeCast`` in PostgreSQL's ``parse_expr.c``), and ``((a OR b) OR c)``, which ``x IN (y, z, 1)``
    becomes, is ``(a OR b OR c)`` (``makeOrExpr`` and ``makeAndExpr`` in ``gram.y``).
    """
    if not _CHANGING.search(expression) or _depth(expression) > _DEEPEST:
        return expression
    return _text(_settled(_tree(expression)))


def _each(reshape: Callable[[str], str], value: Value) -> Value:
    if isinstance(value, tuple):
        return tuple(_each(reshape, one) for one in value)
    return reshape(value) if isinstance(value, str) else value


def _depth(text: str) -> int:
    """Return how deep brackets are nested in a text, or more where a quoted text has some."""
    return max(accumulate({"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0) for character in text))


def _tree(text: str) -> _Bracket:
    root: _Bracket = [""]
    open_brackets = [root]
    for token in _TOKEN.findall(text):
        if token in ("(", "["):
            inner: _Bracket = [token]
            open_brackets[-1].append(inner)
            open_brackets.append(inner)
        else:
            open_brackets[-1].append(token)
            if token in (")", "]") and len(open_brackets) > 1:
                open_brackets.pop()
    root.append("")
    return root


def _text(items: Iterable[str | _Bracket]) -> str:
    return "".join(item if isinstance(item, str) else _text(item) for item in items)


def _settled(bracket: _Bracket) -> _Bracket:
    items = [item if isinstance(item, str) else _settled(item) for item in bracket]
    for word in (" OR ", " AND "):
        items = _flattened(items, word)
    for at, item in enumerate(items):
        array = _array(item)
        cast = array and _ARRAY_TYPE.match(rest := _text(items[at + 1 :]))
        if array and cast:
            return _settled([*items[:at], *_cast(array, cast[1]), *_tree(rest[cast.end() :])[1:-1]])
    return items


def _flattened(items: _Bracket, word: str) -> _Bracket:
    """Return ``(a OR b OR c)`` for ``((a OR b) OR c)``, where ``word`` is OR."""
    match items:
        case ["(", ["(", *inner, ")"], str(after), *others] if after.startswith(word):
            if any(isinstance(item, str) and item[0] not in _QUOTES and word in item for item in inner):
                return ["(", *inner, after, *others]
    return items


def _array(item: str | _Bracket) -> _Bracket | None:
    """Return the bracket with the elements of ``(ARRAY[a, b])``; None for anything else."""
    match item:
        case ["(", "ARRAY", [*elements], ")"]:
            return elements
    return None


def _cast(array: _Bracket, name: str) -> _Bracket:
    """Return ``ARRAY[(a)::name, (b)::name]`` for the elements ``[a, b]``, at every level of nested arrays."""
    elements: list[_Bracket] = [[]]
    for item in array[1:-1]:
        first, *others = item.split(", ") if isinstance(item, str) and item[:1] not in _QUOTES else [item]
        elements[-1] += [first] if first else []
        elements.extend([other] for other in others)
    cast: _Bracket = []
    for element in elements:
        match element:
            case ["ARRAY", [*inner]]:
                one = _cast(inner, name)
            case _:
                one = [["(", *element, ")"], f"::{name}"]
        cast += [", ", *one] if cast else one
    return ["ARRAY", ["[", *cast, "]"]]
