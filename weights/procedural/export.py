# SPDX-License-Identifier: MPL-2.0
"""Turns a checkpoint of `train.py` into the weights file that the element carries.

Batch norms are folded into the convolutions; then the layers are scaled, which changes nothing in
what the network computes but the units: the ReLU and the average pooling between the layers let a
positive factor through. Two ways, both over generated pictures:

  layer    the mean activation of every layer is 1;
  filter   the mean activation of every filter is 1 (Gatys, Ecker and Bethge 2015), but that a
           filter is not raised further than one of FLOOR of its layer's mean would be.

Then the fixed paths for colours and contrasts are laid (`paths.py`), and the mean activation of
every layer brought to 1 again.

The file is safetensors, f16: conv1_1.weight [64, 3, 3, 3], conv1_1.bias [64] to conv5_1, with the
preprocessing and where the weights come from in its metadata.

    python export.py run/checkpoint.pt vgg19-procedural.safetensors

A weights file is taken in place of a checkpoint too, to scale it anew and to lay its paths.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from folded import activations
from generate import VERSION, pictures
from paths import lay_paths
from train import MEAN, NAMES, STD, Vgg, read_checkpoint

FLOOR = 0.1  # of the layer's mean activation
F16_LARGEST = 65504
LARGEST_FILE = 27_000_000  # bytes
PICTURES_SEED = 0x53434C45  # of the pictures that activations are measured on
PATH_BATCHES = 2  # of 32 pictures, to measure the paths' strengths on


class BadFile(Exception):
    """What is wrong with the file that was given."""


def fold(vgg):
    """Convolutions with bias that do what the convolutions and batch norms of `vgg` do."""
    convs = []
    for conv, norm in zip(vgg.convs, vgg.norms):
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = norm.bias - norm.running_mean * gain
        convs.append((conv.weight * gain.view(-1, 1, 1, 1), bias))
    return convs


def batches(count, size):
    """Generated pictures, 32 at a time."""
    return [pictures(PICTURES_SEED, k, 32, size, "cpu")[0] for k in range(-(-count // 32))]


def filter_means(convs, images, mean, std):
    """Every filter's mean activation, a tensor for each layer."""
    sums = [torch.zeros(len(bias)) for _, bias in convs]
    for batch in images:
        for total, x in zip(sums, activations(convs, batch, mean, std)):
            total += x.mean((0, 2, 3))
    return [total / len(images) for total in sums]


def scale(convs, means, way):
    """Divide every layer's or filter's activation by its mean; the next layer's kernels make up
    for it."""
    scaled, before = [], torch.ones(3)
    for (weight, bias), mean in zip(convs, means):
        typical = mean.mean().clamp(min=1e-12)
        unit = typical.expand_as(mean) if way == "layer" else mean.clamp(min=float(FLOOR * typical))
        scaled.append((weight * before.view(1, -1, 1, 1) / unit.view(-1, 1, 1, 1), bias / unit))
        before = unit
    return scaled


def difference(one, other):
    """Relative L2 distance of two tensors."""
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


def load(path):
    """(convolutions, mean, std, the network with batch norms or None, metadata) of a file."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            missing = [name for name in NAMES if f"{name}.weight" not in file.keys()]
            if missing:
                raise BadFile(f"it has no {missing[0]}.weight")
            convs = [
                tuple(file.get_tensor(f"{name}.{part}").float() for part in ("weight", "bias"))
                for name in NAMES
            ]
            about = dict(file.metadata() or {})
            about["from-sha256"] = tensor_hash({k: file.get_tensor(k) for k in file.keys()})
        mean, std = (
            [float(v) for v in about[key].split(",")] if key in about else usual
            for key, usual in (("mean", MEAN), ("std", STD))
        )
        return convs, mean, std, None, about
    state = read_checkpoint(path)
    if "model" not in state:
        raise BadFile("it is no checkpoint of train.py: it has no entry ‘model’")
    vgg = Vgg().eval()
    vgg.load_state_dict({k[4:]: v for k, v in state["model"].items() if k.startswith("vgg.")})
    about = {
        "recipe-version": str(state["version"]),
        "recipe-sha256": recipe_hash(),
        "seed": str(state["seed"]),
        "images": str(state["images"]),
    }
    return fold(vgg), MEAN, STD, vgg, about


def recipe_hash():
    """SHA-256 of the generator's and the trainer's sources."""
    return source_hash("fields", "generate", "grounds", "media", "shapes", "train")


def source_hash(*modules):
    """SHA-256 of these modules' sources."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    for name in modules:
        digest.update((here / f"{name}.py").read_bytes())
    return digest.hexdigest()


def tensor_hash(tensors):
    """SHA-256 of the tensors' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def check_folding(vgg, convs, batch):
    """Fail if the folded convolutions do not compute what the network with batch norms does."""
    normed = vgg(batch, NAMES)
    folded = zip(NAMES, activations(convs, batch, MEAN, STD))
    worst = max(difference(x, normed[name]) for name, x in folded)
    print(f"folded against batch norms: relative error at most {worst:.1e}")
    if worst > 1e-4:
        raise SystemExit("the folded network does not compute what the batch-norm one does")


def check_rounding(exact, rounded, batch, mean, std):
    """Fail if f16 is too narrow for a layer; show how well it does."""
    layers = zip(
        NAMES, activations(exact, batch, mean, std), activations(rounded, batch, mean, std)
    )
    for name, x, y in layers:
        dead = int((x.mean((0, 2, 3)) < 0.01 * x.mean()).sum())
        print(
            f"{name}: mean {x.mean():.3f}, largest {x.max():.0f}, "
            f"f16 off by {difference(y, x):.1e}, {dead} of {x.shape[1]} filters nearly dead"
        )
        if not torch.isfinite(y).all() or y.max() > F16_LARGEST or difference(y, x) > 0.02:
            raise SystemExit(f"{name} does not survive f16")


@torch.no_grad()
def export(source, out, options):
    convs, mean, std, vgg, about = load(source)
    if options.paths and "paths" in about:
        raise BadFile("it has its paths already; --no-paths lays no others")
    images = batches(options.pictures, options.size)
    scaled = scale(convs, filter_means(convs, images, mean, std), options.scale)
    if options.paths:
        some = torch.cat(images[:PATH_BATCHES])
        laid = lay_paths(scaled, some, mean, std, options.in_style, options.in_content)
        scaled = scale(laid, filter_means(laid, images, mean, std), "layer")
        about |= {
            "paths": f"in style {options.in_style}, in content {options.in_content}",
            "paths-sha256": source_hash("export", "folded", "paths"),
        }
    tensors = {}
    for name, (weight, bias) in zip(NAMES, scaled):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight.half().contiguous(), bias.half()
    halved = [
        (tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()) for name in NAMES
    ]
    if vgg is not None:
        check_folding(vgg, convs, images[0])
    check_rounding(scaled, halved, images[0], mean, std)
    about |= {
        "format": "pt",
        "family": "vgg19-procedural",
        "channels": "RGB",
        "range": "0..1",
        "mean": ",".join(map(str, mean)),
        "std": ",".join(map(str, std)),
        "pooling": "avg",
        "scaled-by": options.scale,
        "scaled-on": f"{len(images) * 32} pictures of {options.size} pixels, recipe {VERSION},"
        f" seed {PICTURES_SEED}",
        "sha256": tensor_hash(tensors),
    }
    save_file(tensors, out, about)
    written = out.stat().st_size
    if written > LARGEST_FILE:
        raise SystemExit(f"{out} has {written} bytes; at most {LARGEST_FILE} are allowed")
    print(f"{out}: {written} bytes, tensors {about['sha256']}")


def main():
    parser = argparse.ArgumentParser(description="Fold, scale and write the built-in weights.")
    parser.add_argument(
        "checkpoint", type=Path, help="of train.py, or a weights file to scale anew"
    )
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument(
        "--scale",
        choices=("layer", "filter"),
        default="layer",
        help="what gets a mean activation of 1 (default %(default)s)",
    )
    parser.add_argument(
        "--no-paths",
        dest="paths",
        action="store_false",
        help="without the fixed paths for colours and contrasts",
    )
    parser.add_argument(
        "--in-style",
        type=float,
        default=0.3,
        help="strength of the paths to conv4_1, relative to other filters (default %(default)s)",
    )
    parser.add_argument(
        "--in-content",
        type=float,
        default=4,
        help="strength of the paths in conv4_2, likewise (default %(default)s)",
    )
    parser.add_argument(
        "--pictures", type=int, default=256, help="to measure activations on (default 256)"
    )
    parser.add_argument("--size", type=int, default=96, help="side of these pictures (default 96)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    options = parser.parse_args()
    if options.pictures < 1 or options.size < 32:
        parser.error("at least one picture of at least 32 pixels is needed")
    if min(options.in_style, options.in_content) <= 0:
        parser.error("--in-style and --in-content are above 0; --no-paths leaves the paths out")
    torch.set_num_threads(options.threads)
    try:
        export(options.checkpoint, options.out, options)
    except (BadFile, OSError, SafetensorError) as problem:
        raise SystemExit(f"{options.checkpoint}: {problem}") from problem


if __name__ == "__main__":
    main()
