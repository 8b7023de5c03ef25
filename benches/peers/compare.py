#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Compares one value and gradient of the objective with PyTorch's, the two taking turns in one run.

Both use the same weights, pictures and number of threads, in f32 and in bf16 (the crate only on
CPUs with AMX). PyTorch computes channels last, without gradients of kernels, in the faster of eager
and compiled form. Checks that losses and gradients agree and that each side is idle while the other
computes. Prints times, ratios and agreement for each size, and a table in Markdown. The exit status
is 0 only if all checks hold.

    compare.py [--sizes 256x144,640x360] [--threads N] [--rounds N] [--eager]
               [--content PICTURE --style PICTURE] [--weights FILE.safetensors]

Started by run.sh, which makes the environment. The formulas are those of tests/golden/golden.py.
"""

import argparse
import contextlib
import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights/vgg19-procedural.safetensors"
OURS = ["cargo", "bench", "--quiet", "--no-default-features", "--bench", "peers", "--"]

LAYERS = [f"conv{b}_{c}" for b, n in enumerate([2, 2, 4, 4, 1], 1) for c in range(1, n + 1)]
CONTENT_LAYER = "conv4_2"
STYLE_LAYERS = [f"conv{block}_1" for block in range(1, 6)]
ALPHA, BETA, TV_WEIGHT = 1.0, 100.0, 5.0
LOSSES = ("content", "style", "variation", "total")

# Bounds on the relative errors of losses and gradients. bf16 has three digits and rounds each
# activation and each gradient, which adds up over the layers.
AGREEMENT = {"f32": (1e-4, 1e-2), "bf16": (2e-2, 0.3)}
# The share of a core that the idle side may use, and that all other processes may. Each side waits
# at many barriers for its slowest thread, so that a core taken away for a moment costs far more
# than that moment.
IDLE, QUIET = 0.02, 0.05
# OpenMP threads spin for a moment after their work, in case there is more.
SETTLE_SECONDS = 0.05
# Turns to choose between eager and compiled, and turns before those that count.
TRIALS, WARM_UP = 3, 2
# The style's share in the image that is evaluated, as in benches/common/problem.rs.
BLEND = 0.3


class Server:
    """The process of the crate's side, which evaluates on request (gatys.rs)."""

    def __init__(self, threads, weights):
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        if weights != WEIGHTS:
            environment["GATYS_WEIGHTS"] = str(weights)
        command = [*OURS, "--threads", str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True
        )
        # Skip what cargo prints.
        while not (line := self._line()).startswith("ready "):
            pass
        _, pid, *self.precisions = line.split()
        self.pid = int(pid)

    def _line(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(OURS)} ended with status {self.process.wait()}")
        return line.strip()

    def ask(self, *command):
        print(*command, file=self.process.stdin, flush=True)
        return self._line()

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """The crate's side: the objective for one size in one precision."""

    def __init__(self, server, precision, directory):
        self.server = server
        self.precision = precision
        self.file = f"{directory}/gradient.safetensors"

    def evaluate(self):
        """Milliseconds and losses of one value and gradient."""
        took, *losses = map(float, self.server.ask("evaluate", self.precision).split())
        return took, losses

    def gradient(self):
        """That of the last evaluation."""
        self.server.ask("gradient", self.precision, self.file)
        return load_file(self.file)["gradient"]


class Torch:
    """PyTorch's side: the objective for one size in one precision."""

    def __init__(self, convs, pictures, dtype, compiled):
        self.dtype = dtype
        self.convs = [
            (kernel.to(dtype, memory_format=torch.channels_last), bias.to(dtype))
            for kernel, bias in convs
        ]
        with torch.no_grad():
            content, style = (
                self.features(torch.from_numpy(pictures[name])) for name in ("content", "style")
            )
            self.content = content[CONTENT_LAYER].clone()
            self.content_energy = self.content.float().square().sum() / 2
            self.grams = {layer: gram(style[layer]) for layer in STYLE_LAYERS}
        self.image = torch.from_numpy(pictures["image"]).requires_grad_()
        self.losses = self.objective
        if compiled:
            # By default the compiler gives up channels last, which doubles the time.
            options = {"force_layout_optimization": True}
            self.losses = torch.compile(self.objective, dynamic=False, options=options)
        self.last_gradient = None

    def features(self, image):
        """The activations that the losses use, of an image [h, w, 3] in RGB 0..1."""
        # In memory the image is channels last already, so that this is only a view.
        x = image.to(self.dtype).permute(2, 0, 1)[None]
        features = {}
        for name, (kernel, bias) in zip(LAYERS, self.convs):
            if name == "conv1_1":
                x = nnf.conv2d(nnf.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, bias)
            else:
                if name.endswith("_1"):
                    x = nnf.avg_pool2d(x, 2)
                x = nnf.conv2d(x, kernel, bias, padding=1)
            # In place, as a convolution's backward pass does not need its output.
            x = torch.relu_(x)
            if name == CONTENT_LAYER or name in STYLE_LAYERS:
                features[name] = x
        return features

    def objective(self, image):
        features = self.features(image)
        difference = features[CONTENT_LAYER].float() - self.content.float()
        content = difference.square().sum() / 2 / self.content_energy
        # The normalisation of the paper's formula cancels out.
        style = sum(
            (gram(features[layer]) - target).square().sum() / target.square().sum()
            for layer, target in self.grams.items()
        ) / len(self.grams)
        variation = sum(image.diff(dim=dim).square().sum() for dim in (0, 1)) / image.numel()
        total = ALPHA * content + BETA * style + TV_WEIGHT * variation
        return torch.stack([content, style, variation, total])

    def evaluate(self):
        """Milliseconds and losses of one value and gradient."""
        begun = time.perf_counter()
        losses = self.losses(self.image)
        (self.last_gradient,) = torch.autograd.grad(losses[3], self.image)
        values = losses.tolist()
        return 1e3 * (time.perf_counter() - begun), values

    def gradient(self):
        """That of the last evaluation."""
        return self.last_gradient.numpy()


def gram(features):
    """The Gram matrix F'F / M of activations [1, N, h, w], summed in f32."""
    f = features.permute(0, 2, 3, 1).flatten(0, 2).float()
    return f.T @ f / len(f)


def load_convs(path):
    """Kernels and biases; as in the crate, the first ones include the image's preprocessing."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}
    white = 255.0 if metadata.get("range") == "0..255" else 1.0
    mean, std = (
        np.array([float(number) for number in metadata[key].split(",")]).reshape(1, 3, 1, 1)
        for key in ("mean", "std")
    )
    convs = [(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]) for layer in LAYERS]
    kernel, bias = convs[0]
    kernel = kernel / std
    bias = bias - (kernel * mean).sum((1, 2, 3))
    if metadata.get("channels") == "BGR":
        kernel = kernel[:, ::-1].copy()
    convs[0] = kernel * white, bias
    return [tuple(torch.from_numpy(array).float() for array in conv) for conv in convs]


def keep_memory():
    """Keeps freed memory in the process: each iteration allocates and frees tensors of the same
    sizes, and having the system map their pages anew would take a good part of PyTorch's time."""
    trim_threshold, mmap_max = -1, -4
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


class Turns:
    """Has the sides evaluate in turn, and measures the CPU time that the others use meanwhile."""

    def __init__(self, server):
        self.server = server
        # For each side, the seconds it had to be idle and its CPU seconds in them; and the CPU
        # seconds of other processes.
        self.seconds = {"gatys": 0.0, "PyTorch": 0.0}
        self.busy = {"gatys": 0.0, "PyTorch": 0.0}
        self.foreign = 0.0

    def take(self, side):
        time.sleep(SETTLE_SECONDS)
        if isinstance(side, Ours):
            idle, active = "PyTorch", "gatys"
        else:
            idle, active = "gatys", "PyTorch"
        begun, before = time.perf_counter(), self._used()
        took, losses = side.evaluate()
        after, seconds = self._used(), time.perf_counter() - begun
        used = {name: after[name] - before[name] for name in after}
        self.seconds[idle] += seconds
        self.busy[idle] += used[idle]
        self.foreign += used["all"] - used[idle] - used[active]
        return took, losses

    def _used(self):
        """CPU seconds that each side, and the whole machine, has used so far."""
        user, nice, system, _, _, *rest = Path("/proc/stat").read_text().split()[1:9]
        ticks = sum(map(int, (user, nice, system, *rest)))
        return {
            "gatys": self.server.cpu_seconds(),
            "PyTorch": time.process_time(),
            "all": ticks / os.sysconf("SC_CLK_TCK"),
        }


def fastest(turns, make, eager_only):
    """The faster of what `make(compiled)` returns, eager or compiled, and the reason."""
    eager = make(False)
    eager.evaluate()
    if eager_only:
        return eager, "eager"
    try:
        compiled = make(True)
        compiled.evaluate()
    except Exception as error:  # A missing compiler raises any of several.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return eager, f"eager; cannot be compiled: {reason}"
    times = {eager: [], compiled: []}
    for _ in range(TRIALS):
        for side, list_ in times.items():
            list_.append(turns.take(side)[0])
    slow, fast = (statistics.median(times[side]) for side in (eager, compiled))
    said = f"eager {slow:.1f} ms, compiled {fast:.1f} ms"
    return (compiled if fast < slow else eager), said


def agrees(name, precision, theirs, ours, gradients):
    """Whether losses and gradients agree; prints how closely."""
    loss_bound, gradient_bound = AGREEMENT[precision]
    errors = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(theirs, ours)]
    theirs, ours = gradients
    gradient = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
    holds = max(errors) <= loss_bound and gradient <= gradient_bound
    parts = ", ".join(f"{loss} {error:.1e}" for loss, error in zip(LOSSES, errors))
    verdict = "agrees" if holds else "DOES NOT AGREE"
    print(f"  {name} {verdict}: {parts} (up to {loss_bound:g}), gradient {gradient:.1e}")
    return holds


def compare(options, server, convs, size, directory):
    """Measures one size; returns its row of the table and whether the checks hold."""
    file = f"{directory}/{size}.safetensors"
    if options.content:
        save_file(load_pictures(options, size), file)
    else:
        server.ask("make", size, file)
    server.ask("load", file)
    pictures = load_file(file)
    turns = Turns(server)
    sides = {}
    print(f"{size}")
    for precision, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        if precision in server.precisions:
            sides[f"gatys {precision}"] = Ours(server, precision, directory)

        def make(compiled, dtype=dtype):
            return Torch(convs, pictures, dtype, compiled)

        side, said = fastest(turns, make, options.eager)
        sides[f"PyTorch {precision}"] = side
        print(f"  PyTorch {precision}: {said}", flush=True)
    times = {name: [] for name in sides}
    losses = {}
    turns = Turns(server)
    gc.collect()
    gc.disable()
    for turn in range(WARM_UP + options.rounds):
        for name, side in sides.items():
            took, losses[name] = turns.take(side)
            if turn >= WARM_UP:
                times[name].append(took)
    gc.enable()

    medians = {name: f"{statistics.median(list_):.1f}" for name, list_ in times.items()}
    for name, list_ in times.items():
        print(f"  {name}: median {medians[name]} ms, {min(list_):.1f} to {max(list_):.1f}")
    row, holds = [size], True
    for precision in ("f32", "bf16"):
        # If the CPU has no bf16, the fastest that it has.
        mine = f"gatys {precision if precision in server.precisions else 'f32'}"
        theirs = f"PyTorch {precision}"
        quotients = [a / b for a, b in zip(times[theirs], times[mine])]
        row += [medians[mine], medians[theirs], f"{statistics.median(quotients):.2f}"]
        print(f"  {theirs} takes {row[-1]} times as long as {mine}")
    exact = sides["gatys f32"].gradient()
    for name in list(sides)[1:]:
        gradients = sides[name].gradient(), exact
        precision = name.split()[1]
        holds &= agrees(name, precision, losses[name], losses["gatys f32"], gradients)
    for name, busy in turns.busy.items():
        part = busy / turns.seconds[name]
        idle = part <= IDLE
        holds &= idle
        verdict = "idle" if idle else "NOT IDLE"
        print(f"  {name} is {verdict} while others compute: {part:.1%} of a core")
    foreign = max(0.0, turns.foreign) / sum(turns.seconds.values())
    quiet = foreign <= QUIET
    holds &= quiet
    verdict = "quiet" if quiet else "NOT QUIET, which the times cannot be trusted with"
    print(f"  the machine is {verdict}: {foreign:.1%} of a core goes to others")
    return row, holds


def load_pictures(options, size):
    """The pictures named on the command line, at the given size."""
    shape = tuple(map(int, size.split("x")))

    def load(path):
        with Image.open(path) as picture:
            picture = picture.convert("RGB").resize(shape, Image.Resampling.LANCZOS)
        return np.asarray(picture, dtype=np.float32) / 255

    content, style = load(options.content), load(options.style)
    image = (1 - BLEND) * content + BLEND * style
    return {"content": content, "style": style, "image": image.astype(np.float32)}


def processor():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="256x144,320x180,640x360", help="[%(default)s]")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="of each side [%(default)s]")
    parser.add_argument("--rounds", type=int, default=9, help="turns that count [%(default)s]")
    parser.add_argument("--eager", action="store_true", help="do not try torch.compile")
    parser.add_argument("--content", type=Path, help="a picture instead of a made one")
    parser.add_argument("--style", type=Path, help="a picture instead of a made one")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="conv1_1.weight, ...")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("a median of fewer than 5 rounds says little")
    if bool(options.content) != bool(options.style):
        parser.error("--content and --style go together")
    options.weights = options.weights.resolve()
    return options


def main():
    options = arguments()
    keep_memory()
    torch.set_num_threads(options.threads)
    convs = load_convs(options.weights)
    server = Server(options.threads, options.weights)
    print(f"{processor()}, {options.threads} threads, PyTorch {torch.__version__}")
    rows, holds = [], True
    with tempfile.TemporaryDirectory() as directory:
        for size in options.sizes.split(","):
            row, held = compare(options, server, convs, size, directory)
            rows.append(row)
            holds &= held
            torch.compiler.reset()
    server.end()
    print()
    bf16 = "bf16" if "bf16" in server.precisions else "f32"
    print(f"| size | gatys f32 | PyTorch f32 | ratio | gatys {bf16} | PyTorch bf16 | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
