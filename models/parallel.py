"""One network trained by several processes as one process would train it.

Each has every world-th image of a batch. DistributedDataParallel averages their gradients; batch
norm takes its statistics, and dropout its noise, from the batch as a whole. What is left is the
order of floating-point sums.
"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel


class BatchNormOfAll(nn.BatchNorm2d):
    """Batch norm over the batches of all processes: nn.SyncBatchNorm, which needs GPUs, for CPUs.

    x: float (N, C, H, W), N differing between processes. Returns the same shape.
    """

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        axes, one = (0, 2, 3), (1, -1, 1, 1)
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
        return x * ((variance + self.eps).rsqrt() * self.weight).view(one) + self.bias.view(one)


def noise(x, rate):
    """What dropout multiplies x, (N, ...), with: this process's rows of the whole batch's noise.

    All processes draw the same, from generators of one seed.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    return F.dropout(x.new_ones(world * x.shape[0], *x.shape[1:]), rate)[rank::world]


class DropoutOfAll(nn.Dropout):
    """nn.Dropout with one noise for the batches of all processes."""

    def forward(self, x):
        return x * noise(x, self.p) if self.training else x


def drop_blocks(network):
    """Take over the package's stochastic depth, in which blocks with a skip connection drop their
    own part of some images, behind their last batch norm.
    """
    rate = network._global_params.drop_connect_rate
    drop_connect = sys.modules[type(network).__module__].drop_connect
    world, rank = dist.get_world_size(), dist.get_rank()

    def drop(rate):
        def hook(module, inputs, x):
            if not module.training:
                return x
            ones = x.new_ones(world * x.shape[0], 1, 1, 1)
            return x * drop_connect(ones, rate, training=True)[rank::world]

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
    drop_blocks(network)
    for module in network.modules():
        if type(module) is nn.Dropout:
            module.__class__ = DropoutOfAll
        elif type(module) is nn.BatchNorm2d and device.type == "cpu":
            module.__class__ = BatchNormOfAll
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    # Their batch norms being equal, nothing but gradients has to travel.
    return DistributedDataParallel(network, broadcast_buffers=False)
