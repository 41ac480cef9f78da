"""One network trained by several processes as one process would train it.

Each has every world-th image of a batch. DistributedDataParallel averages their gradients; batch
norm takes its statistics, and dropout its noise, from the batch as a whole. What is left is the
order of floating-point sums.
"""

import sys
from functools import partial

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import rank, step_size, world_size


class BatchNormOfAll(nn.BatchNorm2d):
    """Batch norm over the batches of all processes: nn.SyncBatchNorm, which needs GPUs, for CPUs.

    x: float (N, C, H, W), N differing between processes. Returns the same shape and dtype.
    """

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        axes, one, dtype = (0, 2, 3), (1, -1, 1, 1), x.dtype
        x = x.float()
        count = x.new_tensor([x.numel() / x.shape[1]])
        total = all_reduce(torch.cat([x.sum(axes), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        x = x - mean.view(one)
        variance = all_reduce((x * x).sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        x = x * ((variance + self.eps).rsqrt() * self.weight).view(one) + self.bias.view(one)
        return x.to(dtype)


def own_rows(draw, x):
    """This process's rows of draw(ones for the whole batch, a row for each of x's), x: (N, ...).

    All processes draw the same, from generators of one seed.
    """
    ones = x.new_ones(step_size(), *x.shape[1:])
    return draw(ones)[rank() :: world_size()]


class DropoutOfAll(nn.Dropout):
    """nn.Dropout with one noise for the batches of all processes."""

    def forward(self, x):
        return x * own_rows(super().forward, x) if self.training else x


def drop_blocks(network):
    """Take over the package's stochastic depth, in which blocks with a skip connection drop their
    own part of some images, behind their last batch norm.
    """
    rate = network._global_params.drop_connect_rate
    drop_connect = sys.modules[type(network).__module__].drop_connect

    def drop(rate):
        def hook(module, inputs, x):
            if not module.training:
                return x
            a_value_each = x[:, :1, :1, :1]
            return x * own_rows(partial(drop_connect, p=rate, training=True), a_value_each)

        return hook

    for number, block in enumerate(network._blocks):
        its = block._block_args
        if number and its.id_skip and its.stride == 1 and its.input_filters == its.output_filters:
            block._bn2.register_forward_hook(drop(rate * number / len(network._blocks)))
    network._global_params = network._global_params._replace(drop_connect_rate=None)


def as_one(network, device):
    """Wrap a network of models.network, on device, for training in the processes of torchrun.

    network is changed in place and stays what evaluates and is saved, with the state dict it had.
    """
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.Dropout:
            module.__class__ = DropoutOfAll
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNormOfAll
    drop_blocks(network)  # last: the conversion makes new batch norms, without hooks
    # Their batch norms being equal, nothing but gradients has to travel.
    return DistributedDataParallel(network, broadcast_buffers=False)
