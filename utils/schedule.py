"""The learning rate of each step."""

import numpy as np

from config.config import WARMUP


def learning_rates(args, epoch, steps):
    """The learning rate of each of an epoch's steps, by args.schedule: constant, or rising linearly
    over the first WARMUP of all steps and then falling to 0 along half a cosine (Loshchilov and
    Hutter 2017, "SGDR", without restarts).
    """
    if args.schedule == "constant":
        return np.full(steps, args.lr)
    done = (np.arange(steps) + 1 + (epoch - 1) * steps) / (args.epochs * steps)  # in (0, 1]
    falling = (1 + np.cos(np.pi * (done - WARMUP) / (1 - WARMUP))) / 2
    return args.lr * np.minimum(done / WARMUP, np.where(done > WARMUP, falling, 1))
