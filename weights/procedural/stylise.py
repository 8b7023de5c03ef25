# SPDX-License-Identifier: MPL-2.0
"""Style transfer as the element does it, with any VGG-19 up to conv5_1, many pictures at a time.

A plain restatement of the element's objective at its defaults: Gatys, Ecker and Bethge, "Image
Style Transfer Using Convolutional Neural Networks" (CVPR 2016), each loss relative to its value
for all-zero features, with a total variation term, minimised by L-BFGS within 0..1. It serves to
compare networks: the scale of a layer's features cancels out.

Images are float32 tensors [runs, 3, height, width], RGB, 0..1.
"""

import hashlib

import safetensors
import torch
import torch.nn.functional as F

# The convolutions from the image to conv5_1, with (inputs, outputs); a pooling layer stands
# between two blocks.
BLOCKS = [
    {"conv1_1": (3, 64), "conv1_2": (64, 64)},
    {"conv2_1": (64, 128), "conv2_2": (128, 128)},
    {"conv3_1": (128, 256), "conv3_2": (256, 256), "conv3_3": (256, 256), "conv3_4": (256, 256)},
    {"conv4_1": (256, 512), "conv4_2": (512, 512), "conv4_3": (512, 512), "conv4_4": (512, 512)},
    {"conv5_1": (512, 512)},
]
CONTENT_LAYER = "conv4_2"
STYLE_LAYERS = ["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"]
ALPHA = 1.0
TV_WEIGHT = 5.0
IMAGENET_MEAN, IMAGENET_STD = "0.485,0.456,0.406", "0.229,0.224,0.225"

# A relative loss is not divided by less than this: a dead layer has no features to compare to.
MIN_ENERGY = 1e-12


class BadWeights(Exception):
    """A file that holds no network of this project, with the reason for a person."""


class Network:
    """VGG-19 to conv5_1 with frozen weights and average pooling."""

    def __init__(self, tensors, mean, std, device, dtype=torch.float32):
        """`tensors`: conv1_1.weight [outputs, inputs, 3, 3], conv1_1.bias [outputs], and so on;
        `mean`, `std`: of the image's channels, by which it is normalised; `dtype`: of the
        features. `digest` is a hash of the tensors, the mean and the deviation."""
        digest = hashlib.sha256(f"{mean} {std}".encode())
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].float().numpy().tobytes())
        self.digest = digest.hexdigest()
        self.tensors = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
        self.device, self.dtype = device, dtype

    def features(self, images):
        """The activations after the ReLU of the content and the style layers, by name, in f32.

        The image is replicated at its border, because zeros there leave a frame around the
        picture; further in, zeros stand around the features, as the weights are trained with.
        """
        x = F.pad((images - self.mean) / self.std, (1, 1, 1, 1), mode="replicate")
        x = x.to(self.dtype)
        kept = {}
        for block, names in enumerate(BLOCKS):
            x = F.avg_pool2d(x, 2) if block > 0 else x
            for name in names:
                weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
                x = F.relu(F.conv2d(x, weight, bias, padding=0 if name == "conv1_1" else 1))
                if name == CONTENT_LAYER or name in STYLE_LAYERS:
                    kept[name] = x.float()
        return kept


def load_network(path, device, dtype=torch.float32):
    """The network in a safetensors file with tensors conv1_1.weight, conv1_1.bias and so on, and
    `mean` and `std` in its metadata (ImageNet's where they are missing)."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise BadWeights(f"{path}: not a safetensors file that can be read: {error}") from error
    tensors = {}
    for name, (inputs, outputs) in [conv for block in BLOCKS for conv in block.items()]:
        shapes = {"weight": (outputs, inputs, 3, 3), "bias": (outputs,)}
        for key, shape in ((f"{name}.{part}", shape) for part, shape in shapes.items()):
            if key not in found:
                raise BadWeights(f"{path}: there is no {key}")
            if tuple(found[key].shape) != shape:
                raise BadWeights(f"{path}: {key} is {tuple(found[key].shape)}, not {shape}")
            if not found[key].float().isfinite().all():
                raise BadWeights(f"{path}: {key} has values that are not finite numbers")
            tensors[key] = found[key]
    mean = channel_values(path, "mean", metadata.get("mean", IMAGENET_MEAN))
    std = channel_values(path, "std", metadata.get("std", IMAGENET_STD))
    return Network(tensors, mean, std, device, dtype)


def channel_values(path, key, text):
    """The three numbers of a comma-separated list."""
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise BadWeights(f"{path}: its metadata give {key} as '{text}', not as three numbers")
    return values


def random_network(device, dtype=torch.float32, seed=1):
    """An untrained network: He et al. 2015, eq. 10: deviation sqrt(2 / (9 inputs)), biases 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in [conv for block in BLOCKS for conv in block.items()]:
        kernel = torch.randn((outputs, inputs, 3, 3), generator=generator)
        tensors[f"{name}.weight"] = kernel * (2 / (9 * inputs)) ** 0.5
        tensors[f"{name}.bias"] = torch.zeros(outputs)
    mean, std = (channel_values("random", "", text) for text in (IMAGENET_MEAN, IMAGENET_STD))
    return Network(tensors, mean, std, device, dtype)


def gram(features):
    """G / M = Fᵀ F / M of features [runs, N, h, w] with M = h w positions: [runs, N, N]."""
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[2]


def relative_error(found, target):
    """Σ (found − target)² / Σ target² of each run: 1 for all-zero features."""
    energy = target.square().flatten(1).sum(1).clamp(min=MIN_ENERGY)
    return (found - target).square().flatten(1).sum(1) / energy


def total_variation(images):
    """The mean over 3 h w of the squared differences to the right and the lower neighbour."""
    right = (images[..., 1:] - images[..., :-1]).square().flatten(1).sum(1)
    below = (images[..., 1:, :] - images[..., :-1, :]).square().flatten(1).sum(1)
    return (right + below) / images[0].numel()


class Objective:
    """alpha · content + beta · style + tv-weight · total variation of each run.

    content = Σ (F − P)² / Σ P² (eq. 1), style = 1/5 Σ over layers of Σ (G/M − A/Mₐ)² / Σ (A/Mₐ)²
    (eqs. 4 and 5): their other factors cancel out, both being relative.
    """

    @torch.no_grad()
    def __init__(self, network, contents, styles, beta):
        """`contents`, `styles`: images [3, h, w], one each for every run; the contents are of one
        size."""
        self.network, self.beta = network, beta
        features = network.features(torch.stack(contents).to(network.device))
        self.content = features[CONTENT_LAYER]
        of_styles = [network.features(image[None].to(network.device)) for image in styles]
        self.style = {
            name: torch.cat([gram(features[name]) for features in of_styles])
            for name in STYLE_LAYERS
        }

    def __call__(self, images):
        """The total of each run [runs], its gradient like `images`, and the content and style
        losses [runs, 2]."""
        images = images.detach().requires_grad_()
        features = self.network.features(images)
        content = relative_error(features[CONTENT_LAYER], self.content)
        style = [relative_error(gram(features[name]), self.style[name]) for name in STYLE_LAYERS]
        style = sum(style) / len(STYLE_LAYERS)
        total = ALPHA * content + self.beta * style + TV_WEIGHT * total_variation(images)
        (gradient,) = torch.autograd.grad(total.sum(), images)
        return total.detach(), gradient, torch.stack([content, style], 1).detach()


class History:
    """What L-BFGS has learned of each run's curvature: pairs of a displacement s and the change y
    of the gradient over it, the newest last. A pair with 1 / sᵀy = 0 is empty."""

    # Root mean square of the very first step, before anything is known of the curvature.
    FIRST_STEP = 0.01
    # A pair is learned from if the cosine between s and y is above this.
    MIN_COSINE = 1e-4

    def __init__(self, gradients, length):
        """For runs that start with `gradients` [runs, pixels]."""
        runs, pixels = gradients.shape
        self.s = gradients.new_zeros(length, runs, pixels)
        self.y = torch.zeros_like(self.s)
        self.inverse = gradients.new_zeros(length, runs)
        self.scale = self.FIRST_STEP / gradients.square().mean(1).sqrt().clamp(min=1e-30)

    def multiply(self, gradients):
        """H g with the inverse Hessian H of the pairs (Nocedal and Wright, algorithm 7.4)."""
        d, coefficients = gradients, []
        for s, y, inverse in reversed(list(zip(self.s, self.y, self.inverse))):
            coefficients.append(inverse * (s * d).sum(1))
            d = d - coefficients[-1][:, None] * y
        d = d * self.scale[:, None]
        for s, y, inverse, a in zip(self.s, self.y, self.inverse, reversed(coefficients)):
            d = d + (a - inverse * (y * d).sum(1))[:, None] * s
        return d

    def learn(self, s, y, taken):
        """Adds a pair to the runs whose step was `taken`, in place of their oldest."""
        sy, ss, yy = (s * y).sum(1), (s * s).sum(1), (y * y).sum(1)
        taken = taken & (sy > self.MIN_COSINE * (ss * yy).sqrt())
        for kept, new in ((self.s, s), (self.y, y), (self.inverse, 1 / sy)):
            kept[:, taken] = torch.cat([kept[1:, taken], new[None, taken]])
        # The curvature along the newest pair (eq. 7.20).
        self.scale = torch.where(taken, sy / yy, self.scale)

    def forget(self, runs):
        self.inverse[:, runs] = 0


def inward(direction, x):
    """`direction` without what would lead out of 0..1 from `x`."""
    outward = ((x <= 0) & (direction < 0)) | ((x >= 1) & (direction > 0))
    return direction.masked_fill(outward, 0)


def minimise(objective, images, evaluations, history_length=10):
    """L-BFGS on all runs at once, each with its own history and step, held within 0..1.

    A step that does not lower its run's loss enough (Armijo's condition) is shortened, after
    several times without the history. Returns the images and their losses [runs, 2].
    """
    shape = images.shape

    def evaluate(x):
        total, gradient, losses = objective(x.view(shape))
        return total, gradient.flatten(1), losses

    x = images.flatten(1)
    f, g, losses = evaluate(x)
    history = History(g, history_length)
    length, shortenings = torch.ones_like(f), torch.zeros_like(f)
    for _ in range(evaluations - 1):
        direction = inward(-history.multiply(-inward(-g, x)), x)
        trial = (x + length[:, None] * direction).clamp(0, 1)
        f_trial, g_trial, losses_trial = evaluate(trial)
        promised = (g * (trial - x)).sum(1)
        taken = (promised < 0) & (f_trial <= f + 1e-4 * promised)
        history.learn(trial - x, g_trial - g, taken)

        # The minimum of the parabola through both losses and the slope.
        parabola = (-promised / (2 * (f_trial - f - promised))).nan_to_num(0.1).clamp(0.1, 0.5)
        shortenings = torch.where(taken, 0, shortenings + 1)
        stuck = ~taken & ((promised >= 0) | (shortenings > 6))
        history.forget(stuck)
        shortenings = torch.where(stuck, 0, shortenings)
        length = torch.where(taken | stuck, 1, parabola * length)

        x = torch.where(taken[:, None], trial, x)
        g = torch.where(taken[:, None], g_trial, g)
        losses = torch.where(taken[:, None], losses_trial, losses)
        f = torch.where(taken, f_trial, f)
    return x.view(shape), losses


def stylise(network, contents, styles, starts, beta, evaluations):
    """The pictures [runs, 3, h, w] after so many evaluations, and their content and style losses
    [runs, 2], both on the CPU. `contents`, `styles`, `starts`: images [3, h, w], one each for
    every run; `beta`: the style's weight."""
    objective = Objective(network, contents, styles, beta)
    images, losses = minimise(objective, torch.stack(starts).to(network.device), evaluations)
    return images.cpu(), losses.cpu()
