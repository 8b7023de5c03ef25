# SPDX-License-Identifier: MPL-2.0
"""Fixed filters that carry colours and lightness beside what was trained.

A network that learned to tell pictures apart hardly answers to a flat colour, so that style
transfer with it moves colours little, and from noise moves hardly anything that is larger than a
stroke. Here a few filters of each layer, those that the next layer uses least, are replaced:

  colours    conv1_1 to conv4_1, the style's layers but the last: how far the picture, blurred by
             one pixel, is towards each of the eight corners of the RGB cube, over two thresholds.
             Later layers hand the values on. Their Gram matrices hold the colours' distribution
             at the resolutions of the layers.
  contrasts  to conv4_2, the content's layer: where lightness is above and where below its
             surroundings, at 1/4 of the resolution (from conv3_2 on, before the pooling in copies
             shifted by one position, so that no places are lost) and at 1/8. The colours
             themselves end before: the content is not to hold the photograph's.

Nothing of this is trained, and no other filter takes its input from these.
"""

from itertools import product

import torch

from folded import activation, normalised
from train import NAMES

THRESHOLDS = (-0.5, 0.15)
CORNERS = [(corner, t) for t in THRESHOLDS for corner in product((-1.0, 1.0), repeat=3)]
BLACK, WHITE = 0, 7  # with the lower threshold


def tap(y, x):
    """The 3 x 3 kernel that takes the value at one place."""
    kernel = torch.zeros(3, 3)
    kernel[y, x] = 1
    return kernel


HERE = tap(1, 1)
SHIFTED = [tap(y, x) for y in (1, 2) for x in (1, 2)]
BLURRED = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16
SURROUNDINGS = (1 - HERE) / 8
ABOVE_AND_BELOW = [
    [(WHITE, sign * (HERE - SURROUNDINGS)), (BLACK, -sign * (HERE - SURROUNDINGS))]
    for sign in (1, -1)
]


def handed_on(places):
    """Channels that are those of the layer before at these places of its path."""
    return [[(place, HERE)] for place in places]


def wiring():
    """The paths' channels in each layer after conv1_1: for each, the places that it takes its
    input from among the paths' channels of the layer before, with kernels."""
    colours = range(len(CORNERS))
    contrasts = range(len(CORNERS), len(CORNERS) + len(ABOVE_AND_BELOW))
    shifted = range(len(CORNERS), len(CORNERS) + len(ABOVE_AND_BELOW) * len(SHIFTED))
    layers = {name: handed_on(colours) for name in ("conv1_2", "conv2_1", "conv2_2", "conv3_1")}
    layers["conv3_2"] = handed_on(colours) + ABOVE_AND_BELOW
    layers["conv3_3"] = handed_on((*colours, *contrasts))
    layers["conv3_4"] = handed_on(colours) + [[(c, k)] for c in contrasts for k in SHIFTED]
    layers["conv4_1"] = handed_on((*colours, *shifted))
    layers["conv4_2"] = handed_on(shifted) + ABOVE_AND_BELOW
    return layers


def colour_filters(mean, std):
    """conv1_1's kernels [n, 3, 3, 3] and biases [n] for the CORNERS, on normalised pictures."""
    corners = torch.tensor([corner for corner, _ in CORNERS])
    kernels = (corners * torch.tensor(std))[:, :, None, None] * BLURRED
    thresholds = torch.tensor([threshold for _, threshold in CORNERS])
    return kernels, corners @ (torch.tensor(mean) - 0.5) - thresholds


def gram_norm(x):
    """The norm of the Gram matrix of activations [n, c, h, w]."""
    flat = x.transpose(0, 1).flatten(1)
    return (flat @ flat.T / flat.shape[1]).norm()


@torch.no_grad()
def lay_paths(convs, images, mean, std, in_style, in_content):
    """The network with the paths. They are as strong as is asked for, over the pictures:

    in_style    norm of the Gram matrix of the paths' filters, relative to the other filters', in
                every layer to conv4_1
    in_content  energy of the paths' filters, relative to the other filters', in conv4_2
    """
    layers, laid = wiring(), []
    before = x = normalised(images, mean, std)
    rows, units = [], None  # of the paths in the layer before: their filters, what 1 counts there
    for place, (name, (weight, bias)) in enumerate(zip(NAMES, convs)):
        weight, bias = weight.clone(), bias.clone()
        before = activation(name, before, weight, bias)
        taken, rows = rows, []
        weight[:, taken] = 0
        if name == "conv1_1":
            kernels, biases = colour_filters(mean, std)
            rows = least_used(before, convs[place + 1], len(biases))
            weight[rows], bias[rows] = kernels, biases
        elif name in layers:
            rows = least_used(before, convs[place + 1], len(layers[name]))
            weight[rows], bias[rows] = 0, 0
            for row, sources in zip(rows, layers[name]):
                for source, kernel in sources:
                    weight[row, taken[source]] += kernel * units[source]
        x = activation(name, x, weight, bias)
        if rows:
            units = strengthen(name, x, rows, in_style, in_content)
            weight[rows] /= units.view(-1, 1, 1, 1)
            bias[rows] /= units
            x[:, rows] /= units.view(1, -1, 1, 1)
        laid.append((weight, bias))
    return laid


def least_used(x, following, count):
    """The filters that the following convolution takes the least energy from."""
    use = x.square().mean((0, 2, 3)) * following[0].square().sum((0, 2, 3))
    return use.argsort()[:count].tolist()


def strengthen(name, x, rows, in_style, in_content):
    """What to divide the paths' filters by: all come to the same energy, and together to the
    strength that is asked for."""
    units = x[:, rows].square().mean((0, 2, 3)).sqrt().clamp(min=1e-12)
    ours = x[:, rows] / units.view(1, -1, 1, 1)
    others = x[:, [row for row in range(x.shape[1]) if row not in set(rows)]]
    if name == "conv4_2":
        gain = (in_content * others.square().sum() / ours.square().sum()).sqrt()
    else:
        gain = (in_style * gram_norm(others) / gram_norm(ours)).sqrt()
    return units / gain
