"""Every default, most of them of a command-line argument with the same name.

The values are those of the original, the solution that came 3rd (README.md), except where a comment
says why.
"""

import os

VERSION = "0.1.0"

# the competition's rules, not arguments
NUM_FOLDS = 5
OFFICIAL_AGE_BORDER = 60
CLASSES = {  # label i of a head means CLASSES[head][i]
    "mask": ("normal", "mask", "incorrect"),
    "gender": ("female", "male"),
    "age": ("under30", "30to59", "60plus"),
}

# data
DATA_DIR = os.environ.get("MAG_DATA_DIR") or "input/data"
CROP_DIR = os.environ.get("MAG_CROP_DIR") or None  # None: the data directory
OUTPUT_DIR = "runs"
FOLD = 0
FOLD_SEED = 777  # not SEED: runs with other seeds keep the same val people
# From this age on, people count as 60+, which gives the rare class more examples: in training
# labels or, with the loss age_distribution, whose targets are years, in the answers.
AGE_BORDER = 59

# face crops, in pixels; margins and centre are those of a photo of 384 x 512
CROP = {
    "min_face_size": 50,  # MTCNN's 20 costs a third more, for faces no portrait has
    "margin_x": 20,
    "margin_y": 30,
    "center_size": 300,
    "second_look": True,  # the original had none
}
CROP_BATCH_SIZE = {"cpu": 8, "cuda": 32}

# network
MODEL = "efficientnet-b3"
RESIZE = 224

# training
BATCH_SIZE = 64
SEED = 777
FOCAL_GAMMA = 2.0
LABEL_SMOOTHING = 0.1
AGE_SIGMA = 3.0  # years
BN_MOMENTUM = 0.1  # PyTorch's; at the 0.01 or less of some packages, statistics lag behind
FREEZE_BN = False
WARMUP = 0.1  # share of all steps in which the cosine schedule rises to --lr

# fmt: off
DEFAULTS = {
    "mask":   {"lr": 3e-4, "loss": "cross_entropy", "epochs": 10, "augment": "mask"},
    "gender": {"lr": 1e-4, "loss": "cross_entropy", "epochs": 10, "augment": "gender"},
    "age":    {"lr": 1e-4, "loss": "focal",         "epochs": 4,  "augment": "age"},
}
# fmt: on
SCHEDULE = "constant"
TTA = "none"

# What --recipe changes in these defaults, and in MODEL and FREEZE_BN: nothing for "seed", the
# original's; "best" is what measured better, "max" what scored highest, on a GPU
# (ETC/EXPERIMENTS.md).
TUNED = {"lr": 1e-3, "schedule": "cosine", "augment": "light", "tta": "flip"}
BEST = {
    "mask": {**TUNED, "augment": "wide", "epochs": 3, "freeze_bn": True},
    "gender": TUNED,
    "age": {**TUNED, "loss": "age_distribution"},
}
RECIPES = {
    "seed": {"mask": {}, "gender": {}, "age": {}},
    "best": BEST,
    "max": {
        "mask": BEST["mask"],
        "gender": {**BEST["gender"], "model": "efficientnet-b4", "epochs": 4},
        "age": {**BEST["age"], "model": "efficientnet-b4"},
    },
}
RECIPE = "seed"

# prediction
SUBMISSION = "submission.csv"
AGE_VIEWS = 0  # the original's test-time mode for age used 7

# machine
DEVICE = "auto"
PRECISION = "auto"
BACKEND = "auto"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# torchrun tells how many processes share the cores of a machine.
NUM_WORKERS = max(1, min(4, CORES // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
