"""What goes beyond the original: recipes, and what they are made of."""

import shutil
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import test
import train
from config import config
from conftest import ROOT, SMALL, assert_refused, run, run_ok
from data.augment import apply_transform, build_transform
from data.labels import fix_labels, list_train_images
from models.age_head import MAX_AGE, AgeHead, age_distribution_loss
from models.network import average, build_network, load_network
from utils.checkpoint import load_checkpoint
from utils.schedule import learning_rates


def test_age_head_adds_up_the_ages_of_each_group():
    head = AgeHead(8, 59)
    features = torch.randn(5, 8)
    logits = F.linear(features, head.weight, head.bias)
    assert torch.equal(head(features), logits)
    ages = logits.softmax(1)
    groups = [ages[:, :30].sum(1), ages[:, 30:59].sum(1), ages[:, 59:].sum(1)]
    torch.testing.assert_close(head.eval()(features).exp(), torch.stack(groups, dim=1))


def test_age_distribution_is_a_normal_one_around_the_age():
    logits, ages = torch.randn(4, MAX_AGE + 1, dtype=torch.float64), torch.tensor([0, 25, 60, 100])
    years = np.arange(MAX_AGE + 1)
    expected = 0
    for row, age in zip(logits.log_softmax(1).numpy(), ages.numpy()):
        density = np.exp(-((years - age) ** 2) / (2 * 2.5**2))
        expected -= (density / density.sum() * row).sum() / 4
    assert float(age_distribution_loss(logits, ages, sigma=2.5)) == pytest.approx(expected)
    # A narrow distribution is cross-entropy over single years.
    narrow = age_distribution_loss(logits, ages, sigma=0.1)
    torch.testing.assert_close(narrow, F.cross_entropy(logits, ages))


def test_cosine_rises_and_falls_and_is_the_same_however_the_epochs_are_cut():
    args = Namespace(schedule="cosine", lr=0.1, epochs=4)
    rates = np.concatenate([learning_rates(args, epoch, 25) for epoch in range(1, 5)])
    assert rates.argmax() == 9  # of 100 steps, a tenth
    assert rates.max() == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[9:]) < 0).all()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([torch.zeros(1)], lr=0.1), T_max=90
    )
    reference = []
    for _ in range(91):
        reference += scheduler.get_last_lr()
        scheduler.optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates[9:], reference, atol=1e-9)
    constant = learning_rates(Namespace(schedule="constant", lr=0.1, epochs=4), 2, 25)
    assert constant.tolist() == [0.1] * 25


def test_average_is_the_mean_of_probabilities():
    one, other = torch.randn(3, 4), torch.randn(3, 4)
    assert average([one]) is one
    expected = (one.softmax(1) + other.softmax(1)) / 2
    torch.testing.assert_close(average([one, other]).softmax(1), expected)
    sure = torch.tensor([[300.0, 0.0]])
    torch.testing.assert_close(average([sure, sure]), torch.tensor([[0.0, -300.0]]))


def test_light_augmentation_mirrors_half_the_images():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = 200
    transform = build_transform(64, "light")
    views = [apply_transform(transform, image, [1, view]) for view in range(200)]
    left = np.mean([view[:, :16].mean() > view[:, -16:].mean() for view in views])
    assert 0.4 < left < 0.6
    assert len({view.tobytes() for view in views}) > 150


@pytest.fixture(scope="module")
def best_run(sample_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    for target in config.HEADS:
        run_ok("train.py", "--recipe", "best", "--target", target, "--data-dir", sample_dir,
               "--output-dir", folder, *SMALL, "--epochs", 2)  # fmt: skip
    return folder


def test_recipe_changes_defaults_and_arguments_override_it(best_run, monkeypatch):
    def arguments(*given):
        monkeypatch.setattr("sys.argv", ["train.py", *given])
        return train.parse_args()

    for target, head in config.HEADS.items():
        seed, best = (arguments("--target", target, *r) for r in ([], ["--recipe", "best"]))
        assert {name: getattr(seed, name) for name in head if name != "classes"} == {
            name: value for name, value in head.items() if name != "classes"
        }
        for name, value in config.RECIPES["best"][target].items():
            assert getattr(best, name) == value
        assert best.epochs == seed.epochs
    assert arguments("--target", "age", "--recipe", "best", "--lr", "5e-4").lr == 5e-4


def test_test_takes_the_views_that_each_head_was_validated_with(best_run, sample_dir, tmp_path):
    command = ["test.py", "--data-dir", sample_dir, "--runs", best_run, "--backend", "torch"]
    tables = {}
    for name, arguments in (("as trained", []), ("flip", ["--tta", "flip"]),
                            ("none", ["--tta", "none"])):  # fmt: skip
        run_ok(*command, "--output", tmp_path / name / "submission.csv", *arguments)
        tables[name] = pd.read_csv(tmp_path / name / "probabilities.csv")
    for target in config.HEADS:
        trained, flip, none = (table.filter(like=f"{target}_") for table in tables.values())
        tta = config.RECIPES["best"][target].get("tta", "none")
        assert trained.equals({"flip": flip, "none": none}[tta])
        assert not flip.equals(none)
    network = load_network(load_checkpoint(best_run / "age_fold0/best.pth"))
    assert isinstance(network._fc, AgeHead)
    columns = ["age_under30", "age_30to59", "age_60plus"]
    np.testing.assert_allclose(tables["none"][columns].sum(axis=1), 1, atol=3e-6)
    run_ok(*command[:-1], "onnx", "--output", tmp_path / "onnx/submission.csv")
    onnx = pd.read_csv(tmp_path / "onnx/probabilities.csv")
    names = onnx.columns[1:]
    np.testing.assert_allclose(onnx[names], tables["as trained"][names], atol=1e-4)


def test_valid_scores_of_an_age_head_are_of_the_official_groups(best_run, sample_dir):
    table = pd.read_csv(best_run / "age_fold0/valid_predictions.csv")
    log = pd.read_csv(best_run / "age_fold0/log.csv")
    best = log.loc[log["macro_f1"].idxmax()]
    classes = config.HEADS["age"]["classes"]
    assert set(table["label"]) <= set(classes)
    assert (table["label"] == table["predicted"]).mean() == pytest.approx(best["accuracy"])
    # The valid loss is cross-entropy over the groups.
    assert table["loss"].mean() == pytest.approx(best["valid_loss"], rel=1e-3)


def test_cosine_goes_on_as_if_nothing_had_happened(best_run, sample_dir, tmp_path, monkeypatch):
    command = ["train.py", "--recipe", "best", "--target", "age", "--data-dir", sample_dir,
               "--output-dir", tmp_path, *SMALL]  # fmt: skip
    real = train.save_epoch

    def stop_after(*values):
        real(*values)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_epoch", stop_after)
    assert run(*command, "--epochs", 2).returncode == 130
    monkeypatch.setattr(train, "save_epoch", real)
    done = run(*command, "--epochs", 3, "--resume")
    assert_refused(done, "--epochs 2")
    run_ok(*command, "--epochs", 2, "--resume")
    for name in ("best.pth", "last.pth", "log.csv"):
        there = (best_run / "age_fold0" / name).read_bytes()
        assert (tmp_path / "age_fold0" / name).read_bytes() == there


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "mask", "--loss", "age_distribution"], ["age_distribution", "--target age"]),
        (["--target", "age", "--age-sigma", "2"], ["--age-sigma", "--loss age_distribution"]),
        (["--target", "age", "--age-border", "101"], ["--age-border 101"]),
        (["--target", "age", "--recipe", "worst"], ["--recipe", "best"]),
    ],
)
def test_arguments_that_make_no_sense(arguments, words, sample_dir):
    assert_refused(run("train.py", "--data-dir", sample_dir, *arguments), *words)


def test_label_fixes(sample_dir, tmp_path, capsys):
    images = list_train_images(sample_dir)
    one, two = images["id"].unique()[:2]
    gender = images["gender"][images["id"] == one].iloc[0]
    other = {"male": "female", "female": "male"}[gender]
    path = tmp_path / "fixes.csv"
    path.write_text(
        f"id,field,old,new\n{one},gender,{gender},{other}\n{two},age,119,77\n"
        f"{two},shot,normal,incorrect_mask\n{two},shot,incorrect_mask,normal\n"
        f"{one},age,{images['age'].iloc[0]},77\nnobody,gender,male,female\n"
    )
    fixed = fix_labels(images, path)
    changed = fixed.compare(images, result_names=("fixed", "given"))
    assert len(changed) == 9  # seven photos of one, two shots of the other
    assert set(fixed["gender"][fixed["id"] == one]) == {other}
    assert set(fixed["age"][fixed["id"] == one]) == {77}
    assert fixed["age"].dtype == images["age"].dtype
    shots = fixed[fixed["id"] == two].set_index("file")["shot"]
    assert {file.split("/")[1].split(".")[0]: shot for file, shot in shots.items()} == {
        **{f"mask{i}": f"mask{i}" for i in range(1, 6)},
        "normal": "incorrect_mask", "incorrect_mask": "normal",
    }  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert f"{one}, gender {gender} -> {other}: 7 photos" in printed[0]
    assert printed[4] == f"{path}: 4 of 6 rows applied"


def test_fixed_labels_leave_the_folds_as_they_are(sample_dir, tmp_path):
    people = list_train_images(sample_dir).drop_duplicates("id")
    path = tmp_path / "fixes.csv"
    path.write_text(
        "id,field,old,new\n"
        + "".join(f"{id},age,{age},{95 - age}\n" for id, age in zip(people["id"], people["age"]))
    )
    command = ["train.py", "--target", "age", "--data-dir", sample_dir, *SMALL, "--epochs", 1]
    tables = []
    for name, fixes in (("given", []), ("fixed", ["--label-fixes", path])):
        run_ok(*command, "--output-dir", tmp_path / name, *fixes)
        tables.append(pd.read_csv(tmp_path / name / "age_fold0/valid_predictions.csv"))
    given, fixed = tables
    assert fixed["file"].equals(given["file"])
    assert (fixed["age"] == 95 - given["age"]).all()
    done = run("-m", "ETC.compare", tmp_path / "given", tmp_path / "fixed")
    assert_refused(done, "--label-fixes")
    # The labels are compared, not the name of the file.
    (tmp_path / "same.csv").write_text(path.read_text())
    resume = ["--output-dir", tmp_path / "fixed", "--epochs", 2, "--resume", "--label-fixes"]
    run_ok(*command, *resume, tmp_path / "same.csv")
    path.write_text("id,field,old,new\n0,age,1,2\n")
    assert_refused(run(*command, *resume, path, "--epochs", 3), "other photos or labels")


def test_bad_label_fixes_are_named(sample_dir, tmp_path):
    path = tmp_path / "fixes.csv"
    path.write_text(
        "id,field,old,new\n1,race,a,b\n1,gender,male,man\n1,age,3,200\n1,age,3,4\n1,age,3.0,4\n"
        "1,gender,male,male\n"
    )
    command = ["train.py", "--target", "age", "--data-dir", sample_dir, "--label-fixes", path]
    words = ["line 2: field", "line 3: new", "line 4: new", "line 5: stands there twice",
             "line 6: old", "line 7: old and new are the same"]  # fmt: skip
    assert_refused(run(*command), "fixes.csv", *words)
    assert_refused(run(*command[:-1], tmp_path / "none.csv"), "none.csv", "data/label_fixes.csv")


def test_the_competitions_label_fixes_are_well_formed(tmp_path, sample_dir):
    fixes = pd.read_csv(ROOT / "data/label_fixes.csv", dtype=str)
    assert fixes["field"].value_counts().to_dict() == {"gender": 9, "shot": 6}
    images = list_train_images(sample_dir)
    assert fix_labels(images, ROOT / "data/label_fixes.csv").equals(images)


@pytest.fixture
def predictions(tmp_path):
    """Write runs with valid_predictions.csv of 30 people, of whom a share of photos is right."""

    def write(name, share, seed=0, folds=(0, 1), targets=config.HEADS, people=30):
        for fold in folds:
            for number, target in enumerate(targets):
                rng = np.random.default_rng([seed, fold, number])
                labels_of = np.random.default_rng([7, fold, number])  # the same in all sets
                classes = np.array(config.HEADS[target]["classes"])
                count = people * 7
                labels = np.repeat(labels_of.integers(len(classes), size=people), 7)
                right = rng.random(count) < share
                predicted = np.where(right, labels, (labels + 1) % len(classes))
                probs = np.full((count, len(classes)), 0.1)
                probs[np.arange(count), predicted] = 1 - 0.1 * (len(classes) - 1)
                table = pd.DataFrame({
                    "file": [f"{fold}{i // 7:03}/{i % 7}.jpg" for i in range(count)],
                    "person": [f"{fold}{i // 7:03}" for i in range(count)], "shot": "mask1",
                    "method": "mtcnn", "gender": "male", "age": 30, "label": classes[labels],
                    "predicted": classes[predicted],
                    **{f"p_{name}": probs[:, i] for i, name in enumerate(classes)}, "loss": 0.1,
                })  # fmt: skip
                folder = tmp_path / name / f"{target}_fold{fold}"
                folder.mkdir(parents=True)
                table.to_csv(folder / "valid_predictions.csv", index=False)
                (folder / "config.json").write_text(
                    f'{{"target": "{target}", "fold": {fold}, "data_dir": "x", "crop_dir": null,'
                    '"model": "m", "resize": 1, "epochs": 1}'
                )
                f1 = [f"f1_{c}" for c in classes]
                names = ["epoch", "train_loss", "valid_loss", "accuracy", "macro_f1", *f1]
                log = pd.DataFrame([[1] + [0.5] * (len(names) - 1)], columns=names)
                log.to_csv(folder / "log.csv", index=False)
        return tmp_path / name

    return write


def lines_of(printed, name):
    return [line for line in printed.splitlines() if str(name) in line]


def test_compare_tells_a_gain_from_luck(predictions):
    base = predictions("base/s1", 0.6), predictions("base/s2", 0.6, seed=1)
    better = predictions("better/s1", 0.9, seed=2), predictions("better/s2", 0.9, seed=3)
    same = predictions("same", 0.6, seed=4)
    printed = run_ok("-m", "ETC.compare", base[0].parent, better[0].parent, same)
    assert printed.count("60 valid people") == 4
    gains, luck = lines_of(printed, better[0].parent), lines_of(printed, same)
    for line in gains:
        assert "4 runs" in line
        low, high = (float(x) for x in line.split("[")[1].rstrip("]").split(","))
        assert 0.1 < low < float(line.split()[-3]) < high
    for line in luck:
        low, high = (float(x) for x in line.split("[")[1].rstrip("]").split(","))
        assert low < 0.05
        assert high > -0.05
    # Each number against scikit-learn, for one head of one set.
    table = pd.concat(
        [pd.read_csv(same / f"gender_fold{fold}/valid_predictions.csv") for fold in (0, 1)]
    )
    f1 = test.classification_scores(table["label"] == "male", table["predicted"] == "male", 2)
    assert f"{f1['macro_f1']:.4f}" in luck[2]


def test_compare_takes_links_single_runs_and_unfinished_ones(predictions, tmp_path):
    one, other = predictions("one", 0.6), predictions("other", 0.7, seed=1)
    for fold in (0, 1):
        shutil.rmtree(other / f"mask_fold{fold}")
        (other / f"mask_fold{fold}").symlink_to(one / f"mask_fold{fold}", True)
    shutil.copytree(one, other / "old")  # below a folder of runs: no part of it
    config_json = one / "age_fold0/config.json"
    config_json.write_text(config_json.read_text().replace('"epochs": 1', '"epochs": 4'))
    printed = run_ok("-m", "ETC.compare", one, other)
    assert f"{one / 'age_fold0'}: stopped after 1 of 4 epochs" in printed
    assert f"{other}: without 6 runs in folders further down" in printed
    mask = lines_of(printed[printed.index("\nmask,") :], other)[0]
    assert "+0.0000  [+0.0000, +0.0000]" in mask
    assert "2 runs" in mask
    assert "2 runs" in lines_of(printed[printed.index("\n18 classes,") :], other)[0]
    printed = run_ok("-m", "ETC.compare", one / "age_fold0", other / "age_fold0")
    assert "age, 30 valid people" in printed


def test_compare_refuses_what_cannot_be_compared(predictions, tmp_path):
    one = predictions("one", 0.6)
    other = predictions("other", 0.6, folds=(0,))
    assert_refused(run("-m", "ETC.compare", one, other), "other valid photos", "other", "fold")
    mask = predictions("mask", 0.6, targets=["mask"])
    printed = run_ok("-m", "ETC.compare", one, mask)
    assert "\nmask," in printed
    assert f"age: left out, as {mask} has no run of it" in printed
    assert f"{mask}: without 18 classes, as it has not all three heads" in printed
    mixed = predictions("mixed", 0.6, targets=["gender", "age"])
    predictions("mixed/", 0.6, folds=(0,), targets=["mask"])
    printed = run_ok("-m", "ETC.compare", mixed)
    assert "without 18 classes, as its heads have other folds" in printed
    both = predictions("both/a", 0.6).parent
    assert_refused(run("-m", "ETC.compare", both, both / "a"), "_fold", "in two sets")
    assert_refused(run("-m", "ETC.compare", one, f"{one}/"), "_fold", "in two sets")
    (one / "mask_fold0").rename(one / "mask_fold7")  # names say nothing, arguments do
    shutil.copytree(one / "mask_fold1", one / "copy")
    assert_refused(run("-m", "ETC.compare", one), "another run of mask, fold 1")
    assert_refused(run("-m", "ETC.compare", one, "--samples", 100_001), "--samples 100001")
    (tmp_path / "nothing").mkdir()
    assert_refused(run("-m", "ETC.compare", tmp_path / "nothing"), "nothing", "valid_predictions")


def test_a_network_with_an_age_head_starts_from_the_same_weights():
    plain = build_network("efficientnet-lite0", 3, 64, pretrained=True)
    aged = build_network("efficientnet-lite0", 3, 64, pretrained=True, age_border=59)
    stem = "_conv_stem.weight"
    assert torch.equal(plain.state_dict()[stem], aged.state_dict()[stem])
    assert aged.state_dict()["_fc.weight"].shape[0] == MAX_AGE + 1
