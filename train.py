# PYTHON_ARGCOMPLETE_OK
"""Train one head: data -> network -> loop -> best-F1 checkpoint.

python train.py --target age --lr 1e-4 --epochs 4
"""

import math
import time
from importlib.util import find_spec

from config import config
from utils.cli import (
    ArgumentParser,
    InputError,
    add_crop_arguments,
    add_data_arguments,
    add_machine_arguments,
    add_precision_arguments,
    answer_early,
    fraction,
    gigabytes,
    natural_float,
    positive_float,
    positive_int,
    run,
    seed,
    whole_number,
)


def by_head(name):
    """How a default differs by head, for --help."""
    return ", ".join(f"{target} {head[name]}" for target, head in config.HEADS.items())


def get_args_parser():
    parser = ArgumentParser(description="Train one head: mask, gender or age.")
    # fmt: off
    parser.add_argument("--target", choices=config.HEADS, required=True, help="which head")
    parser.add_argument("--recipe", choices=config.RECIPES, default=config.RECIPE,
        help="whose defaults, which other arguments override: seed is the original's, and what the "
        "defaults below are; best is what was measured to be better (default: %(default)s)")

    add = parser.add_argument_group("data").add_argument
    add_data_arguments(add)
    add("--output-dir", default=config.OUTPUT_DIR,
        help="the run goes to <target>_fold<k> in it (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace a run that is there (default: refuse)")
    add("--no-report", action="store_true",
        help="leave out the run's pictures and report.html (default: made at the end)")
    add("--tensorboard", action="store_true",
        help="also log to the run's folder tensorboard/ (default: log.csv alone)")
    add("--resume", action="store_true",
        help="go on after the last epoch of a run that is there (default: refuse)")
    add("--fold", type=whole_number, choices=range(config.NUM_FOLDS), default=config.FOLD,
        help="the fold to validate on; the others train (default: %(default)s)")
    add("--fold-seed", type=seed, default=config.FOLD_SEED,
        help="who is in which fold (default: %(default)s)")
    add("--age-border", type=positive_int,
        help="from which age on a person is 60+ in the age head's training labels or, with --loss "
        f"age_distribution, in its answers (default: {config.AGE_BORDER})")
    add("--label-fixes", metavar="FILE",
        help="CSV with corrections of labels, for the competition's data/label_fixes.csv (default: "
        "labels as they are)")
    add("--augment", choices=config.AUGMENTATIONS,
        help=f"whose augmentation (default: {by_head('augment')})")

    add = parser.add_argument_group("network").add_argument
    add("--model", choices=config.NETWORKS, default=config.MODEL, metavar="NAME",
        help=f"{', '.join(config.NETWORKS)} (default: %(default)s)")
    add("--resize", type=whole_number, default=config.RESIZE,
        help="side of the network's input in pixels, 64 or more (default: %(default)s)")
    add("--weights", metavar="FILE",
        help="state dict to start from (default: ImageNet weights)")
    add("--no-pretrained", action="store_true",
        help="start from random weights (default: ImageNet weights)")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive_int,
        help=f"passes over the train set (default: {by_head('epochs')})")
    add("--lr", type=positive_float, help=f"learning rate of Adam (default: {by_head('lr')})")
    add("--schedule", choices=config.SCHEDULES,
        help="of the learning rate: constant, or cosine, which rises to --lr over the first tenth "
        f"of all steps and then falls to 0 (default: {config.HEADS['age']['schedule']})")
    add("--tta", choices=config.TTAS,
        help="views of valid and later of test images: none, or flip, the mean of a face and its "
        f"mirror image (default: {config.HEADS['age']['tta']})")
    add("--batch-size", type=positive_int, default=config.BATCH_SIZE,
        help="images a step (default: %(default)s)")
    add("--loss", choices=config.LOSSES, help=f"what is minimised (default: {by_head('loss')})")
    add("--focal-gamma", type=natural_float,
        help=f"exponent of the loss focal (default: {config.FOCAL_GAMMA})")
    add("--age-sigma", type=positive_float,
        help=f"width of the loss age_distribution, in years (default: {config.AGE_SIGMA:g})")
    add("--label-smoothing", type=fraction,
        help=f"share of the loss label_smoothing (default: {config.LABEL_SMOOTHING})")
    add("--seed", type=seed, default=config.SEED,
        help="of weights, order and augmentation (default: %(default)s)")

    add = parser.add_argument_group("machine").add_argument
    add_machine_arguments(add)
    add_precision_arguments(add)
    add("--compile", action="store_true",
        help="let torch.compile build the network's kernels: minutes at the start, for steps that "
        "may be faster; needs a compiler (default: PyTorch's own kernels)")
    add("--cache", type=gigabytes, default=config.CACHE, metavar="GB",
        help="memory for decoded and resized images: auto (what they take, up to half of what is "
        "free), or gigabytes, 0 for none (default: %(default)s)")
    # fmt: on
    add_crop_arguments(parser)
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.dataset import load_fold
from data.labels import assign_folds, fix_labels, list_train_images
from loss import build_loss
from models.network import average, build_network, normalization, normalize
from models.parallel import as_one
from utils.device import (
    autocast,
    choose_kernels,
    compile_network,
    pick_precision,
    precision_name,
)
from utils.distributed import (
    begin_step,
    in_order,
    is_first,
    join_processes,
    progress_off,
    whole_batch,
    world_size,
)
from utils.files import write_csv, write_json
from utils.metrics import classification_scores
from utils.runs import (
    arguments_that_matter,
    best_f1,
    clear_folder,
    describe,
    load_last,
    log_row,
    log_scalars,
    prepare_folder,
    print_epoch,
    print_header,
    restore,
    save_epoch,
)
from utils.schedule import learning_rates

# Filled once --resume could go on; see utils.cli.run.
GO_ON = []


def parse_args():
    """Parse the command line, fill in the head's own defaults, check what argparse can't."""
    args = get_args_parser().parse_args()
    defaults = config.HEADS[args.target] | config.RECIPES[args.recipe][args.target]
    for name, value in defaults.items():
        if name != "classes" and getattr(args, name) is None:
            setattr(args, name, value)
    for name, used, where in (
        ("age_border", args.target == "age", "--target age"),
        ("focal_gamma", args.loss == "focal", "--loss focal"),
        ("age_sigma", args.loss == "age_distribution", "--loss age_distribution"),
        ("label_smoothing", args.loss == "label_smoothing", "--loss label_smoothing"),
    ):
        if getattr(args, name) is None:
            setattr(args, name, getattr(config, name.upper()))
        elif not used:
            raise InputError(f"--{name.replace('_', '-')}: does nothing without {where}")
    if not 30 < args.age_border <= 100:
        raise InputError(
            f"--age-border {args.age_border}: has to be above 30, the border before it, up to 100"
        )
    if args.loss == "age_distribution" and args.target != "age":
        raise InputError("--loss age_distribution: learns ages; use it with --target age")
    if not 64 <= args.resize <= 4096:
        raise InputError(f"--resize {args.resize}: the networks take from 64 to 4096 pixels")
    if args.weights and args.no_pretrained:
        raise InputError("--weights and --no-pretrained: give one of them")
    if args.tensorboard and find_spec("tensorboard") is None:
        raise InputError("--tensorboard: not installed; python -m pip install tensorboard")
    if args.overwrite and args.resume:
        raise InputError("--overwrite and --resume: give one of them")
    return args


def not_finite(what, when, lr):
    """The InputError for a loss that overflowed."""
    return InputError(
        f"the {what} is not finite in {when}, at learning rate {lr:g}; "
        "the checkpoints of earlier epochs are kept; try a lower --lr or --precision fp32, in "
        "another --output-dir"
    )


def train_one_epoch(network, loader, criterion, optimizer, rates, scaler, pixel_stats, precision):
    """One pass over loader; rates: the learning rate of each step. Returns the mean loss per image.

    Raises InputError when a loss is not finite.
    """
    device = pixel_stats.device
    network.train()
    losses = []
    epoch, sizes = loader.batch_sampler.epoch, loader.batch_sampler.sizes
    bar = tqdm(loader, f"epoch {epoch}", unit="batch", leave=False, disable=progress_off())
    for (images, targets), size, rate in zip(bar, sizes, rates.tolist()):
        begin_step(size)
        optimizer.param_groups[0]["lr"] = rate
        images = normalize(images.to(device, non_blocking=True), *pixel_stats)
        targets = targets.to(device, non_blocking=True)
        with autocast(device, precision):
            logits = network(images)
        loss = criterion(whole_batch(logits.float()), whole_batch(targets))
        optimizer.zero_grad()
        # Each process adds its images' part of the gradient, and the mean of the parts is taken.
        scaler.scale(loss * world_size()).backward()
        scaler.step(optimizer)
        scaler.update()
        # Left on the device: reading a loss in every step would make the CPU wait for the GPU.
        losses.append(loss.detach())
    losses = torch.stack(losses).double().cpu()
    if not losses.isfinite().all():
        step = int((~losses.isfinite()).nonzero()[0])
        raise not_finite("train loss", f"epoch {epoch}, step {step + 1}", rates[step])
    return float(losses @ torch.tensor(sizes, dtype=torch.float64)) / sum(sizes)


@torch.inference_mode()
def evaluate(network, loader, criterion, pixel_stats, precision, tta="none"):
    """Returns the classification_scores, the loss and the logits, float32 (N, C) on the CPU: all
    over the whole of loader at once.
    """
    device = pixel_stats.device
    network.eval()
    logits, targets = [], []
    for images, batch_targets in loader:
        images = normalize(images.to(device, non_blocking=True), *pixel_stats)
        views = [images, images.flip(3)] if tta == "flip" else [images]
        with autocast(device, precision):
            logits.append(average([network(view).float() for view in views]))
        targets.append(batch_targets)
    logits = [batch.cpu() for batch in logits]
    logits, targets = torch.cat(in_order(logits)), torch.cat(in_order(targets))
    scores = classification_scores(targets.numpy(), logits.argmax(dim=1).numpy(), logits.shape[1])
    return {**scores, "loss": float(criterion(logits, targets)), "logits": logits}


def main():
    args = parse_args()
    device = join_processes(args.device)
    precision = pick_precision(args.precision, device)
    if args.batch_size % world_size():
        raise InputError(
            f"--batch-size {args.batch_size}: no multiple of the {world_size()} processes; "
            f"use {-(-args.batch_size // world_size()) * world_size()}"
        )
    if args.compile and world_size() > 1:
        raise InputError("--compile: works in a single process only; leave it out under torchrun")
    classes = config.HEADS[args.target]["classes"]
    images = list_train_images(args.data_dir)
    images["fold"] = assign_folds(images, args.fold_seed)  # by the labels as given: they stay
    if args.label_fixes:
        images = fix_labels(images, args.label_fixes)
    folder = prepare_folder(args)
    arguments = arguments_that_matter(args, precision)
    last = load_last(folder, arguments, args.epochs) if args.resume else None
    # The network before the crops: a failed download shows before hours of cropping.
    torch.manual_seed(args.seed)
    start_from = (None, False) if last else (args.weights, not args.no_pretrained)
    age_border = describe(args)["age_border"]
    network = build_network(args.model, len(classes), args.resize, *start_from, age_border)
    network = network.to(device)
    if args.compile:
        compile_network(network, device)
    train_loader, valid_loader, valid, data = load_fold(images, args, device)

    choose_kernels(args.deterministic)
    pixel_stats = torch.tensor(normalization(args.model), device=device)
    criterion = build_loss(args.loss, args.focal_gamma, args.label_smoothing, args.age_sigma)
    # Evaluated, an age head gives the logits of the three groups.
    valid_criterion = build_loss("cross_entropy") if age_border else criterion
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    log = []
    if last:
        if last["data"] != data:
            raise InputError(
                f"{args.data_dir}: other photos or labels than {folder} was trained on; "
                "start over with --overwrite or in another --output-dir"
            )
        log = restore(last, network, optimizer, scaler)
        GO_ON[:] = ["--resume"]
        if is_first():  # also mends a damaged log.csv or config.json
            write_csv(folder / "log.csv", pd.DataFrame(log))
            write_json(folder / "config.json", vars(args))
    network_of_all = as_one(network, device) if world_size() > 1 else network
    where = device if world_size() == 1 else f"{world_size()} x {device.type}"
    print(
        f"{args.target}, fold {args.fold}: {len(train_loader.dataset)} train and "
        f"{len(valid_loader.dataset)} valid photos; {args.model} at {args.resize} px "
        f"on {where} in {precision_name(precision)} -> {folder}"
    )
    print_header(classes)
    for epoch in range(len(log) + 1, args.epochs + 1):
        start = time.perf_counter()
        # Seeded by epoch: what dropout draws depends on nothing before, on no --resume either.
        torch.manual_seed(int(np.random.SeedSequence([args.seed, epoch]).generate_state(1)[0]))
        train_loader.batch_sampler.epoch = epoch
        rates = learning_rates(args, epoch, len(train_loader))
        train_loss = train_one_epoch(
            network_of_all, train_loader, criterion, optimizer, rates, scaler, pixel_stats,
            precision,
        )  # fmt: skip
        speed = len(train_loader.dataset) / (time.perf_counter() - start)
        scores = evaluate(network, valid_loader, valid_criterion, pixel_stats, precision, args.tta)
        if not math.isfinite(scores["loss"]):
            raise not_finite("valid loss", f"epoch {epoch}", rates.max())
        log.append(log_row(epoch, train_loss, scores, classes))
        if is_first():
            if epoch == 1:  # not before: until here, --overwrite may fail and lose nothing
                clear_folder(folder)
                write_json(folder / "config.json", vars(args))
            resumable = {
                "arguments": arguments,
                "data": data,
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
            }
            checkpoint = {**describe(args), "network": network.state_dict()}
            GO_ON[:] = GO_ON or ["--overwrite"]  # until last.pth is there
            save_epoch(folder, checkpoint, log, valid, scores["logits"], resumable)
            GO_ON[:] = ["--resume"]
            if args.tensorboard:
                log_scalars(folder, log)
        print_epoch(log[-1], classes, speed, time.perf_counter() - start)
    print(f"best valid macro-F1 {best_f1(log):.4f}: {folder / 'best.pth'}")
    if is_first() and not args.no_report:
        from ETC.report import report_run  # imports matplotlib, half a second

        report_run(folder)


if __name__ == "__main__":
    run(main, GO_ON)
