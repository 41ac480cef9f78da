import subprocess
import sys

from config import config
from conftest import ROOT


def test_the_originals_values():
    assert (config.SEED, config.NUM_FOLDS, config.FOCAL_GAMMA) == (777, 5, 2)
    assert (config.AGE_BORDER, config.OFFICIAL_AGE_BORDER) == (59, 60)
    assert {"margin_x": 20, "margin_y": 30, "center_size": 300}.items() <= config.CROP.items()


def test_folders_and_processes_come_from_the_environment():
    variables = {"MAG_DATA_DIR": "a", "MAG_CROP_DIR": "b", "LOCAL_WORLD_SIZE": "1000"}
    code = "from config.config import *; print(DATA_DIR, CROP_DIR, NUM_WORKERS)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.stdout == "a b 1\n", done.stderr
