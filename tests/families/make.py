# SPDX-License-Identifier: MPL-2.0
"""Small files of every family of VGG-19 weights, and the features that PyTorch gives with them, written beside this file.

    python3 make.py        (torch 2.8, numpy, safetensors, h5py, scipy; CPU; seconds)

Each is a VGG-19 of 4 to 6 channels with seeded random weights, in the structure of the family's own file and by the writer that
made it. FAMILY.features.safetensors has the activations after each layer's ReLU, f32 [h, w, channels], of the image in
image.safetensors, f32 [20, 26, 3] RGB 0..1, in f64 arithmetic with average pooling: conv1_1 sees the image's border replicated,
every other layer zeros. Batch norms and 1x1 convolutions are run as they are.

torchvision.pth, .safetensors   state_dict of models.vgg19, with a classifier; the same as model hubs have it, without one
torchvision-legacy.pth          the same in the format before PyTorch 1.6, which is no zip file (some bytes differ each time)
torchvision-2017.pth            the same as PyTorch 0.1 wrote it under Python 2, which is how torchvision's own file may be
torchvision-last.pth            with channels last in memory
torchvision-f16.pth             conv1_1 to conv2_2 in f16, as torch.nn.Parameter, within the checkpoint of a training
torchvision-bn.pth              state_dict of models.vgg19_bn
gatys.pth                       vgg_conv.pth: layers' names, BGR 0..255 less ImageNet's mean
caffe.pth                       vgg19-d01eb7cb.pth: the same with torchvision's numbers and a classifier, legacy format
adain.pth                       vgg_normalised.pth: a Sequential that begins with a 1x1 convolution
keras.h5, keras-theano.h5       vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5 and ..._th_dim_ordering_th_kernels_notop.h5
layers.npz, layers.npy          arrays by layers' names, and a dictionary of them (savez_compressed and save)
matconvnet.mat                  imagenet-vgg-verydeep-19.mat: RGB 0..255 less the mean that it says
"""
import pickle
import struct
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
BLOCKS = [[4] * 2, [4] * 2, [4] * 4, [5] * 4, [6] * 4]
CAFFE_MEAN = [103.939, 116.779, 123.68]


def torchvision_input(image):
    return (image - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])


def caffe_input(image):
    return 255 * image.flip(-1) - torch.tensor(CAFFE_MEAN)


def matconvnet_input(image):
    return 255 * image - torch.tensor(CAFFE_MEAN).flip(0)


class Network(nn.Module):
    """`layers` by name, each its modules up to the ReLU."""

    def __init__(self, seed, batch_norm=False, scale=1.0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers, inputs = {}, 3
        for b, block in enumerate(BLOCKS, 1):
            for c, outputs in enumerate(block, 1):
                conv = nn.Conv2d(inputs, outputs, 3)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                nn.init.uniform_(conv.bias, -0.05, 0.25)
                # Without this, activations of 0..255 would leave the biases without effect.
                conv.weight.data *= scale if inputs == 3 else 1
                modules = [conv]
                if batch_norm:
                    norm = nn.BatchNorm2d(outputs)
                    for values, low, high in ((norm.weight, 0.5, 1.5), (norm.bias, -0.2, 0.4), (norm.running_mean, -0.3, 0.3), (norm.running_var, 0.4, 2)):
                        nn.init.uniform_(values, low, high)
                    modules.append(norm)
                self.layers[f"conv{b}_{c}"] = modules
                inputs = outputs

    def features(self, x, before=None):
        """The activations of `x`, [h, w, 3]."""
        x, result = x.double().permute(2, 0, 1)[None], {}
        if before is not None:
            x = before(x)
        for name, modules in self.layers.items():
            if name.endswith("_1") and name != "conv1_1":
                x = nnf.avg_pool2d(x, 2)
            x = nnf.pad(x, (1, 1, 1, 1), mode="replicate" if name == "conv1_1" else "constant")
            for module in modules:
                x = module.double().eval()(x)
            x = nnf.relu(x)
            result[name] = x[0].permute(1, 2, 0).float().contiguous()
            assert (x > 0).double().mean() > 0.2, f"{name} is dead: take another seed"
            for module in modules:
                module.float()
        return result

    def numbered(self, start=0, per_layer=2, prefix="features."):
        """The state_dict of a sequence with so many modules a layer and a pool after each block."""
        state, place = {}, start
        for name, modules in self.layers.items():
            if name.endswith("_1") and name != "conv1_1":
                place += 1
            for offset, module in enumerate(modules):
                state |= {f"{prefix}{place + offset}.{key}": value for key, value in module.state_dict().items()}
            place += per_layer
        return state

    def named(self):
        return {f"{name}.{key}": value for name, (conv,) in self.layers.items() for key, value in conv.state_dict().items()}

    def arrays(self):
        """Kernels as TensorFlow and MATLAB have them, [h, w, in, out], and biases."""
        for name, (conv,) in self.layers.items():
            yield name, conv.weight.detach().permute(2, 3, 1, 0).contiguous().numpy(), conv.bias.detach().numpy()


def classifier(*places):
    state = {}
    for place in places:
        state |= {f"classifier.{place}.weight": torch.rand(3, 5), f"classifier.{place}.bias": torch.rand(3)}
    return state


def save_features(family, features):
    save_file(features, HERE / f"{family}.features.safetensors")


class Called:
    """What a pickle makes by calling `module.name` with arguments."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = f"c{module}\n{name}\n".encode(), arguments


class Storage:
    def __init__(self, key, count):
        self.id = ("storage", Global("torch", "FloatStorage"), key, "cpu", count, None)


class Global:
    def __init__(self, module, name):
        self.opcode = f"c{module}\n{name}\n".encode()


class OldPickler(pickle._Pickler):
    """Writes texts as Python 2 did, and Called, Storage and Global as PyTorch's names."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        self.write(b"U" + bytes([len(text)]) + text.encode())
        self.memoize(text)

    def save_called(self, called):
        self.write(called.function)
        self.save(called.arguments)
        self.write(b"R")

    def save_storage(self, storage):
        self.save(storage.id)
        self.write(b"Q")

    def save_global(self, found):
        self.write(found.opcode)

    dispatch |= {str: save_text, Called: save_called, Storage: save_storage, Global: save_global}


def save_as_in_2017(state, path):
    """As PyTorch before 0.4 saved a state_dict of parameters under Python 2."""

    def parameter(key, tensor):
        arguments = (Storage(key, tensor.numel()), 0, tuple(tensor.shape), tensor.stride())
        return Called("torch.nn.parameter", "Parameter", Called("torch._utils", "_rebuild_tensor", *arguments))

    keys = [str(94000000 + place) for place in range(len(state))]
    pairs = [[name, parameter(key, tensor)] for key, (name, tensor) in zip(keys, state.items())]
    sizes = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as file:
        file.write(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.")
        for part in (1001, sizes, Called("collections", "OrderedDict", pairs), keys):
            OldPickler(file, 2).dump(part)
        for tensor in state.values():
            file.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
    read = torch.load(path, weights_only=False)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def torchvision(image):
    network = Network(1)
    state = network.numbered()
    torch.save(state | classifier(0, 3, 6), HERE / "torchvision.pth")
    torch.save(state | classifier(0, 3, 6), HERE / "torchvision-legacy.pth", _use_new_zipfile_serialization=False)
    save_as_in_2017(state, HERE / "torchvision-2017.pth")
    last = {name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor for name, tensor in state.items()}
    torch.save(last, HERE / "torchvision-last.pth")
    save_file(state, HERE / "torchvision.safetensors", metadata={"format": "pt"})
    half = {name: nn.Parameter(tensor.half()) for name, tensor in list(state.items())[:8]}
    torch.save({"epoch": 3, "state_dict": half}, HERE / "torchvision-f16.pth")
    save_features("torchvision", network.features(torchvision_input(image)))


def torchvision_bn(image):
    network = Network(2, batch_norm=True)
    torch.save(network.numbered(per_layer=3) | classifier(0, 3, 6), HERE / "torchvision-bn.pth")
    save_features("torchvision-bn", network.features(torchvision_input(image)))


def caffe(image):
    network = Network(3, scale=1 / 60)
    torch.save(network.named(), HERE / "gatys.pth")
    torch.save(network.numbered() | classifier(1, 4, 6), HERE / "caffe.pth", _use_new_zipfile_serialization=False)
    keras(network)
    arrays = {}
    for name, kernel, bias in network.arrays():
        arrays |= {f"{name}_W": kernel, f"{name}_b": bias}
    np.savez_compressed(HERE / "layers.npz", **arrays)
    np.save(HERE / "layers.npy", {name: [kernel, bias] for name, kernel, bias in network.arrays()}, allow_pickle=True)
    save_features("caffe", network.features(caffe_input(image)))
    matconvnet(network)
    save_features("matconvnet", network.features(matconvnet_input(image)))


def keras(network):
    # Theano convolves, so that its kernels are rotated by half a turn.
    for name, ordered in (("keras.h5", lambda kernel: kernel), ("keras-theano.h5", lambda kernel: kernel.transpose(3, 2, 0, 1)[:, :, ::-1, ::-1])):
        with h5py.File(HERE / name, "w", libver="earliest") as file:
            file.attrs["layer_names"] = [name.encode() for name in ("input_1", "block1_conv1", "block1_pool")]
            file.create_group("input_1")
            for name, kernel, bias in network.arrays():
                layer = f"block{name[4]}_conv{name[6]}"
                group = file.create_group(layer)
                group.attrs["weight_names"] = [f"{layer}_W_1:0".encode(), f"{layer}_b_1:0".encode()]
                group[f"{layer}_W_1:0"], group[f"{layer}_b_1:0"] = ordered(kernel), bias


def matconvnet(network):
    layers = []
    for name, kernel, bias in network.arrays():
        if name.endswith("_1") and name != "conv1_1":
            layers.append({"type": "pool", "name": f"pool{int(name[4]) - 1}", "pool": [2.0, 2.0]})
        weights = np.empty((1, 2), dtype=object)
        weights[0, 0], weights[0, 1] = kernel, bias.reshape(1, -1)
        layers.append({"type": "conv", "name": name, "weights": weights, "pad": [1.0] * 4, "stride": [1.0, 1.0]})
        layers.append({"type": "relu", "name": name.replace("conv", "relu")})
    cells = np.empty((1, len(layers)), dtype=object)
    cells[0, :] = layers
    mean = np.array(CAFFE_MEAN[::-1]).reshape(1, 1, 3)
    scipy.io.savemat(HERE / "matconvnet.mat", {"layers": cells, "meta": {"normalization": {"averageImage": mean}}}, do_compression=True)


def adain(image):
    network = Network(5, scale=1 / 60)
    first = nn.Conv2d(3, 3, 1)
    first.weight.data = 255 * torch.eye(3).flip(0)[:, :, None, None]
    first.bias.data = -torch.tensor(CAFFE_MEAN)
    state = {f"0.{key}": value for key, value in first.state_dict().items()}
    torch.save(state | network.numbered(start=2, per_layer=3, prefix=""), HERE / "adain.pth")
    save_features("adain", network.features(image, before=first.double()))


def main():
    torch.manual_seed(0)
    image = torch.rand(20, 26, 3)
    save_file({"image": image}, HERE / "image.safetensors")
    with torch.no_grad():
        for family in (torchvision, torchvision_bn, caffe, adain):
            family(image)


main()
