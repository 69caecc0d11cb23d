"""What a file means: what may change in it without being an edit, and what may not."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

from alembic_entrypoint.content import is_edited, learned

FILE = """
def upgrade():
    if True:
        op.execute('a  b')
    op.drop_table("t", if_exists=None)
"""
SAME = [
    FILE.replace("    if", "    # why\n\n    if"),
    FILE.replace("('a  b')", '("a  b")  # a comment'),
    FILE.replace('("t", ', '(\n        "t",\n        ').replace("None)", "None,\n    )"),
    FILE.replace("    ", "\t"),
    FILE.replace("\n", "\r\n"),
    FILE.replace("'a  b'", "'a '\n            ' b'"),
]
OTHER = [
    FILE.replace("a  b", "a b"),
    FILE.replace("    op.drop", "        op.drop"),
    FILE.replace("None", "'None'"),
    FILE.replace("None", "0"),
    FILE.replace("None", "False"),
    FILE.replace("if_exists", "cascade"),
    FILE.replace('"t", ', '"t", *[], '),
    FILE.replace("'a  b'", "'a', 'b'"),
    FILE.replace("'a  b'", "b'a  b'"),
    FILE + "def downgrade():\n    pass\n",
    FILE.replace("def", "async def"),
    FILE.replace("True", "not True"),
]


def written(folder: Path, text: str) -> str:
    path = folder / "migration.py"
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize("text", SAME)
def test_white_space_and_comments_are_no_edit(tmp_path: Path, text: str) -> None:
    was = learned(written(tmp_path, FILE))
    now = learned(written(tmp_path, text))
    assert (was[0] != now[0], was[1]) == (True, now[1])
    assert not is_edited(written(tmp_path, text), was)


@pytest.mark.parametrize("text", OTHER)
def test_anything_else_is_one(tmp_path: Path, text: str) -> None:
    was = learned(written(tmp_path, FILE))
    assert is_edited(written(tmp_path, text), was)


def test_two_files_mean_the_same_exactly_when_their_trees_are_the_same(tmp_path: Path) -> None:
    texts = {text: learned(written(tmp_path, text))[1] for text in [FILE, *SAME, *OTHER]}
    for (one, its), (another, others) in itertools.combinations(texts.items(), 2):
        assert (its == others) == (ast.dump(ast.parse(one)) == ast.dump(ast.parse(another))), (one, another)


@pytest.mark.parametrize("text", ["def upgrade(", "x = " + "-" * 100_000 + "1", "\0", "# coding: nothing\n"])
def test_what_cannot_be_parsed_is_known_by_its_bytes_alone_and_is_not_judged(tmp_path: Path, text: str) -> None:
    content, meaning = learned(written(tmp_path, text))
    assert content
    assert meaning is None
    assert not is_edited(written(tmp_path, FILE), (content, meaning))


def test_what_cannot_be_read_is_not_judged(tmp_path: Path) -> None:
    assert learned(str(tmp_path / "gone.py")) == (None, None)
    assert not is_edited(str(tmp_path / "gone.py"), learned(written(tmp_path, FILE)))


def test_what_another_python_has_learned_is_not_compared(tmp_path: Path) -> None:
    content, meaning = learned(written(tmp_path, FILE))
    assert meaning is not None
    assert not is_edited(written(tmp_path, OTHER[0]), (content, f"another {meaning.split()[1]}"))
