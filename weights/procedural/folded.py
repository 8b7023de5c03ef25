# SPDX-License-Identifier: MPL-2.0
"""The network with its batch norms folded in, layer by layer, as the element computes it.

It is a list of (kernel [out, in, 3, 3], bias [out]) from conv1_1 on, in the order of NAMES.
"""

import torch
import torch.nn.functional as F

from train import NAMES

POOLED = {name for name in NAMES if name.endswith("_1") and name != "conv1_1"}


def normalised(images, mean, std):
    """What conv1_1 is given, of pictures [n, 3, h, w] in 0..1."""
    return (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def activation(name, x, weight, bias):
    """A layer's activations, of those of the layer before."""
    if name == "conv1_1":
        return F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias))
    return F.relu(F.conv2d(F.avg_pool2d(x, 2) if name in POOLED else x, weight, bias, padding=1))


def activations(convs, images, mean, std):
    """All layers' activations, from conv1_1 on, of pictures [n, 3, h, w] in 0..1."""
    x = normalised(images, mean, std)
    for name, (weight, bias) in zip(NAMES, convs):
        x = activation(name, x, weight, bias)
        yield x
