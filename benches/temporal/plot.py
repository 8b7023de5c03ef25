#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Plots each frame's warping error and loss, as written by the benchmark with --csv, by clip.

    plot.py FRAMES.csv PLOT.svg
"""

import csv
import sys

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Colours that are safe for colour-blind readers (Okabe and Ito 2008), and marks for grey prints.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")
MARKS = "os^vDP"
# Columns of the file, the units they are plotted in, and their labels.
VALUES = (("warping_error", 1e-3, "warping error, 1e-3"), ("relative_loss", 1, "relative loss"))

mpl.rcParams.update({"font.size": 9, "lines.markersize": 4, "lines.linewidth": 1.2})
# Makes the file reproducible.
mpl.rcParams["svg.hashsalt"] = "temporal"


def load(path):
    """The lines of each start of each clip, in the order of the file."""
    clips = {}
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            clips.setdefault(line["clip"], {}).setdefault(line["start"], []).append(line)
    return clips


def main():
    source, target = sys.argv[1:]
    clips = load(source)
    figure = Figure(figsize=(2.6 * len(clips) + 0.6, 5.4), facecolor="white", layout="constrained")
    panels = figure.subplots(len(VALUES), len(clips), sharex=True, sharey="row", squeeze=False)
    for column, (clip, starts) in enumerate(clips.items()):
        for (name, unit, label), panel in zip(VALUES, panels[:, column]):
            for (start, lines), colour, mark in zip(starts.items(), COLOURS, MARKS):
                # The first frame has nothing to do with motion.
                points = [(int(line["frame"]), float(line[name]) / unit) for line in lines[1:]]
                panel.plot(*zip(*points), color=colour, marker=mark, label=start)
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            panel.yaxis.set_minor_formatter("{x:g}" if name == "relative_loss" else NullFormatter())
            panel.grid(color="#e4e4e4", linewidth=0.5)
            panel.xaxis.get_major_locator().set_params(integer=True)
            if column == 0:
                panel.set_ylabel(label)
        panels[0, column].set_title(clip)
        panels[-1, column].set_xlabel("frame")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
