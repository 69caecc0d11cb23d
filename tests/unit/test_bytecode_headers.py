"""What 16 bytes and a name tell about bytecode."""

from __future__ import annotations

import struct
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alembic_entrypoint.bytecode import Reason, judge, source_name

MTIME, SIZE = 1_700_000_000, 321
OTHER_PYTHON = b"\x6f\x0d\r\n"  # 3.10's
OTHER_IMPLEMENTATION = b"\x50\x01\r\n"  # PyPy's
PYTHON_3_6 = b"\x33\x0d\r\n"  # 12 bytes and no flags: the time stands where the flags would be


def header(flags: int, mtime: int = MTIME, size: int = SIZE, magic: bytes = MAGIC_NUMBER) -> bytes:
    return magic + struct.pack("<III", flags, mtime, size)


@pytest.mark.parametrize(
    ("first_bytes", "mtime", "size", "reason"),
    [
        pytest.param(header(0), MTIME, SIZE, None, id="fresh"),
        pytest.param(header(0), MTIME + 0.75, SIZE, None, id="fresh, by a clock that has fractions"),
        pytest.param(header(0), MTIME + 2**32, SIZE + 2**32, None, id="fresh, in 32 bits"),
        pytest.param(header(0, mtime=2**32 - 1), -1, SIZE, None, id="fresh, older than 1970"),
        pytest.param(header(0), MTIME + 1, SIZE, Reason.OUTDATED, id="source is newer"),
        pytest.param(header(0), MTIME - 1, SIZE, Reason.OUTDATED, id="source is older"),
        pytest.param(header(0), MTIME, SIZE + 1, Reason.OUTDATED, id="source has another size"),
        pytest.param(header(0, magic=OTHER_PYTHON), MTIME, SIZE, None, id="fresh, another Python"),
        pytest.param(header(0, magic=OTHER_PYTHON), MTIME, 1, Reason.OUTDATED, id="outdated, another Python"),
        pytest.param(header(1, magic=OTHER_IMPLEMENTATION), MTIME, SIZE, Reason.UNCHECKED, id="PyPy's, unchecked"),
        pytest.param(header(1), MTIME, SIZE, Reason.UNCHECKED, id="unchecked hash"),
        pytest.param(header(3), MTIME, SIZE, None, id="checked hash: Python compares"),
        pytest.param(header(4), MTIME, 1, None, id="flags that no Python knows"),
        pytest.param(header(0, magic=b"#!py"), MTIME, 1, None, id="not importlib's"),
        pytest.param(struct.pack("<4sII4s", PYTHON_3_6, MTIME, 1, b"\xe3\0\0\0"), MTIME, SIZE, None, id="3.6"),
        pytest.param(header(1)[:15], MTIME, SIZE, None, id="cut short"),
        pytest.param(b"", MTIME, SIZE, None, id="empty"),
    ],
)
def test_a_header_is_judged_as_importlib_does(
    first_bytes: bytes, mtime: float, size: int, reason: Reason | None
) -> None:
    assert judge(first_bytes, mtime, size) is reason


module_names = st.text(alphabet="abc._-0", min_size=1).filter(lambda name: not name.startswith("."))


@given(module_names, st.sampled_from(["", "1", "2"]), st.sets(module_names))
def test_the_source_of_a_cached_file_is_found_whatever_its_name(
    module: str, optimization: str, neighbours: set[str]
) -> None:
    cached = PurePath(cache_from_source(f"{module}.py", optimization=optimization)).name
    assert source_name(cached, {f"{name}.py" for name in neighbours | {module}}) == f"{module}.py"


@pytest.mark.parametrize(
    ("bytecode", "source"),
    [
        ("users.cpython-311.pyc", "users.py"),
        ("users.cpython-313t.opt-2.pyc", "users.py"),
        ("users.pypy310.pyc", "users.py"),
        ("users.cpython-311-pytest-8.0.0.pyc", "users.py"),
        ("2024.01_users.cpython-311.pyc", "2024.01_users.py"),
        ("orders.cpython-311.pyc", None),
        ("usersx.cpython-311.pyc", None),
        (".cpython-311.pyc", None),
    ],
)
def test_tags_of_every_interpreter_are_understood(bytecode: str, source: str | None) -> None:
    assert source_name(bytecode, {"users.py", "2024.01_users.py", ".py"}) == source
