#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Times one value and gradient of the objective in PyTorch, with all that is known to make it fast.

VGG-19's shapes up to conv5_1 with frozen random weights, average pooling, and the losses of
benches/peers/compare.py; channels last, cuDNN's benchmark mode; in f16, bf16 and tf32, each eager
and compiled, with and without a CUDA graph. Prints the medians as a table in Markdown, each row as
soon as it is known, and the fastest at each size.

    peer.py [--sizes 640x360,1280x720] [--rounds N] [--seconds N] [--device cuda]

What is not begun within the seconds is skipped.
"""

import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as nnf

LAYERS = [f"conv{b}_{c}" for b, n in enumerate([2, 2, 4, 4, 1], 1) for c in range(1, n + 1)]
CHANNELS = [64, 128, 256, 512, 512]
CONTENT_LAYER = "conv4_2"
STYLE_LAYERS = [f"conv{block}_1" for block in range(1, 6)]
ALPHA, BETA, TV_WEIGHT = 1.0, 100.0, 5.0

FORMATS = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}
KINDS = ["CUDA graph", "eager", "compiled, CUDA graph", "compiled"]
WARM_UP = 4
# Evaluations go on for so long before they are timed, in which the clocks of an idle GPU rise.
WARM_UP_SECONDS = 0.3


def convs(dtype, device):
    """Kernels and biases, small enough that Gram matrices do not overflow in f16."""
    generator = torch.Generator().manual_seed(1)
    made, n_in = [], 3
    for layer in LAYERS:
        n_out = CHANNELS[int(layer[4]) - 1]
        scale = (2 / (9 * n_in)) ** 0.5 * (0.1 if n_in == 3 else 1)
        kernel = torch.randn(n_out, n_in, 3, 3, generator=generator) * scale
        kernel = kernel.to(device, dtype, memory_format=torch.channels_last)
        made.append((kernel, torch.zeros(n_out, device=device, dtype=dtype)))
        n_in = n_out
    return made


def gram(features):
    """F'F / M of activations [1, N, h, w]: products in their format, accumulated in f32."""
    f = features.permute(0, 2, 3, 1).flatten(0, 2)
    return (f.T @ f).float() / len(f)


class Objective:
    """The objective for one size and format."""

    def __init__(self, size, dtype, device):
        width, height = map(int, size.split("x"))
        self.dtype = dtype
        self.convs = convs(dtype, device)
        generator = torch.Generator().manual_seed(2)
        # Smooth, as pictures are: with noise a GPU takes more power, and its clocks fall.
        coarse = torch.rand(3, 3, height // 16, width // 16, generator=generator)
        pictures = nnf.interpolate(coarse, (height, width), mode="bilinear")
        content, style, image = pictures.permute(0, 2, 3, 1).contiguous().to(device)
        with torch.no_grad():
            self.content = self.features(content)[CONTENT_LAYER].clone()
            self.energy = self.content.float().square().sum() / 2
            features = self.features(style)
            self.grams = {layer: gram(features[layer]) for layer in STYLE_LAYERS}
            self.sizes = {layer: target.square().sum() for layer, target in self.grams.items()}
        self.image = image.requires_grad_()
        self.losses = self.objective

    def features(self, image):
        """Activations of the layers of the losses, of an image [h, w, 3] in RGB 0..1."""
        x = image.to(self.dtype).permute(2, 0, 1)[None]
        features = {}
        for name, (kernel, bias) in zip(LAYERS, self.convs):
            if name == "conv1_1":
                x = nnf.conv2d(nnf.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, bias)
            else:
                if name.endswith("_1"):
                    x = nnf.avg_pool2d(x, 2)
                x = nnf.conv2d(x, kernel, bias, padding=1)
            x = torch.relu_(x)
            if name == CONTENT_LAYER or name in STYLE_LAYERS:
                features[name] = x
        return features

    def objective(self, image):
        features = self.features(image)
        difference = features[CONTENT_LAYER].float() - self.content.float()
        content = difference.square().sum() / 2 / self.energy
        style = sum(
            (gram(features[layer]) - target).square().sum() / self.sizes[layer]
            for layer, target in self.grams.items()
        ) / len(self.grams)
        variation = sum(image.diff(dim=dim).square().sum() for dim in (0, 1)) / image.numel()
        total = ALPHA * content + BETA * style + TV_WEIGHT * variation
        return torch.stack([content, style, variation, total])

    def evaluate(self):
        """Losses and gradient."""
        losses = self.losses(self.image)
        return losses.detach(), torch.autograd.grad(losses[3], self.image)[0]

    def compiled(self):
        """Compiles the objective."""
        # Without this it may not keep channels last.
        options = {"force_layout_optimization": True}
        self.losses = torch.compile(self.objective, dynamic=False, options=options)
        return self


def captured(objective):
    """Captures an evaluation as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            objective.evaluate()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = objective.evaluate()

    def replay():
        graph.replay()
        return results

    return replay


def measure(size, dtype, kind, rounds, device):
    """The median milliseconds of an evaluation that ends with the losses on the host."""
    objective = Objective(size, dtype, device)
    if kind.startswith("compiled"):
        objective.compiled()
    evaluate = captured(objective) if kind.endswith("CUDA graph") else objective.evaluate
    values = evaluate()[0].tolist()
    if not all(value == value for value in values):
        print(f"The losses are no numbers: {values}", file=sys.stderr)
    turns, warm = 1, time.perf_counter() + WARM_UP_SECONDS
    while turns < WARM_UP or time.perf_counter() < warm:
        evaluate()[0].tolist()
        turns += 1
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        losses, _ = evaluate()
        losses.tolist()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="640x360,1280x720,1920x1080")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


def main():
    options = arguments()
    begun = time.monotonic()
    on_gpu = options.device != "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    kinds = [kind for kind in KINDS if on_gpu or "graph" not in kind]
    sizes = options.sizes.split(",")
    # All of the first size come first. Compilation takes longest.
    turns = [
        (size, name, kind)
        for some in (sizes[:1], sizes[1:])
        for compiled in (False, True)
        for size in some
        for name in FORMATS
        for kind in kinds
        if kind.startswith("compiled") == compiled
    ]
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("| size | format | kind | value and gradient, ms |\n|---|---|---|---|", flush=True)
    fastest, left_out = {}, 0
    for size, name, kind in turns:
        if time.monotonic() - begun > options.seconds:
            left_out += 1
            continue
        try:
            took = measure(size, FORMATS[name], kind, options.rounds, options.device)
        except Exception as error:  # A missing compiler or too little memory raises various types.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
            print(f"| {size} | {name} | {kind} | {reason.replace('|', '/')} |", flush=True)
            continue
        finally:
            torch.compiler.reset()
            if on_gpu:
                torch.cuda.empty_cache()
        print(f"| {size} | {name} | {kind} | {took:.3f} |", flush=True)
        now = (took, f"{name}, {kind}")
        fastest[size] = min(fastest.get(size, now), now)
    print()
    for size, (took, what) in fastest.items():
        print(f"- The fastest at {size}: {what}, {took:.3f} ms")
    if left_out:
        print(f"- Left out, as the time was over: {left_out}")
    return 0 if fastest else 1


if __name__ == "__main__":
    sys.exit(main())
