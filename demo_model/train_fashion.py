"""Train the second model: a rectified flow on pixels, a small transformer that ends in a linear layer.

Data: Fashion-MNIST (Xiao et al. 2017, MIT licence), from Debian's package ``dataset-fashion-mnist``, padded to 32 by
32. The network is the host's AuraFlow class at a small size, in the host's pixel space (RGB from -1 to 1, no
autoencoder), told one of ten kinds of garment by a learned token.

Run with the interpreter of a ComfyUI that ``python dev.py host`` made::

    apt-get install dataset-fashion-mnist
    .venv/bin/python demo_model/train_fashion.py --comfyui .host/ComfyUI --work /tmp/fashion
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from train import HERE, Average, Clock, reset, save_atomically

SEED = 20170825
# The data set's own order; the empty prompt comes first among the tokens.
KINDS = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "trainer", "bag", "ankle boot")
EMPTY = 0
TOKEN_WIDTH = 32
SHIFT = 1.73  # AuraFlow's own, see comfy.supported_models
CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 4,
    "dim": 128,
    "n_layers": 6,
    "n_double_layers": 0,
    "n_heads": 4,
    "global_conddim": 128,
    "cond_seq_dim": TOKEN_WIDTH,
    "max_seq": 64,
}


def read_split(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures ``(n, 1, 32, 32)`` uint8, black around, and their kinds ``(n,)``; split is "train" or "t10k"."""
    pictures = numpy.frombuffer(gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes()), numpy.uint8)
    labels = numpy.frombuffer(gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes()), numpy.uint8)
    pictures = torch.from_numpy(pictures[16:].copy()).reshape(-1, 1, 28, 28)
    return F.pad(pictures, (2, 2, 2, 2)), torch.from_numpy(labels[8:].copy()).long()


def build_network():
    import comfy.ldm.aura.mmdit
    import comfy.ops

    network = comfy.ldm.aura.mmdit.MMDiT(
        **CONFIG, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init
    )
    reset(network)
    torch.nn.init.normal_(network.positional_encoding, std=0.1)
    torch.nn.init.normal_(network.register_tokens, std=0.1)
    for name, parameter in network.named_parameters():
        if "_norm" in name:
            torch.nn.init.ones_(parameter)
        elif "modCX.1" in name or "modF.1" in name or "final_linear" in name:
            torch.nn.init.zeros_(parameter)
        elif "fc" in name or "proj" in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return network


def train(pictures: torch.Tensor, labels: torch.Tensor, work: Path, minutes: float, batch: int) -> None:
    torch.manual_seed(SEED)
    network, embedding = build_network(), torch.nn.Embedding(len(KINDS) + 1, TOKEN_WIDTH)
    parameters = [*network.parameters(), *embedding.parameters()]
    print(f"{sum(p.numel() for p in parameters):,} parameters, {len(pictures)} pictures", flush=True)
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=1e-3)
    average, generator = Average(parameters, 0.999), torch.Generator().manual_seed(SEED)
    step, spent, path = 0, 0.0, work / "fashion.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        embedding.load_state_dict(state["embedding"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, average.count = state["average"], state["count"]
        step, spent = state["step"], state["spent"]
        generator.set_state(state["generator"])
    clock, losses = Clock(minutes, spent), []

    def save():
        save_atomically(
            {
                "network": network.state_dict(),
                "embedding": embedding.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.values,
                "count": average.count,
                "step": step,
                "spent": clock.elapsed(),
                "generator": generator.get_state(),
            },
            path,
        )

    while clock.fraction() < 1:
        rate = 2e-3 * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * clock.fraction())))
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.randint(len(pictures), (batch,), generator=generator)
        x0 = (pictures[index].float() / 127.5 - 1).expand(-1, 3, -1, -1)
        tokens = labels[index] + 1
        tokens[torch.rand(batch, generator=generator) < 0.12] = EMPTY
        # One stratified draw a batch, spread over the schedule as the host's sampling spreads it.
        share = (torch.rand(batch, generator=generator) + torch.arange(batch)) / batch
        t = SHIFT * share / (1 + (SHIFT - 1) * share)
        noise = torch.randn(x0.shape, generator=generator)
        noisy = torch.lerp(x0, noise, t.view(-1, 1, 1, 1))
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            out = network(noisy, t, context=embedding(tokens)[:, None])
        loss = (out.float() - (noise - x0)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"{clock.elapsed():6.0f} s step {step} loss {numpy.mean(losses[-50:]):.4f}", flush=True)
        if step % 200 == 0:
            save()
    save()


def export(work: Path) -> None:
    state = torch.load(work / "fashion.pt", weights_only=True)
    names = [name for name, _ in build_network().named_parameters()]
    tensors = {f"diffusion_model.{name}": value for name, value in zip(names, state["average"])}
    tensors["conditioning.embedding"] = state["average"][len(names)]
    metadata = {
        "config": json.dumps(CONFIG),
        "prompts": json.dumps({kind: [token] for token, kind in enumerate(KINDS, start=1)}),
        "seed": str(SEED),
        "steps": str(state["step"]),
        "data": "Fashion-MNIST, Zalando SE, MIT licence",
    }
    path = HERE / "fashion_flow.safetensors"
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, path, metadata)
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=["all", "train", "export"], default="all")
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()

    sys.path.insert(0, str(arguments.comfyui))
    from comfy.cli_args import args as host_args

    host_args.cpu, host_args.use_pytorch_cross_attention = True, True
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("all", "train"):
        train(*read_split(arguments.data, "train"), arguments.work, arguments.minutes, arguments.batch)
    if arguments.stage in ("all", "export"):
        export(arguments.work)


if __name__ == "__main__":
    main()
