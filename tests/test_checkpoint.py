import hashlib
import os
import random
import shutil

import pytest
import torch

from conftest import damage
from utils.checkpoint import find_checkpoints, load_checkpoint, load_state, save_checkpoint
from utils.cli import InputError


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))


def save_head(folder, target, seed=0, crop=None, **changes):
    """Write best.pth of a tiny head to folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value + seed for name, value in network().state_dict().items()}
    save_checkpoint(
        folder / "best.pth",
        {"target": target, "model": "tiny", "crop": crop or {"margin_x": 20}, "network": weights,
         **changes},
    )  # fmt: skip
    return folder / "best.pth"


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = save_head(tmp_path, "age", classes=["under30", "30to59"], mean=[0.5] * 3)
    checkpoint = load_checkpoint(path)
    assert (checkpoint["classes"], checkpoint["mean"]) == (["under30", "30to59"], [0.5] * 3)
    assert checkpoint["path"] == str(path)
    assert checkpoint["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    other = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    load_state(other, checkpoint)
    for name, value in network().state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    with pytest.raises(InputError, match=r"best\.pth: not weights of tiny"):
        load_state(torch.nn.Linear(2, 2), checkpoint)


class Bomb:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


@pytest.mark.parametrize("zip_file", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, capfd, zip_file):
    path = tmp_path / "best.pth"
    checkpoint = {"format": 2, "network": Bomb()}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zip_file)
    with pytest.raises(InputError, match=r"best\.pth: damaged, or not a checkpoint"):
        load_checkpoint(path)
    assert "ran" not in capfd.readouterr().out


def test_what_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / "best.pth"
    for content, message in (
        ([1, 2], "not a checkpoint"),
        (network().state_dict(), "not a checkpoint"),
        ({"format": 1, "network": {}}, "train it again"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=rf"best\.pth: .*{message}"):
            load_checkpoint(path)


def test_damaged_checkpoints_are_refused_in_one_line(tmp_path):
    path = save_head(tmp_path, "age", classes=["under30", "30to59"])
    expected, content = load_checkpoint(path), path.read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(100):
        path.write_bytes(damage(content, rng))
        try:
            checkpoint = load_checkpoint(path)
        except InputError:
            refused += 1
        else:  # nothing but padding was hit
            assert checkpoint.keys() == expected.keys()
            for name, value in expected["network"].items():
                assert torch.equal(checkpoint["network"][name], value)
    assert refused > 80


def make_heads(folder):
    for seed, name in enumerate(("mask_fold0", "gender_fold4", "age_fold0", "age_fold1")):
        save_head(folder / name, name.split("_")[0], seed)
    return folder


def folds(folders):
    return {
        target: [os.path.relpath(checkpoint["path"], folders[0]) for checkpoint in checkpoints]
        for target, checkpoints in find_checkpoints(folders).items()
    }


def test_all_folds_of_all_folders_are_found_and_copies_count_once(tmp_path):
    first, second = make_heads(tmp_path / "first"), tmp_path / "second"
    expected = {
        "mask": ["mask_fold0/best.pth"],
        "gender": ["gender_fold4/best.pth"],
        "age": ["age_fold0/best.pth", "age_fold1/best.pth"],
    }
    assert folds([first]) == expected
    shutil.copytree(first / "age_fold1", second / "age_fold2")
    save_head(second / "mask_fold3", "mask", seed=9)
    expected["mask"].append("../second/mask_fold3/best.pth")
    assert folds([first, second]) == folds([first, second, first]) == expected
    runs = [first / name for name in ("mask_fold0", "gender_fold4", "age_fold1")]  # of one fold
    assert folds(runs)["age"] == ["../age_fold1/best.pth"]
    assert folds([first / "age_fold1", first])["age"] == ["best.pth", "../age_fold0/best.pth"]


def test_heads_that_do_not_belong_together_are_refused(tmp_path):
    folder = make_heads(tmp_path / "runs")

    def assert_refused(message, *folders):
        with pytest.raises(InputError, match=message):
            find_checkpoints([*map(str, folders or [folder])])

    save_head(folder / "age_fold1", "age", crop={"margin_x": 5})
    assert_refused(r"age_fold1.best\.pth: .*other crops")
    shutil.copy(folder / "mask_fold0/best.pth", folder / "age_fold1/best.pth")
    assert_refused(r"age_fold1.best\.pth: .*mask head")
    shutil.rmtree(folder / "gender_fold4")
    assert_refused("python train.py --target gender")
    assert_refused(rf"--runs {tmp_path}: .*try --runs {folder}", tmp_path)
    (tmp_path / "empty").mkdir()
    assert_refused("empty: no <target>_fold<k>", folder, tmp_path / "empty")
