"""The image under the restrictions that clusters put on it: nothing to write to, a user of no name, no shell."""

import json

import pytest
from containers import HEAD

from servers import wait_until

pytestmark = pytest.mark.container

RESTRICTED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
NOBODY_KNOWN = ("--user=54321:54321",)

SHOW_USER = """
import json, os, pwd
print(json.dumps({"user": os.getuid(), "group": os.getgid(), "is_known": 54321 in {u.pw_uid for u in pwd.getpwall()}}))
"""
SHOW_WRITABLE = """
import os
def is_writable(folder):
    try:
        open(f"{folder}/probe", "w").close()
    except OSError:
        return False
    return True
print(*(folder for folder in ("/tmp", "/var/tmp", "/app", "/venv", "/dev/shm", "/") if is_writable(folder)))
"""
SHOW_SHELLS = """
import os, shutil
shells = {"sh", "bash", "dash", "rbash", "ash", "busybox", "zsh", "ksh"}
print(*(name for folder in ("/bin", "/usr/bin", "/usr/local/bin") for name in os.listdir(folder) if name in shells))
try:
    os.system("true") and print("no shell")
    print(shutil.which("sh"))
except OSError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def shell_less_image(build, image):
    """Build the example's image without a shell, as `distroless` images are."""
    remove = "rm -f $(cat /etc/shells | grep ^/) && exit"
    return build(f'FROM {image}\nUSER 0:0\nRUN ["sh", "-c", "{remove}"]\nUSER 10001:10001\n')


def test_a_container_with_nothing_to_write_to_migrates_and_starts(start, notes_database):
    container = start("python", "-c", SHOW_WRITABLE, options=(*notes_database.access, *RESTRICTED))
    assert container.exit_code() == 0, container.stderr()
    # Memory that Docker mounts, and no file of the image.
    assert container.stdout() == "/dev/shm\n"
    assert notes_database.recorded() == HEAD


def test_a_user_that_the_image_does_not_know_migrates_and_starts(start, notes_database):
    container = start("python", "-c", SHOW_USER, options=(*notes_database.access, *NOBODY_KNOWN))
    assert container.exit_code() == 0, container.stderr()
    assert json.loads(container.stdout()) == {"user": 54321, "group": 54321, "is_known": False}
    assert notes_database.recorded() == HEAD


def test_an_image_without_a_shell_migrates_and_starts(start, shell_less_image, notes_database):
    container = start("python", "-c", SHOW_SHELLS, options=notes_database.access, image=shell_less_image)
    assert container.exit_code() == 0, container.stderr()
    assert container.stdout() == "\nno shell\nNone\n"
    assert notes_database.recorded() == HEAD


def test_an_app_under_all_restrictions_at_once_serves_and_stops(start, shell_less_image, notes_database):
    options = (*notes_database.access, *RESTRICTED, *NOBODY_KNOWN, "--publish=127.0.0.1::8000")
    container = start(options=options, image=shell_less_image)
    assert wait_until(container.health, timeout=30) == {"revision": HEAD, "notes": 0}
    assert container.stop() == 0
