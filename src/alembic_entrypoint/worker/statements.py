"""Which statements reach beyond one database, and cannot be replayed. No I/O here."""

from __future__ import annotations

import re

#: What may hold any text: escaped and plain literals, quoted names, comments (which end at either end of a line), and
#: dollar-quoted literals.
_QUOTED = re.compile(
    r"""\b[eE]'(?P<escaped>(?:[^'\\]|\\.|'')*)'|(?P<unicode>\b[uU]&)?(?:'(?P<literal>(?:[^']|'')*)'"""
    r"""|"(?P<name>(?:[^"]|"")*)")|(?P<comment>--[^\n\r]*|/\*.*?\*/)|(?P<tag>\$\w*\$)(?P<body>.*?)(?P=tag)""",
    re.DOTALL,
)
#: Here a literal may be a body, or what a body executes.
_HAS_BODY = re.compile(r"(^|;)\s*DO\b|\bCREATE\b[^;]*?\b(FUNCTION|PROCEDURE)\b", re.IGNORECASE)
#: `DROP role` in it drops a column.
_ALTERS_RELATION = re.compile(r"\s*ALTER\s+(FOREIGN\s+)?(TABLE|TYPE|VIEW|MATERIALIZED)\b", re.IGNORECASE)
_START = r"(?:^|[;'(]|\$\w*\$|\b(?:BEGIN|THEN|ELSE|LOOP|EXECUTE)\b)\s*"
_SHARED = r"(?:ROLE|USER(?!\s+MAPPING)|GROUP|DATABASE|TABLESPACE|SYSTEM|SUBSCRIPTION)\b"
_SHARED_CATALOG = (
    r"pg_(?:authid|auth_members|roles|user|shadow|group|database|db_role_setting|tablespace|subscription|parameter_acl"
    r"|replication_origin|shdescription|shseclabel|shdepend)"
)
_FUNCTION = (
    r"(?:dblink\w*|lo_(?:import|export)"
    r"|pg_(?:terminate|cancel)_backend|pg_(?:reload_conf|promote|rotate_logfile|switch_wal|create_restore_point)"
    r"|pg_(?:read_file|read_binary_file|ls_dir|file_\w+)|pg_(?:create|drop|copy)_\w*replication_slot"
    r"|pg_replication_origin_\w+)"
)
#: Written in what may do anything: by convention the name of an untrusted language ends with u.
_LANGUAGE = r"(?:c|internal|\w+u|plsh|plr)"
#: Names that count where they are quoted, too; another, such as "alter role", would only look like what it is not.
_TELLING = re.compile(rf"{_SHARED_CATALOG}|{_FUNCTION}|{_LANGUAGE}", re.IGNORECASE)
_FUNCTIONS = re.compile(rf"\b{_FUNCTION}\s*\(", re.IGNORECASE)
_COPY = re.compile(_START + r"COPY\b[^;]*?\b(?:FROM|TO)\s+(?:PROGRAM\b|'|%[Ls]|\|\|)", re.IGNORECASE | re.DOTALL)
_OBJECTS = re.compile(
    rf"\b(?:CREATE|ALTER|DROP)\s+{_SHARED}|\b(?:COMMENT|SECURITY\s+LABEL)\b[^;]*?\bON\s+{_SHARED}"
    r"|\b(?:GRANT|REVOKE)\b[^;]*?\bON\s+(?:DATABASE|TABLESPACE|PARAMETER)\b"
    rf"|{_START}(?:GRANT|REVOKE)\s+(?![^;]*\bON\b)[^;]*?\b(?:TO|FROM)\b"
    r"|\b(?:REASSIGN|DROP)\s+OWNED\b|\bCREATE\s+SERVER\b|\bIMPORT\s+FOREIGN\s+SCHEMA\b|\bPREPARE\s+TRANSACTION\b"
    r"|\b(?:INSERT\s+INTO|MERGE\s+INTO(?:\s+ONLY)?|UPDATE(?:\s+ONLY)?|DELETE\s+FROM(?:\s+ONLY)?)"
    rf"\s+(?:pg_catalog\s*\.\s*)?{_SHARED_CATALOG}\b",
    re.IGNORECASE | re.DOTALL,
)
_UNTRUSTED = re.compile(rf"\bLANGUAGE\s+'?{_LANGUAGE}\b", re.IGNORECASE)
#: Each of the above has one of these in it. Where a text has none, and no escapes, which might spell one, it is done.
_WORDS = (
    *("role", "user", "group", "database", "tablespace", "system", "subscription", "pg_", "lo_", "dblink", "copy"),
    *("grant", "revoke", "owned", "server", "foreign", "prepare", "language"),
    *("\\", "u&"),
)
_COMMIT = re.compile(r"(?:\s|--[^\n\r]*|/\*.*?\*/)*(?:COMMIT|END)\b", re.IGNORECASE | re.DOTALL)


def beyond(statement: str) -> str | None:
    """Name what in a statement reaches beyond one database, in the words that it uses; None where nothing does.

    Data is not looked at; what a DO block or a function would execute is, even where it is put together from text.
    A text that cannot be told from such a statement counts as one.
    """
    lower = statement.lower()
    return _found(statement) if any(word in lower for word in _WORDS) else None


def _found(statement: str) -> str | None:
    text = _text(statement, keeps=False)
    patterns = [_OBJECTS, _FUNCTIONS, _COPY]
    if _HAS_BODY.search(text):
        text = _text(statement, keeps=True)
        patterns.append(_UNTRUSTED)
    for part in text.split(";"):
        for pattern in patterns[1:] if _ALTERS_RELATION.match(part) else patterns:
            if found := pattern.search(part):
                return " ".join(found[0].replace("'", " ").strip("$;( ").split()).upper()
    return None


def commits(statement: str) -> bool:
    """Tell whether a statement ends a transaction, and keeps what was done in it."""
    return bool(_COMMIT.match(statement))


def _text(statement: str, keeps: bool) -> str:
    """Take out comments and quoted names, and what is in literals unless that is kept because it may be executed."""

    def replaced(match: re.Match[str]) -> str:
        decoded = _without_unicode if match["unicode"] else str
        if match["comment"] is not None:
            return " "
        if match["name"] is not None:
            name = decoded(match["name"])
            return name if _TELLING.fullmatch(name) else '""'
        if not keeps:
            return "''"
        if match["tag"]:
            return f"{match['tag']}{_text(match['body'], keeps)}{match['tag']}"
        if match["escaped"] is not None:
            return f"'{_text(_ESCAPE.sub(_unescaped, match['escaped']).replace(_TWO, _ONE), keeps)}'"
        return f"'{_text(decoded(match['literal']).replace(_TWO, _ONE), keeps)}'"

    return _QUOTED.sub(replaced, statement)


_ONE, _TWO = "'", "''"
#: As PostgreSQL reads E'…' (documentation, "String Constants With C-Style Escapes").
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))", re.DOTALL)
_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def _unescaped(match: re.Match[str]) -> str:
    *hexadecimal, octal, letter = match.groups()
    if letter is not None:
        return _LETTERS.get(letter, letter)
    return _letter(int(octal, 8) % 256 if octal else int(next(filter(None, hexadecimal)), 16))


def _without_unicode(text: str) -> str:
    r"""Read U&'…' with its usual escapes, `\0041` and `\+000041`, and any other that UESCAPE may name."""
    return re.sub(r"[^\w\s'](?:\+([0-9a-fA-F]{6})|([0-9a-fA-F]{4}))", lambda m: _letter(int(m[1] or m[2], 16)), text)


def _letter(number: int) -> str:
    return chr(number) if number <= 0x10FFFF else "?"
