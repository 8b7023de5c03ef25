# SPDX-License-Identifier: MPL-2.0
"""PyTorch files for tests/weights.rs and tests/bad_input.rs, written beside this file.

    python3 make.py        (torch 2.8, numpy, safetensors; CPU; seconds)

A VGG-19 of 4 to 16 channels with seeded random weights in torchvision's naming (features.0.weight, ...), saved by torch.save:

narrow.pth              a state_dict as a whole: f32, zip format
narrow-f16.pth          the same in f16, conv1_1 to conv2_2, as torch.nn.Parameter
legacy.pth              conv1_1 to conv2_1 in the format before PyTorch 1.6, which is no zip file (it differs in a few bytes each time)
features.safetensors    image: f32 [37, 50, 3] in 0..1; conv1_1 ... conv5_4: the activations after ReLU of narrow.pth in f64
                        arithmetic, f32 [h, w, channels], average pooling, ImageNet's mean and deviation. conv1_1 sees the
                        image's border replicated, every other layer zeros.
"""
from pathlib import Path

import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file

HERE = Path(__file__).parent
BLOCKS = [[4] * 2, [6] * 2, [8] * 4, [10] * 4, [10] * 4]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def network():
    """The convolutions' names and modules, `None` where a pool is."""
    torch.manual_seed(19)
    layers, inputs, place = [], 3, 0
    for b, block in enumerate(BLOCKS, 1):
        for c, outputs in enumerate(block, 1):
            conv = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
            torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            torch.nn.init.uniform_(conv.bias, -0.1, 0.1)
            layers.append((f"conv{b}_{c}", place, conv))
            place, inputs = place + 2, outputs
        place += 1
        layers.append(None)
    return layers


def features(layers, image):
    x = (image.double() - MEAN) / STD
    x = nnf.pad(x.permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")
    result = {}
    for layer in layers:
        if layer is None:
            x = nnf.avg_pool2d(x, 2)
            continue
        name, _, conv = layer
        x = nnf.relu(nnf.conv2d(x, conv.weight.double(), conv.bias.double(), padding=0 if name == "conv1_1" else 1))
        result[name] = x[0].permute(1, 2, 0).float().contiguous()
    return result


def main():
    layers = network()
    state = {}
    for layer in filter(None, layers):
        _, place, conv = layer
        state |= {f"features.{place}.weight": conv.weight.detach(), f"features.{place}.bias": conv.bias.detach()}
    torch.save(state, HERE / "narrow.pth")
    half = {name: torch.nn.Parameter(tensor.half()) for name, tensor in list(state.items())[:8]}
    torch.save(half, HERE / "narrow-f16.pth")
    legacy = dict(list(state.items())[:6])
    torch.save(legacy, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    image = torch.rand(37, 50, 3)
    with torch.no_grad():
        save_file({"image": image, **features(layers, image)}, HERE / "features.safetensors")


main()
