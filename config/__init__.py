"""Every script imports this first: what has to be set before PyTorch is imported."""

import atexit
import getpass
import os
import shutil
import sys
import tempfile

# Where stdin, stdout or stderr is closed, the next file that is opened would take its place and get
# what is printed.
while os.open(os.devnull, os.O_RDWR) < 2:
    pass
sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115

# PyTorch and others ask for the user's name and home, which a container's user may lack.
try:
    getpass.getuser()
except (ImportError, KeyError, OSError):
    os.environ["USER"] = str(getattr(os, "getuid", os.getpid)())
if os.path.expanduser("~") == "~":
    os.environ["HOME"] = tempfile.mkdtemp()  # nobody else may write to it
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)

# ONNX Runtime would report its use to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# OpenMP's threads spin while they wait for each other, by default for milliseconds, and no other
# process gets the core meanwhile. 1000 turns take some 20 microseconds (ETC/MACHINES.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
