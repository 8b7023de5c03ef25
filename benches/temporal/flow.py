#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Compares the time spent on a frame's motion with that of OpenCV's DIS flow (preset fast).

Same frames, same number of threads, in turns. OpenCV computes the flow in both directions from grey
bytes that are prepared beforehand; gatys computes the frame's pyramid, both flows and their masks,
the last result's spline, and warps that. Prints medians and minima of both, their ratio and, where
the motion is known, both end-point errors, as a table in Markdown.

Started by run.sh, which makes the environment.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
OURS = ["cargo", "bench", "--quiet", "--bench", "temporal", "--", "--flow"]
# Worker threads may spin for a moment before they sleep.
SETTLE_SECONDS = 0.02
STAGES = ("luma", "flow", "ready", "move")


class Server:
    """The benchmark's process, which answers requests (flow.rs)."""

    def __init__(self, options):
        command = [*OURS]
        for name in ("threads", "width", "frames"):
            command += [f"--{name}", str(getattr(options, name))]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        # Skips the output of cargo.
        while not (line := self._line()).startswith("ready "):
            pass
        self.clips = line.split()[1:]

    def _line(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(OURS)} ended with status {self.process.wait()}")
        return line.strip()

    def ask(self, *command):
        print(*command, file=self.process.stdin, flush=True)
        return self._line()

    def next(self):
        """Milliseconds of each stage for the next frame, and the end-point error."""
        *stages, error = map(float, self.ask("next").split())
        return stages, error

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def dis(flow, now, before):
    """The milliseconds that both flows take, and the one from `now` to `before`."""
    begun = time.perf_counter()
    backward = flow.calc(now, before, None)
    flow.calc(before, now, None)
    return 1e3 * (time.perf_counter() - begun), backward


def end_point_error(backward, truth):
    """The mean distance to the true end points, in pixels, of what the frame before shows too."""
    distances = np.linalg.norm(backward - truth[..., :2], axis=-1)
    return distances[truth[..., 2] > 0.5].mean()


def compare(server, clip, rounds):
    """Measures a clip and returns its row of the table."""
    with tempfile.TemporaryDirectory() as directory:
        known = server.ask("load", clip, directory) == "known"
        frames = np.load(f"{directory}/frames.npy")
        truths = np.load(f"{directory}/motions.npy") if known else None
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    theirs, ours, errors = [], [], []
    # The first round warms up.
    for turn in range(1 + rounds):
        server.ask("begin")
        for index in range(1, len(greys)):
            time.sleep(SETTLE_SECONDS)
            took, backward = dis(flow, greys[index], greys[index - 1])
            time.sleep(SETTLE_SECONDS)
            stages, error = server.next()
            if turn > 0:
                theirs.append(took)
                ours.append(stages)
            elif known:
                errors.append((end_point_error(backward, truths[index - 1]), error))
    times = [sum(stages) for stages in ours]
    by_stage = zip(STAGES, map(statistics.median, zip(*ours)))
    print(f"{clip}: " + ", ".join(f"{stage} {took:.2f} ms" for stage, took in by_stage), flush=True)
    ratio = statistics.median(b / a for a, b in zip(theirs, times))
    cells = [f"{statistics.median(list_):.1f} ({min(list_):.1f})" for list_ in (theirs, times)]
    cells += [f"{ratio:.2f} ({min(times) / min(theirs):.2f})"]
    flows = [stages[STAGES.index("flow")] for stages in ours]
    cells += [f"{statistics.median(flows):.1f} ({min(flows):.1f})"]
    cells += [f"{np.mean(list_):.2f}" for list_ in zip(*errors)] or ["?", "?"]
    return [clip, *cells]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="of each side [%(default)s]")
    parser.add_argument("--width", type=int, default=640, help="of the frames [%(default)s]")
    parser.add_argument("--frames", type=int, default=8, help="of each clip [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="through each clip [%(default)s]")
    return parser.parse_args()


def main():
    options = arguments()
    cv2.setNumThreads(options.threads)
    server = Server(options)
    rows = [compare(server, clip, options.rounds) for clip in server.clips]
    server.end()
    print(f"\nOpenCV {cv2.__version__}, {options.threads} threads each; ms, medians (minima)\n")
    print("| clip | DIS | gatys | gatys / DIS | gatys: flow alone | end-point error of DIS | of gatys |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
