"""Train the third model: handwritten digits on grey pixels, a very small UNet with v-prediction.

Data: the 1,797 digits of 8 by 8 that scikit-learn brings along (Alpaydin and Kaynak 1998, CC BY 4.0), made 16 by 16 by
linear interpolation. The network is the host's UNetModel at a small size, with SD1's noise schedule, on the pixels
themselves (one channel from -1 to 1, no autoencoder), told the digit by a learned token that it reads by
cross-attention.

Run with the interpreter of a ComfyUI that ``python dev.py host`` made::

    .venv/bin/python -m pip install scikit-learn
    .venv/bin/python demo_model/train_digits.py --comfyui .host/ComfyUI
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from train import HERE, Average, alphas_cumprod, reset

SEED = 19980701
DIGITS = tuple("0123456789")
# The empty prompt comes first among the tokens.
EMPTY = 0
TOKEN_WIDTH = 32
CONFIG = {
    "image_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 32,
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 2],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1, 1],
    "num_heads": -1,
    "num_head_channels": 32,
    "context_dim": TOKEN_WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
}


def read_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures ``(n, 1, 16, 16)`` from -1 (paper) to 1 (ink), and their digits ``(n,)``."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    return F.interpolate(pictures, size=(16, 16), mode="bilinear"), torch.from_numpy(data.target).long()


def build_network():
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    network = UNetModel(**CONFIG, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    reset(network)
    # Every residual block starts as the identity, and the network at zero.
    last = [block.out_layers[-1] for block in network.modules() if isinstance(block, ResBlock)]
    for layer in (*last, network.out[-1]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return network


def train(pictures: torch.Tensor, labels: torch.Tensor, steps: int, batch: int) -> dict[str, torch.Tensor]:
    """The averaged parameters, by their names in the file."""
    torch.manual_seed(SEED)
    network, embedding = build_network(), torch.nn.Embedding(len(DIGITS) + 1, TOKEN_WIDTH)
    parameters = [*network.parameters(), *embedding.parameters()]
    print(f"{sum(p.numel() for p in parameters):,} parameters, {len(pictures)} pictures", flush=True)
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=1e-3)
    average, generator = Average(parameters, 0.999), torch.Generator().manual_seed(SEED)
    alpha, losses, start = alphas_cumprod(), [], time.monotonic()
    for step in range(1, steps + 1):
        rate = 2e-3 * min(1.0, step / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.randint(len(pictures), (batch,), generator=generator)
        x0, tokens = pictures[index], labels[index] + 1
        tokens[torch.rand(batch, generator=generator) < 0.12] = EMPTY
        # One stratified draw a batch: every part of the schedule in every step.
        t = (torch.rand(batch, generator=generator) + torch.arange(batch)) / batch * len(alpha)
        t = t.long().clamp(max=len(alpha) - 1)
        noise = torch.randn(x0.shape, generator=generator)
        a = alpha[t].view(-1, 1, 1, 1)
        noisy, target = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        # At so few tokens the plain kernel is faster backwards than the flash one.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            out = network(noisy, t.float(), context=embedding(tokens)[:, None], transformer_options={})
        loss = (out.float() - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        losses.append(loss.item())
        if step % 50 == 0:
            seconds = time.monotonic() - start
            print(f"{seconds:6.0f} s step {step} loss {numpy.mean(losses[-50:]):.4f}", flush=True)
    names = [f"diffusion_model.{name}" for name, _ in network.named_parameters()]
    return dict(zip([*names, "conditioning.embedding"], average.values))


def export(tensors: dict[str, torch.Tensor], steps: int) -> None:
    metadata = {
        "config": json.dumps(CONFIG),
        "prompts": json.dumps({digit: [token] for token, digit in enumerate(DIGITS, start=1)}),
        "seed": str(SEED),
        "steps": str(steps),
        "data": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI, CC BY 4.0",
    }
    path = HERE / "digits_unet.safetensors"
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, path, metadata)
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()

    sys.path.insert(0, str(arguments.comfyui))
    from comfy.cli_args import args as host_args

    host_args.cpu, host_args.use_pytorch_cross_attention = True, True
    torch.set_num_threads(arguments.threads)
    export(train(*read_data(), arguments.steps, arguments.batch), arguments.steps)


if __name__ == "__main__":
    main()
