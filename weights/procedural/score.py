#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""The score by which the built-in weights are chosen: how well style transfer works with them.

Each network stylises four pairs of pictures with the element's default losses (stylise.py), from
the photograph itself with three style weights beta, because the same beta means something else
for each network, and from noise with the default one. The results are then judged without any
network (measures.py):

  texture, colour   distance to the style picture; 0: the style's own, 1: the photograph's
  style             sqrt((1 - texture) (1 - colour)), each factor at least 0
  content           agreement of the edges with the photograph's; 1: the same
  quality           the harmonic mean of style and content: neither makes up for the other

A network's score is the mean of two parts: from the photograph, the quality with the best beta
of each pair, over the pairs; from noise, the quality over the pairs.

The pairs, the settings and the measures were fixed on the controls, the untrained network and the
prototype, before any network of this recipe was judged, and nothing is ever trained on these
pictures. Scores compare only at equal settings. The controls (controls.py) are pictures that are
no style transfer but satisfy a part of the score: none may win.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from controls import controls, resized
from measures import StyleMeasure, content_agreement, statistics
from stylise import BadWeights, load_network, random_network, stylise

CONTENTS = ["tubingen.jpg", "golden_gate.jpg"]
STYLES = ["starry_night.jpg", "the_scream.jpg"]
PAIRS = [(content, style) for content in range(len(CONTENTS)) for style in range(len(STYLES))]

# How a picture is made: from what, with which beta.
SETTINGS = [("content", 10), ("content", 100), ("content", 1000), ("noise", 100)]
SIZE = 192
EVALUATIONS = 100  # the element's initial-iterations
NOISE_SEED = 1

# Goes up when the same network and settings no longer give the same pictures.
CACHE_VERSION = 1


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks",
        nargs="*",
        metavar="NAME=FILE",
        help="a weights file (safetensors, conv1_1 to conv5_1) and what to call it;"
        " an untrained network called random is always scored",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"where {', '.join(CONTENTS + STYLES)} are",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("score"),
        metavar="DIR",
        help="for score.json, the sheets, and the pictures, which are not made twice"
        " (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=SIZE, help="longest side in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--evaluations",
        type=int,
        default=EVALUATIONS,
        help="of the objective, for each picture (default: %(default)s)",
    )
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="features in bfloat16 instead of float32: twice as fast on a CPU that has it, and the"
        " same score to 0.01",
    )
    found = parser.parse_args()
    if found.size < 64 or found.evaluations < 1:
        parser.error("--size is at least 64, --evaluations at least 1")
    names = [network.partition("=")[0] for network in found.networks]
    if not all("=" in network for network in found.networks) or "" in names:
        parser.error("a network is given as NAME=FILE")
    if len({"random", *names}) <= len(names):
        parser.error("each network needs a name of its own, and random has its own already")
    return found


def picture(path, size):
    """A picture file as uint8 [h, w, 3], its longest side scaled to `size`."""
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except OSError as error:
        sys.exit(f"score.py: {path}: not a picture that can be read: {error}")
    scale = size / max(image.size)
    target = [max(1, round(side * scale)) for side in image.size]
    return np.array(image.resize(target, Image.Resampling.LANCZOS))


def to_tensor(picture):
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def to_pictures(images):
    """uint8 [runs, h, w, 3] of images [runs, 3, h, w] in 0..1."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def cache_file(network, contents, styles, setting, args):
    """Where the pictures of a network in a setting are kept: named after all they depend on."""
    key = hashlib.sha256(network.digest.encode())
    for image in contents + styles:
        key.update(f"{image.shape}".encode() + image.tobytes())
    settings = f"{CACHE_VERSION} {setting} {args.evaluations} {NOISE_SEED} {args.bf16}"
    key.update(settings.encode())
    return args.out / "cache" / f"{key.hexdigest()[:16]}.npz"


def results(network, contents, styles, setting, args):
    """The network's pictures of the pairs [pairs, h, w, 3], and its own content and style losses
    [pairs, 2], from the cache where they are there."""
    cached = cache_file(network, contents, styles, setting, args)
    if cached.exists():
        with np.load(cached) as file:
            return file["pictures"], file["losses"]
    start, beta = setting
    contents = [to_tensor(contents[content]) for content, _ in PAIRS]
    styles = [to_tensor(styles[style]) for _, style in PAIRS]
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = torch.rand(contents[0].shape, generator=generator)
    starts = contents if start == "content" else [noise] * len(PAIRS)
    images, losses = stylise(network, contents, styles, starts, beta, args.evaluations)
    pictures, losses = to_pictures(images), losses.numpy()
    cached.parent.mkdir(parents=True, exist_ok=True)
    part = cached.with_suffix(".part.npz")
    np.savez_compressed(part, pictures=pictures, losses=losses)
    part.rename(cached)
    return pictures, losses


class Judge:
    """Applies the measures to results of the pairs."""

    def __init__(self, contents, styles):
        self.contents, self.styles = contents, styles
        self.content_statistics = [statistics(image) for image in contents]
        self.style_statistics = [statistics(image) for image in styles]
        self.measure = StyleMeasure(self.content_statistics + self.style_statistics)

    def style_distance(self, pair, image):
        """The distances in texture and in colour of an image of any size to the pair's style."""
        content, style = pair
        wanted, unpainted = self.style_statistics[style], self.content_statistics[content]
        return self.measure(statistics(image), wanted, unpainted)

    def __call__(self, pair, result):
        """The figures of a result (see the top of this file)."""
        photograph, style = self.contents[pair[0]], self.styles[pair[1]]
        figures = self.style_distance(pair, result)
        near = [max(0.0, 1 - figures[kind]) for kind in ("texture", "colour")]
        figures["style"] = float(np.sqrt(near[0] * near[1]))
        laid_over = resized(style, photograph.shape)
        figures["content"] = content_agreement(result, photograph, laid_over)
        s, c = figures["style"], max(0.0, figures["content"])
        figures["quality"] = 2 * s * c / (s + c) if s + c > 0 else 0.0
        return figures

    def halves(self):
        """The mean distances to a style of its own left and right half, over the pairs: how near a
        picture can be expected to come that is not the style picture itself."""
        found = []
        for pair in PAIRS:
            image = self.styles[pair[1]]
            middle = image.shape[1] // 2
            found += [self.style_distance(pair, half) for half in np.split(image, [middle], axis=1)]
        return mean_figures(found)


def scored(figures):
    """A network's score, of the figures of each setting and pair."""
    quality = np.array([[pair["quality"] for pair in setting] for setting in figures])
    from_content = [start == "content" for start, _ in SETTINGS]
    content = float(quality[from_content].max(axis=0).mean())
    noise = float(quality[np.logical_not(from_content)].mean())
    return {"content": content, "noise": noise, "score": (content + noise) / 2}


def mean_figures(figures):
    """The mean of each figure over the pairs."""
    return {key: float(np.mean([pair[key] for pair in figures])) for key in figures[0]}


def print_table(judged, judged_controls, halves):
    """Means over the pairs, then the scores."""
    keys = ["texture", "colour", "style", "content", "quality"]
    row = "{:30} {:>8} {:>5}" + " {:>8}" * len(keys)
    print(row.format("", "start", "beta", *keys))
    print(row.format("halves of the style", "", "", *(f"{v:.3f}" for v in halves.values()), *"---"))
    for name, figures in judged_controls.items():
        means = mean_figures(figures)
        print(row.format(name, "", "", *(f"{means[key]:.3f}" for key in keys)))
    for name, network in judged.items():
        for (start, beta), figures in zip(SETTINGS, network["figures"]):
            means = mean_figures(figures)
            print(row.format(name, start, beta, *(f"{means[key]:.3f}" for key in keys)))
    print("\n{:30} {:>8} {:>8} {:>8}".format("", "content", "noise", "score"))
    for name, network in judged.items():
        parts = (f"{network['score'][key]:.3f}" for key in ("content", "noise", "score"))
        print("{:30} {:>8} {:>8} {:>8}".format(name, *parts))


def sheet(contents, styles, columns, quality):
    """A picture with a row for each pair: photograph, style, and the results of each network.

    `columns`: by name, the pictures of the pairs; `quality`: by name, their figures.
    """
    height, width = contents[0].shape[:2]
    line, gap = 14, 4
    names = ["content", "style", *columns]
    size = (len(names) * (width + gap) - gap, line + len(PAIRS) * (height + line))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(names):
        draw.text((column * (width + gap) + 2, 1), name, fill="black")
    for row, (content, style) in enumerate(PAIRS):
        top = line + row * (height + line)
        shown = [contents[content], styles[style], *(columns[name][row] for name in columns)]
        for column, (name, image) in enumerate(zip(names, shown)):
            tile = Image.fromarray(image)
            tile.thumbnail((width, height))
            left = column * (width + gap)
            canvas.paste(tile, (left + (width - tile.width) // 2, top))
            if name in quality:
                figures = quality[name][row]
                text = "  ".join(f"{key} {figures[key]:.2f}" for key in ("style", "content"))
                draw.text((left + 2, top + height + 1), text, fill="black")
    return canvas


def save_sheet(args, name, *content):
    sheet(*content).save(args.out / f"sheet-{name}.jpg", quality=88)


def load_networks(args):
    """The networks by name, the untrained one first."""
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        sys.exit(f"score.py: --device {args.device}: {str(error).splitlines()[0]}")
    networks = {"random": random_network(args.device, dtype)}
    try:
        for name, _, path in (network.partition("=") for network in args.networks):
            networks[name] = load_network(path, args.device, dtype)
    except BadWeights as error:
        sys.exit(f"score.py: {error}")
    return networks


def load_pictures(args):
    """The contents and the styles."""
    contents, styles = (
        [picture(args.pictures / name, args.size) for name in names] for names in (CONTENTS, STYLES)
    )
    if len({image.shape for image in contents}) > 1:
        sys.exit("score.py: the contents differ in their proportions")
    return contents, styles


def judge_networks(judge, args):
    """By name, each network's pictures [settings][pairs, h, w, 3], and what is reported of it."""
    made, judged = {}, {}
    for name, network in load_networks(args).items():
        begun = time.monotonic()
        found = [
            results(network, judge.contents, judge.styles, setting, args) for setting in SETTINGS
        ]
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        made[name] = [pictures for pictures, _ in found]
        figures = [[judge(*result) for result in zip(PAIRS, pictures)] for pictures in made[name]]
        judged[name] = {
            "score": scored(figures),
            "figures": figures,
            "losses": [losses.tolist() for _, losses in found],
            "digest": network.digest,
        }
    return made, judged


def judge_controls(judge):
    """By name, each control's pictures of the pairs, and their figures."""
    by_pair = [controls(judge.contents[content], judge.styles[style]) for content, style in PAIRS]
    made = {name: [pair[name] for pair in by_pair] for name in by_pair[0]}
    return made, {name: [judge(*found) for found in zip(PAIRS, made[name])] for name in made}


def main():
    args = arguments()
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    contents, styles = load_pictures(args)
    judge = Judge(contents, styles)
    made, judged = judge_networks(judge, args)
    made_controls, judged_controls = judge_controls(judge)
    halves = judge.halves()

    print_table(judged, judged_controls, halves)
    args.out.mkdir(parents=True, exist_ok=True)
    for index, (start, beta) in enumerate(SETTINGS):
        columns = {name: pictures[index] for name, pictures in made.items()}
        figures = {name: network["figures"][index] for name, network in judged.items()}
        save_sheet(args, f"{start}-{beta}", contents, styles, columns, figures)
    save_sheet(args, "controls", contents, styles, made_controls, judged_controls)
    report = {
        "pairs": [[CONTENTS[content], STYLES[style]] for content, style in PAIRS],
        "settings": [{"start": start, "beta": beta} for start, beta in SETTINGS],
        "size": args.size,
        "evaluations": args.evaluations,
        "features": "bf16" if args.bf16 else "f32",
        "networks": judged,
        "controls": judged_controls,
        "halves": halves,
    }
    (args.out / "score.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
