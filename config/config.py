"""The defaults of train.py, test.py and data.crop; the arguments of the same names change them.

The values are those of the solution this repository reimplements, except where a comment says why.
"""

import os

VERSION = "0.1.0"

# the competition's rules, no arguments
NUM_FOLDS = 5
OFFICIAL_AGE_BORDER = 60

# data
DATA_DIR = os.environ.get("MAG_DATA_DIR") or "input/data"
CROP_DIR = os.environ.get("MAG_CROP_DIR") or None  # None: in the data directory
OUTPUT_DIR = "runs"
FOLD = 0
FOLD_SEED = 777  # apart from SEED, so that runs with other seeds still share their valid people
# In training labels, to give the rare class 60+ more examples; with the loss age_distribution,
# which learns years, in the answers instead.
AGE_BORDER = 59

# face crops, in pixels of the photo
CROP_SETTINGS = ("detector", "min_face_size", "margin_x", "margin_y", "center_size")
DETECTORS = ("mtcnn", "keypoint_rcnn")
DETECTOR = "mtcnn"
MIN_FACE_SIZE = 50  # MTCNN's 20 costs a third more, for faces that no portrait has
MARGIN_X = 20
MARGIN_Y = 30
CENTER_SIZE = 300
CROP_BATCH_SIZE = None  # None: CROP_BATCH_SIZES
CROP_BATCH_SIZES = {"cpu": 8, "cuda": 32}

# network
NETWORKS = (*(f"efficientnet-b{i}" for i in range(8)), "efficientnet-lite0")
MODEL = "efficientnet-b3"
RESIZE = 224

# training
LOSSES = ("cross_entropy", "focal", "label_smoothing", "f1", "ce_f1", "age_distribution")
BATCH_SIZE = 64
SEED = 777
FOCAL_GAMMA = 2.0
LABEL_SMOOTHING = 0.1
AGE_SIGMA = 3.0  # years
SCHEDULES = ("constant", "cosine")
WARMUP = 0.1  # share of all steps, of the schedule cosine

AUGMENTATIONS = ("none", "mask", "age", "gender", "light")
TTAS = ("none", "flip")

# per head; label i of a head means classes[i]
HEADS = {
    "mask": {
        "classes": ("normal", "mask", "incorrect"),
        "lr": 3e-4,
        "loss": "cross_entropy",
        "epochs": 10,
        "augment": "mask",
        "schedule": "constant",
        "tta": "none",
    },
    "gender": {
        "classes": ("female", "male"),
        "lr": 1e-4,
        "loss": "cross_entropy",
        "epochs": 10,
        "augment": "gender",
        "schedule": "constant",
        "tta": "none",
    },
    "age": {
        "classes": ("under30", "30to59", "60plus"),
        "lr": 1e-4,
        "loss": "focal",
        "epochs": 4,
        "augment": "age",
        "schedule": "constant",
        "tta": "none",
    },
}

# What a recipe changes in these defaults: "seed" is the original's, "best" was measured to be
# better as a whole (README, "What helps, measured").
RECIPES = {
    "seed": {"mask": {}, "gender": {}, "age": {}},
    "best": {
        "mask": {},  # what helps the others changes nothing in it
        "gender": {"lr": 1e-3, "schedule": "cosine", "augment": "light", "tta": "flip"},
        "age": {
            "lr": 1e-3,
            "schedule": "cosine",
            "augment": "light",
            "tta": "flip",
            "loss": "age_distribution",
        },
    },
}
RECIPE = "seed"

# prediction
OUTPUT = "submission.csv"
PREDICTIONS = "predictions.csv"  # of --images
AGE_VIEWS = 0  # the original's test-time mode for age used 7

# machine
DEVICE = "auto"
PRECISION = "auto"
BACKEND = "auto"
BACKENDS = ("auto", "torch", "onnx")
CACHE = "auto"  # or gigabytes; auto: what the images take, up to half of the free memory
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# torchrun says how many processes share this machine's cores.
NUM_WORKERS = max(1, min(4, CORES // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
