import os
import subprocess
import sys

import pytest

from conftest import ROOT


def test_folders_and_processes_come_from_the_environment():
    variables = {"MAG_DATA_DIR": "a", "MAG_CROP_DIR": "b", "LOCAL_WORLD_SIZE": "1000"}
    code = "from config.config import *; print(DATA_DIR, CROP_DIR, NUM_WORKERS)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.stdout == "a b 1\n", done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no user numbers")
def test_a_user_without_a_name_and_a_home(tmp_path):
    code = (
        "import os, pwd; pwd.getpwuid = {}.__getitem__; import config, getpass, tempfile;"
        "print(getpass.getuser() == str(os.getuid()),"
        " os.path.expanduser('~').startswith(tempfile.gettempdir()))"
    )
    command = [sys.executable, "-c", code]
    folder = {"TMPDIR": str(tmp_path)}
    for variables, expected in (({}, "True True\n"), ({"USER": "a", "HOME": "/"}, "False False\n")):
        environment = variables | folder
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.stdout == expected, done.stderr
        assert not any(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_closed_streams_do_not_end_in_files(tmp_path):
    code = (
        "import config, os, sys; file = open(sys.argv[1], 'w'); print('lost');"
        "print('lost', file=sys.stderr); os.write(1, b'lost'); file.write('kept')"
    )
    command = ["sh", "-c", '"$0" -c "$1" "$2" >&- 2>&- <&-', sys.executable, code, tmp_path / "x"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "x").read_text() == "kept"


def test_threads_spin_for_a_short_time_unless_the_user_has_chosen():
    command = [sys.executable, "-c", "import config, os; print(os.environ.get('GOMP_SPINCOUNT'))"]
    for variables, expected in (
        ({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None"),
    ):  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        assert done.stdout == f"{expected}\n", done.stderr
