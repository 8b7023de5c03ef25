# SPDX-License-Identifier: MPL-2.0
"""Trains VGG-19 up to conv5_1 on generated pictures (`generate.py`).

The network is VGG-19 (Simonyan and Zisserman 2014) with batch norm after every convolution and
average pooling (Gatys et al. 2015). Its picture is repeated at the border before conv1_1; all
other convolutions see zeros there. It learns to tell a picture's labels (class, kinds of ground,
shape and medium, and the parameters that show) from means and standard deviations of channels at
several layers: statistics like those that style is made of, so that every layer learns to carry it.

Budget by --minutes or --images; the learning rate warms up, then falls along a cosine. Crops grow
from the first to the last of --sizes. Every picture is cropped --reuse times: on a GPU pictures
cost little and 1 is best, on a CPU drawing one takes as long as half a training step.

    python train.py --minutes 600 --out run                          # one process
    python -m torch.distributed.run --nproc-per-node 4 train.py ...  # four

Several processes train on their own and average what they learned every --meet seconds (local
SGD, Stich 2018), so that a slow one does not hold up the others. A run that was stopped, with
Ctrl-C too, continues from OUT/checkpoint.pt when it is started again.
"""

import argparse
import functools
import math
import os
import signal
import time

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from generate import CLASSES, KINDS, VALUES, VERSION, Labels, pictures

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as users of VGG-19 expect
BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 1))
NAMES = tuple(f"conv{b + 1}_{k + 1}" for b, (_, count) in enumerate(BLOCKS) for k in range(count))
TAPS = {"conv2_1": 0.2, "conv3_1": 0.4, "conv4_1": 0.6, "conv5_1": 1.0}  # weight in the loss
SECTIONS = (CLASSES, *(len(values) for values in KINDS.values()), len(VALUES))
HELD_OUT = 0x48454C44  # seed of the pictures that are never trained on


class Vgg(nn.Module):
    """VGG-19 to conv5_1. `forward` takes [n, 3, h, w] in 0..1 to the activations at the TAPS."""

    def __init__(self):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        channels = 3
        for width, count in BLOCKS:
            for _ in range(count):
                self.convs.append(
                    nn.Conv2d(channels, width, 3, padding=1 if self.convs else 0, bias=False)
                )
                self.norms.append(nn.BatchNorm2d(width))
                nn.init.kaiming_normal_(self.convs[-1].weight, nonlinearity="relu")
                channels = width
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image, taps=tuple(TAPS)):
        x = F.pad((image - self.mean) / self.std, (1, 1, 1, 1), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        seen = {}
        for name, conv, norm in zip(NAMES, self.convs, self.norms):
            if name.endswith("_1") and name != "conv1_1":
                x = F.avg_pool2d(x, 2)
            x = F.relu(norm(conv(x)))
            if name in taps:
                seen[name] = x
        return seen


class Learner(nn.Module):
    """The network, and at each tap a linear guess of all labels, [n, sum(SECTIONS)]."""

    def __init__(self):
        super().__init__()
        self.vgg = Vgg()
        width = dict(zip(NAMES, (conv.out_channels for conv in self.vgg.convs)))
        self.heads = nn.ModuleDict({tap: nn.Linear(2 * width[tap], sum(SECTIONS)) for tap in TAPS})
        for head in self.heads.values():
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)

    def forward(self, image):
        guesses = {}
        for tap, features in self.vgg(image).items():
            x = features.float()
            deviation = (x.var((2, 3), unbiased=False) + 1e-4).sqrt()
            guesses[tap] = self.heads[tap](torch.cat([x.mean((2, 3)), deviation], 1))
        return guesses


def loss_of(guess, labels):
    """Cross entropy of class and kinds, and squared error of the parameters that show."""
    *kinds, values = guess.split(SECTIONS, 1)
    loss = F.cross_entropy(kinds[0], labels.kinds[:, 0], label_smoothing=0.1)
    for k, kind in enumerate(kinds[1:], 1):
        loss = loss + 0.3 * F.cross_entropy(kind, labels.kinds[:, k], label_smoothing=0.05)
    error = (values - labels.values) ** 2 * labels.shown
    return loss + 4 * error.sum() / labels.shown.sum()


class Crops:
    """Random crops of generated pictures. Pictures wait in a store of some chunks; the oldest chunk
    is drawn anew whenever its pictures have been used `reuse` times on average."""

    CHUNK = 128  # pictures drawn at once

    def __init__(self, options, rank, world, index):
        self.options, self.rank, self.world = options, rank, world
        self.index = index  # of the next batch of the sequence
        self.size = None

    def draw(self):
        options, index = self.options, self.index * self.world + self.rank
        images, labels = pictures(
            options.seed, index, self.CHUNK, self.size * 3 // 2, options.device
        )
        self.index += 1
        return (images * 255).round().byte(), labels

    def batch(self, n, size):
        """n crops [n, 3, size, size] in 0..1, and their labels."""
        if size != self.size:
            self.size, self.used = size, 0
            self.store = [self.draw() for _ in range(self.options.chunks)]
        while self.used >= self.CHUNK * self.options.reuse:
            self.used -= self.CHUNK * self.options.reuse
            self.store = [*self.store[1:], self.draw()]
        self.used += n
        parts = torch.randint(len(self.store), (n,)).bincount(minlength=len(self.store)).tolist()
        crops = [self.crop(*chunk, part) for chunk, part in zip(self.store, parts) if part]
        images, labels = zip(*crops)
        return torch.cat(images).permute(0, 3, 1, 2).float() / 255, Labels.cat(labels)

    def crop(self, images, labels, n):
        rows = torch.randint(self.CHUNK, (n,), device=images.device)
        corner = torch.randint(self.size // 2 + 1, (2, n, 1), device=images.device)
        y, x = corner + torch.arange(self.size, device=images.device)
        return images[rows[:, None, None], :, y[:, :, None], x[:, None, :]], labels[rows]


class Orthogonal(torch.optim.Optimizer):
    """Momentum whose every step is the orthogonal matrix nearest to it (Muon, Jordan et al. 2024),
    so that all directions of a kernel learn equally fast: few steps go far. Batch norm makes the
    length of a kernel meaningless; it is held at the square root of its filters, and `lr` is the
    length of a step relative to it."""

    def __init__(self, kernels, lr, momentum=0.9):
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for kernel in group["params"]:
                state = self.state[kernel]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(kernel)
                momentum = state["momentum"].mul_(group["momentum"]).add_(kernel.grad)
                ahead = kernel.grad + group["momentum"] * momentum
                step = nearest_orthogonal(ahead.flatten(1).float()).view_as(kernel)
                kernel.sub_(
                    step, alpha=group["lr"] * math.sqrt(len(kernel) / min(step.flatten(1).shape))
                )
                kernel.mul_(math.sqrt(len(kernel)) / kernel.norm())


def nearest_orthogonal(matrix):
    """The orthogonal factor of the matrix's polar decomposition, but for its weakest directions."""
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    squares, axes = torch.linalg.eigh(wide @ wide.T)
    inverse = squares.clamp(min=1e-5 * float(squares[-1]) + 1e-30).rsqrt()
    wide = (axes * inverse) @ axes.T @ wide
    return wide.T if tall else wide


def optimizers(model, lr):
    """For the convolutions' kernels, and for all else."""
    kernels = [p for p in model.parameters() if p.dim() == 4]
    others = [p for p in model.parameters() if p.dim() != 4]
    return Orthogonal(kernels, lr), torch.optim.AdamW(others, lr=lr / 10, weight_decay=0.01)


def read_checkpoint(path, device="cpu"):
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as problem:  # a broken pickle can fail in any way
        raise SystemExit(f"{path} cannot be read as a checkpoint: {problem!r}") from problem


def kernels_of(path):
    """The state of a Vgg from a checkpoint: this trainer's, or one nn.Sequential of convolutions,
    batch norms and ReLUs, whose names end in `.<place>.weight`."""
    state = read_checkpoint(path)
    if "model" in state:
        prefix = "vgg."
        return {
            k.removeprefix(prefix): v for k, v in state["model"].items() if k.startswith(prefix)
        }
    convs = [k for k, v in state.items() if getattr(v, "ndim", 0) == 4][: len(NAMES)]
    if len(convs) < len(NAMES):
        raise SystemExit(
            f"{path}: has {len(convs)} convolutions where VGG-19 to conv5_1 has {len(NAMES)}"
        )
    result = {}
    for k, name in enumerate(convs):
        stem, place, _ = name.rsplit(".", 2)
        result[f"convs.{k}.weight"] = state[name].float()
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            result[f"norms.{k}.{part}"] = state[f"{stem}.{int(place) + 1}.{part}"]
    return result


class Run:
    """A training run: what it knows, and how far it is. The same on every process after `meet`."""

    def __init__(self, options):
        self.options = options
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.world > 1:
            dist.init_process_group("gloo")
        if options.device == "cuda":
            torch.cuda.set_device(self.rank % torch.cuda.device_count())
        torch.manual_seed(options.seed * 1000 + self.rank)
        self.model = Learner().to(options.device, memory_format=torch.channels_last)
        self.optimizers = optimizers(self.model, options.lr)
        self.path = os.path.join(options.out, "checkpoint.pt")
        self.minutes, self.images, self.index, self.own = 0.0, 0, 0, 0
        if os.path.exists(self.path):
            self.load()
        elif options.from_checkpoint:
            self.model.vgg.load_state_dict(kernels_of(options.from_checkpoint))
        self.crops = Crops(options, self.rank, self.world, self.index)
        self.began, self.stopping = time.time() - 60 * self.minutes, False

    def load(self):
        state = read_checkpoint(self.path, self.options.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.minutes, self.images, self.index = state["minutes"], state["images"], state["index"]
        self.say(f"continues {self.path} after {self.images} images")

    def save(self):
        if self.rank == 0:
            state = {"model": self.model.state_dict()}
            state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
            state |= {"minutes": self.minutes, "images": self.images, "index": self.index}
            state |= {"seed": self.options.seed, "version": VERSION}
            torch.save(state, self.path + ".part")
            os.replace(self.path + ".part", self.path)

    def say(self, words):
        if self.rank == 0:
            print(time.strftime("%H:%M:%S"), words, flush=True)

    def progress(self):
        if self.options.images:
            return min(1.0, (self.images + self.world * self.own) / self.options.images)
        return min(1.0, (time.time() - self.began) / 60 / self.options.minutes)

    def step(self):
        """One step on one batch. Returns the loss."""
        at = self.progress()
        sizes, batches = self.options.sizes, self.options.batch
        size = sizes[min(int(at * len(sizes)), len(sizes) - 1)]
        rate = min(1.0, at / 0.02 + 0.02) * 0.5 * (1 + math.cos(math.pi * at))
        for optimizer in self.optimizers:
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate * optimizer.defaults["lr"]
        n = max(8, round(batches * (sizes[-1] / size) ** 2 / 8) * 8)
        images, labels = self.crops.batch(n, size)
        self.model.train()
        with torch.autocast(self.options.device, torch.bfloat16):
            guesses = self.model(images)
        loss = sum(TAPS[tap] * loss_of(guess.float(), labels) for tap, guess in guesses.items())
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.own += n
        return loss.item()

    def meet(self):
        """Average network and momentum of all processes, weighted by the images that each saw."""
        done = self.stopping or self.progress() >= 1
        totals = torch.tensor(
            [float(self.own), float(done), float(self.crops.index)], dtype=torch.float64
        )
        if self.world > 1:
            shares = [torch.zeros_like(totals) for _ in range(self.world)]
            dist.all_gather(shares, totals)
            shares = torch.stack(shares)
            share = self.own / max(1.0, shares[:, 0].sum().item())
            tensors = [t for t in self.model.state_dict().values() if t.is_floating_point()]
            for optimizer in self.optimizers:
                tensors += [
                    t for state in optimizer.state.values() for t in state.values() if t.dim() > 0
                ]
            for tensor in tensors:
                mean = (tensor * share).cpu()
                dist.all_reduce(mean)
                tensor.copy_(mean)
            totals = torch.stack([shares[:, 0].sum(), shares[:, 1].max(), shares[:, 2].max()])
        self.images += int(totals[0])
        self.own, self.index = 0, int(totals[2])
        self.crops.index = self.index
        self.minutes = (time.time() - self.began) / 60
        return totals[1] > 0

    def report(self, loss, rate):
        self.say(f"{self.minutes:.1f} min, {self.images} images, {rate:.0f}/s, loss {loss:.3f}")

    @torch.no_grad()
    def examine(self):
        """Say how much is right on pictures that are never trained on."""
        self.model.eval()
        images, labels = held_out(self.options.device)
        with torch.autocast(self.options.device, torch.bfloat16):
            guesses = self.model(images)
        for tap, guess in guesses.items():
            *kinds, values = guess.float().split(SECTIONS, 1)
            right = [
                (k.argmax(1) == labels.kinds[:, j]).float().mean() for j, k in enumerate(kinds)
            ]
            words = ", ".join(f"{name} {100 * r:.0f}%" for name, r in zip(("class", *KINDS), right))
            error = ((values - labels.values) ** 2 * labels.shown).sum() / labels.shown.sum()
            self.say(f"  held out, {tap}: {words}; squared error {error:.3f}")

    def go(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(self, "stopping", True))
        last_report = last_save = last_meeting = time.time()
        seen, losses, done = self.images, [], False
        while not done:
            losses.append(self.step())
            now = time.time()
            if now - last_meeting < self.options.meet and not self.stopping and self.progress() < 1:
                continue
            done, last_meeting = self.meet(), now
            if done or now - last_report > 60:
                self.report(sum(losses) / len(losses), (self.images - seen) / (now - last_report))
                last_report, seen, losses = now, self.images, []
            if done or now - last_save > 240:
                self.save()
                if self.rank == 0:
                    self.examine()
                last_save = now


@functools.cache
def held_out(device):
    return pictures(HELD_OUT, 0, 256, 64, device)


def parse():
    parser = argparse.ArgumentParser(
        description="Train the built-in network on generated pictures."
    )
    parser.add_argument(
        "--out", default="run", help="folder of the checkpoint (default %(default)s)"
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--minutes", type=float, help="train for so long, interruptions not counted"
    )
    budget.add_argument("--images", type=int, help="train on so many crops")
    parser.add_argument(
        "--from", dest="from_checkpoint", help="checkpoint whose network to start from"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--seed", type=int, default=1, help="of pictures and network (default %(default)s)"
    )
    parser.add_argument(
        "--lr",
        type=float,
        default=0.03,
        help="longest step, relative to a kernel (default %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=32,
        help="crops a step at the last of --sizes (default %(default)s); smaller ones come in more",
    )
    parser.add_argument(
        "--sizes",
        default="32,48,64",
        help="sides of the crops in pixels, in turn (default %(default)s)",
    )
    parser.add_argument(
        "--reuse", type=int, default=4, help="crops of every picture (default %(default)s)"
    )
    parser.add_argument(
        "--chunks",
        type=int,
        default=8,
        help="chunks of 128 pictures to crop from (default %(default)s)",
    )
    parser.add_argument(
        "--meet", type=float, default=20, help="seconds between averaging (default %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of a process (default %(default)s)"
    )
    options = parser.parse_args()
    try:
        options.sizes = [int(size) for size in options.sizes.split(",")]
    except ValueError:
        parser.error("--sizes takes numbers with commas between, such as 32,48,64")
    if min(options.sizes) < 32:
        parser.error("--sizes: a crop has at least 32 pixels a side")
    for name in ("minutes", "images", "batch", "reuse", "chunks", "threads", "lr"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            parser.error(f"--{name} must be above 0")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu works everywhere")
    return options


def main():
    options = parse()
    os.makedirs(options.out, exist_ok=True)
    torch.set_num_threads(options.threads)
    Run(options).go()


if __name__ == "__main__":
    main()
