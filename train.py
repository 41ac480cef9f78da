"""Train one head: data -> network -> loop -> best-F1 checkpoint.

python train.py --target age --lr 1e-4 --epochs 4
"""

from config import config  # isort: skip - before PyTorch

import argparse
import math
import time
from importlib.util import find_spec

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data.augment import AUGMENTATIONS
from data.crop import add_crop_arguments, check_unchanged, crop_folder, crop_settings, crop_split
from data.dataset import load_fold, val_predictions
from data.labels import assign_folds, fix_labels, list_train_images
from loss import LOSSES, build_loss
from models.network import (
    MODELS_HELP,
    average_logits,
    build_network,
    freeze_batch_norms,
    network_name,
    normalization,
    normalize,
)
from utils import cli, runs
from utils.cli import InputError
from utils.device import (
    autocast,
    gather,
    gather_batches,
    is_first,
    join_processes,
    pick_precision,
    progress_off,
    rank,
    share_buffers,
    use_deterministic_kernels,
    world_size,
)
from utils.metrics import classification_scores
from utils.plots import save_plots


def train_one_epoch(
    network, loader, criterion, optimizer, scaler, rates, pixel_stats, precision, *, freeze_bn=False
):
    """One pass over loader. Returns the mean loss.

    rates: the learning rate of each step; pixel_stats: mean and standard deviation of normalize,
    float32 (2, 3), on the network's device; precision: of autocast; freeze_bn: batch norms
    normalise with their running statistics, and keep them.
    """
    device = pixel_stats.device
    network.train()
    if freeze_bn:
        freeze_batch_norms(network)
    total, count = torch.zeros((), device=device, dtype=torch.float64), 0
    for (images, targets), rate in zip(tqdm(loader, leave=False, disable=progress_off()), rates):
        optimizer.param_groups[0]["lr"] = rate
        images = normalize(images.to(device, non_blocking=True), *pixel_stats)
        targets = targets.to(device, non_blocking=True)
        with autocast(device, precision):
            logits = network(images)
        loss = criterion(logits.float(), targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        # Summed on the device: reading it in every step would make the CPU wait for the GPU.
        total += loss.detach() * len(targets)
        count += len(targets)
    return float(np.mean(gather(total.item() / count)))  # the processes have equal shares


@torch.inference_mode()
def evaluate(network, loader, criterion, pixel_stats, precision, tta):
    """Scores and loss over the whole of loader, and its logits, float32 (N, C) on the CPU."""
    device = pixel_stats.device
    network.eval()
    all_logits, all_targets = [], []
    for images, targets in loader:
        images = normalize(images.to(device, non_blocking=True), *pixel_stats)
        views = [images, images.flip(3)] if tta == "flip" else [images]
        with autocast(device, precision):
            all_logits.append(average_logits([network(view).float() for view in views]))
        all_targets.append(targets)
    logits = torch.cat(gather_batches([logits.cpu() for logits in all_logits]))
    targets = torch.cat(gather_batches(all_targets))
    scores = classification_scores(targets.numpy(), logits.argmax(dim=1).numpy(), logits.shape[1])
    return {**scores, "loss": float(criterion(logits, targets))}, logits


def learning_rates(args, epoch, steps):
    """The learning rate of each of an epoch's steps: constant, or rising linearly over the first
    WARMUP of all steps and then falling along half a cosine (Loshchilov and Hutter 2017, "SGDR",
    without restarts), to just above 0 in the last one.
    """
    if args.schedule == "constant":
        return [args.lr] * steps
    done = (np.arange(steps) + 1 + (epoch - 1) * steps) / (args.epochs * steps + 1)  # in (0, 1)
    warmup = config.WARMUP
    falling = (1 + np.cos(np.pi * (done - warmup) / (1 - warmup))) / 2
    return (args.lr * np.where(done < warmup, done / warmup, falling)).tolist()


def main():
    args = parse_args()
    device = join_processes(args.device)
    precision = pick_precision(args.precision, device)
    if args.deterministic:
        use_deterministic_kernels()
    if args.batch_size % world_size():
        raise InputError(f"--batch-size {args.batch_size}: use a multiple of {world_size()}, the "
                         "number of processes")  # fmt: skip
    classes = config.CLASSES[args.target]
    images = list_train_images(args.data_dir)
    images["fold"] = assign_folds(images, args.fold_seed)  # before fixes, which move nobody
    if args.label_fixes:
        images = fix_labels(images, args.label_fixes)
    folder = runs.prepare_folder(args)
    fixed = runs.fixed_arguments(args, precision)
    last = runs.load_last(folder, fixed, args.epochs) if args.resume else None

    # The network before the crops, so that a download fails before hours of cropping.
    torch.manual_seed(args.seed)
    # To resume, restore loads the weights, once the data is known to be the same.
    weights, pretrained = (None, False) if last else (args.weights, not args.no_pretrained)
    head_border = args.age_border if args.loss == "age_distribution" else 0  # 0: not an AgeHead
    network = build_network(args.model, len(classes), args.resize, weights, pretrained, head_border)
    network = network.to(device)
    if world_size() > 1 and device.type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)

    settings = crop_settings(args, images["file"].tolist(), device)
    manifest = crop_split(args, "train", images["file"], images["shot"], settings, device)
    train_loader, val_loader, val, digest = load_fold(images, manifest, args, device)

    pixel_stats = torch.tensor(normalization(args.model), device=device)
    criterion = build_loss(args.loss, args.focal_gamma, args.label_smoothing, args.age_sigma)
    # In evaluation an AgeHead answers with the three groups, not with ages.
    val_criterion = build_loss("cross_entropy") if head_border else criterion
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    log = runs.restore(last, network, optimizer, scaler, digest) if last else []
    if args.compile:
        network.compile()
    train_network = network
    if world_size() > 1:  # share_buffers sends the buffers, before each evaluation
        train_network = DistributedDataParallel(network, broadcast_buffers=False)
    print(f"{args.target}, fold {args.fold}: {len(train_loader.dataset)} train and {len(val)} val "
          f"photos; {args.model} at {args.resize} px on {world_size()} x {device.type} in "
          f"{precision} -> {folder}")  # fmt: skip
    first_epoch = len(log) + 1
    for epoch in range(first_epoch, args.epochs + 1):
        start = time.perf_counter()
        # Seeded by epoch: what dropout draws is the same after --resume.
        seeds = np.random.SeedSequence([args.seed, epoch, rank()])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        train_loader.sampler.set_epoch(epoch)
        train_loader.dataset.epoch.fill_(epoch)
        rates = learning_rates(args, epoch, len(train_loader))
        train_loss = train_one_epoch(
            train_network, train_loader, criterion, optimizer, scaler, rates, pixel_stats,
            precision, freeze_bn=args.freeze_bn,
        )  # fmt: skip
        speed = len(train_loader.dataset) / (time.perf_counter() - start)
        share_buffers(network)
        scores, logits = evaluate(
            network, val_loader, val_criterion, pixel_stats, precision, args.tta
        )
        if args.no_cache:  # crops are read in each epoch: another command may have replaced them
            check_unchanged(crop_folder(args.data_dir, args.crop_dir, "train"), manifest)
        if not (math.isfinite(train_loss) and math.isfinite(scores["loss"])):
            raise InputError(f"the loss is not finite in epoch {epoch}; start over with "
                             "--overwrite and a lower --lr or --precision fp32")  # fmt: skip
        log.append(runs.log_row(epoch, train_loss, scores, classes))
        if is_first():
            checkpoint = {**describe_head(args, head_border, settings),
                          "network": network.state_dict()}  # fmt: skip
            state = {"arguments": fixed, "data": digest, "optimizer": optimizer.state_dict(),
                     "scaler": scaler.state_dict()}  # fmt: skip
            predictions = val_predictions(val, logits, args.target)
            runs.save_epoch(folder, args, log, checkpoint, predictions, state)
        seconds = time.perf_counter() - start
        runs.print_epoch(log[-1], speed, seconds, header=epoch == first_epoch)
    if is_first():
        save_plots(folder, classes)
    print(f"best val macro-F1 {runs.best_f1(log):.4f}: {folder / 'best.pth'}; curves.png and "
          f"confusion.png beside it; for a report: python -m ETC.report {folder}")  # fmt: skip


def describe_head(args, age_border, crop):
    """What test.py needs to know of a head besides its weights, as plain types.

    age_border: of an AgeHead, 0 for any other classifier layer; crop: from crop_settings.
    """
    names = ("target", "fold", "model", "resize", "augment", "tta")
    mean, std = normalization(args.model)
    head = {name: getattr(args, name) for name in names}
    return {**head, "classes": list(config.CLASSES[args.target]), "mean": list(mean),
            "std": list(std), "age_border": age_border, "crop": crop}  # fmt: skip


def parse_args():
    """Parse the command line, fill in the head's defaults, check what argparse can't."""
    parser = get_args_parser()
    args = parser.parse_args()
    defaults = {"model": config.MODEL, "schedule": config.SCHEDULE, "tta": config.TTA,
                "freeze_bn": config.FREEZE_BN, **config.DEFAULTS[args.target]}  # fmt: skip
    defaults |= config.RECIPES[args.recipe][args.target]
    if args.no_pretrained:
        defaults["freeze_bn"] = False  # there are no statistics to keep
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name, used, where in (
        ("age_border", args.target == "age", "--target age"),
        ("focal_gamma", args.loss == "focal", "--loss focal"),
        ("age_sigma", args.loss == "age_distribution", "--loss age_distribution"),
        ("label_smoothing", args.loss == "label_smoothing", "--loss label_smoothing"),
    ):
        if getattr(args, name) != parser.get_default(name) and not used:
            raise InputError(f"--{name.replace('_', '-')} has no effect without {where}")
    if not 30 < args.age_border <= 100:
        raise InputError(f"--age-border {args.age_border}: use 31 to 100, after the border at 30")
    if args.loss == "age_distribution" and args.target != "age":
        raise InputError("--loss age_distribution: learns ages; use it with --target age")
    if args.weights and args.no_pretrained:
        raise InputError("--weights and --no-pretrained: give one of them")
    if args.freeze_bn and args.no_pretrained:
        raise InputError("--freeze-bn and --no-pretrained: give one of them")
    if args.overwrite and args.resume:
        raise InputError("--overwrite and --resume: give one of them")
    if args.tensorboard and find_spec("tensorboard") is None:
        raise InputError("--tensorboard: not installed; python -m pip install tensorboard")
    if args.tensorboard and args.output_dir.encode(errors="ignore").decode() != args.output_dir:
        raise InputError("--tensorboard: can't write to an --output-dir whose name isn't UTF-8")
    return args


def by_head(name):
    """How a default differs between the heads, for --help."""
    return ", ".join(f"{head} {defaults[name]}" for head, defaults in config.DEFAULTS.items())


def get_args_parser():
    parser = cli.ArgumentParser(description="Train one head: mask, gender or age.")
    # fmt: off
    parser.add_argument("--target", choices=config.CLASSES, required=True, help="which head")
    parser.add_argument("--recipe", choices=config.RECIPES, default=config.RECIPE,
        help="a set of defaults for the arguments below. seed: the original's, as listed there; "
        "best: what measured better; max: best with EfficientNet-B4 for gender and age, for a GPU "
        "(default: %(default)s)")

    add = parser.add_argument_group("data").add_argument
    cli.add_data_arguments(add)
    add("--output-dir", type=cli.file_name, default=config.OUTPUT_DIR,
        help="the run goes to <target>_fold<k> in it (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace the run that is there (default: refuse)")
    add("--resume", action="store_true", help="go on with the run that is there (default: refuse)")
    add("--tensorboard", action="store_true", help="log for TensorBoard as well (default: no)")
    add("--fold", type=int, choices=range(config.NUM_FOLDS), default=config.FOLD,
        help="the fold to validate on; trained on the others (default: %(default)s)")
    add("--fold-seed", type=cli.seed_int, default=config.FOLD_SEED,
        help="who is in which fold (default: %(default)s)")
    add("--age-border", type=cli.positive_int, default=config.AGE_BORDER,
        help="ages from this one count as 60+ in training labels or, with --loss "
        "age_distribution, in predictions (default: %(default)s)")
    add("--label-fixes", type=cli.file_name, metavar="FILE",
        help="CSV that corrects labels, data/label_fixes.csv for the competition's (default: none)")
    add("--augment", choices=AUGMENTATIONS,
        help="none; light: what a camera changes; wide: for photos from elsewhere as well; mask, "
        "gender, age: the original's (default: the head's own)")
    add("--no-cache", action="store_true",
        help="decode and resize crops in each epoch (default: once, to a file beside the crops)")

    add = parser.add_argument_group("network").add_argument
    add("--model", type=network_name, metavar="NAME",
        help=f"{MODELS_HELP} (default: {config.MODEL})")
    add("--resize", type=cli.input_size, default=config.RESIZE,
        help="side of the network's input in pixels, 64 to 4096 (default: %(default)s)")
    add("--weights", type=cli.file_name, metavar="FILE",
        help="state dict or checkpoint to start from; a best.pth must be of other people or of the "
        "same fold and --fold-seed, else it has seen the val people (default: ImageNet weights)")
    add("--no-pretrained", action="store_true", help="start from random weights (default: no)")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=cli.positive_int, help=f"epochs (default: {by_head('epochs')})")
    add("--lr", type=cli.positive_float, help=f"Adam's learning rate (default: {by_head('lr')})")
    add("--schedule", choices=("constant", "cosine"),
        help=f"cosine: rises for the first {config.WARMUP:.0%}% of all steps, then falls (default: "
        f"{config.SCHEDULE})")
    add("--tta", choices=("none", "flip"),
        help=f"flip: val and test average a face and its mirror image (default: {config.TTA})")
    add("--freeze-bn", action=argparse.BooleanOptionalAction,
        help="keep batch norms in eval mode in training: their running statistics stay as loaded, "
        "their weights and biases still learn (default: no; best and max: for mask, but not with "
        "--no-pretrained)")
    add("--batch-size", type=cli.positive_int, default=config.BATCH_SIZE,
        help="images per step (default: %(default)s)")
    add("--loss", choices=LOSSES, help=f"loss (default: {by_head('loss')})")
    add("--focal-gamma", type=cli.natural_float, default=config.FOCAL_GAMMA,
        help="exponent of --loss focal (default: %(default)s)")
    add("--age-sigma", type=cli.positive_float, default=config.AGE_SIGMA,
        help="standard deviation, in years, of --loss age_distribution (default: %(default)s)")
    add("--label-smoothing", type=cli.fraction, default=config.LABEL_SMOOTHING,
        help="smoothing factor of --loss label_smoothing (default: %(default)s)")
    add("--seed", type=cli.seed_int, default=config.SEED,
        help="seed of weights, order and augmentation (default: %(default)s)")

    add = parser.add_argument_group("machine").add_argument
    cli.add_machine_arguments(add)
    cli.add_precision_arguments(add)
    add("--compile", action="store_true", help="use torch.compile; takes minutes (default: no)")
    # fmt: on
    add_crop_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, "once it has finished an epoch, a run goes on with --resume")
