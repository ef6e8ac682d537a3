"""Train the demo model: a small latent, text-conditioned diffusion model of emoji.

Data (both tarballs come from the npm registry, read here with ``tarfile``):

* ``@lobehub/fluent-emoji-3d@1.1.0``: Microsoft's Fluent Emoji, 256 px WebP, MIT licence.
* ``emoji-datasource-google@16.0.0``: ``emoji.json`` with names, categories and subcategories.

Stages, each resumes from its own checkpoint in the work folder:

1. ``data``: 128-px RGB images on white, one caption (category, subcategory, words of the name) each.
2. ``vae``: an autoencoder in TAESD's layout (the host's own class), trained on 64-px crops.
3. ``unet``: an eps-prediction ``UNetModel`` (the host's own class) on the encoded latents of all images.
4. ``focus``: the same network goes on with the categories that it is shown with, see ``FOCUS``.
5. ``export``: float16 safetensors beside this file, and some of the images in ``pictures/``.

Where ``vae.pt`` or ``unet.pt`` is missing in the work folder, later stages start from the weights beside this file.

Run with the interpreter of a ComfyUI that ``python dev.py host`` made::

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emoji-datasource-google@16.0.0
    .venv/bin/python demo_model/train.py --comfyui .host/ComfyUI --tarballs . --work /tmp/emoji
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import sys
import tarfile
import time
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

SEED = 20231114
HERE = Path(__file__).resolve().parent
PAD, WORDS_PER_NAME = 0, 6
# What the network saw of people, flags and symbols has taught it shading and outline; to draw all 1,852 images well it
# would need several times the training and the size, so it ends on three categories, and its prompts are theirs.
FOCUS = ("Animals & Nature", "Food & Drink", "Smileys & Emotion")
UNET_CONFIG = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [2, 1, 1],
    "transformer_depth": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1],
    "num_heads": -1,
    "num_head_channels": 32,
    "context_dim": 96,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
}


# ---------------------------------------------------------------- data


def read_data(tarballs: Path, transparent: bool = False) -> tuple[torch.Tensor, list[dict]]:
    """Images (n, 3, 128, 128) uint8 on white, or (n, 4, ...) with their opacity, and one record each.

    A record has a name, a category and a subcategory.
    """
    with tarfile.open(tarballs / "emoji-datasource-google-16.0.0.tgz") as tar:
        catalogue = json.load(tar.extractfile("package/emoji.json"))
    by_code = {}
    for entry in catalogue:
        for code in (entry["unified"], entry["non_qualified"]):
            if code:
                by_code[code.lower()] = entry
    images, records, seen = [], [], set()
    with tarfile.open(tarballs / "lobehub-fluent-emoji-3d-1.1.0.tgz") as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            entry = by_code.get(Path(member.name).stem)
            if entry is None or not member.name.endswith(".webp") or entry["unified"] in seen:
                continue
            seen.add(entry["unified"])
            picture = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGBA")
            if not transparent:
                canvas = Image.new("RGBA", picture.size, "white")
                canvas.alpha_composite(picture)
                picture = canvas.convert("RGB")
            canvas = picture.resize((128, 128), Image.Resampling.LANCZOS)
            images.append(torch.from_numpy(numpy.array(canvas)).permute(2, 0, 1))
            name = re.sub(r"[^a-z0-9]+", " ", (entry["name"] or entry["short_name"]).lower()).strip()
            records.append({"name": name, "category": entry["category"], "subcategory": entry["subcategory"]})
    return torch.stack(images), records


def build_vocabulary(records: list[dict]) -> dict[str, int]:
    """Token ids: 0 pads (and is the whole unconditional prompt), then every category, subcategory and word."""
    tokens = set()
    for record in records:
        tokens.update(tokens_of(record))
    return {token: i + 1 for i, token in enumerate(sorted(tokens))}


def tokens_of(record: dict) -> list[str]:
    words = record["name"].split()[:WORDS_PER_NAME]
    return [f"category:{record['category']}", f"subcategory:{record['subcategory']}", *words]


def encode_tokens(record: dict, vocabulary: dict[str, int]) -> list[int]:
    ids = [vocabulary[token] for token in tokens_of(record)]
    return ids + [PAD] * (2 + WORDS_PER_NAME - len(ids))


# ---------------------------------------------------------------- training helpers


def reset(module: torch.nn.Module) -> None:
    """The host's layers skip their initialisation; give them torch's own."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.Conv2d.reset_parameters(layer)
        elif isinstance(layer, torch.nn.Linear):
            torch.nn.Linear.reset_parameters(layer)
        elif isinstance(layer, torch.nn.GroupNorm):
            torch.nn.GroupNorm.reset_parameters(layer)
        elif isinstance(layer, torch.nn.LayerNorm):
            torch.nn.LayerNorm.reset_parameters(layer)


class Clock:
    """Progress by wall time, so that a run ends after the minutes that were asked for."""

    def __init__(self, minutes: float, spent: float = 0.0):
        self.total, self.spent, self.start = minutes * 60, spent, time.monotonic()

    def elapsed(self) -> float:
        return self.spent + time.monotonic() - self.start

    def fraction(self) -> float:
        return min(1.0, self.elapsed() / self.total)


class Average:
    """Exponential moving average of parameters, with the usual warm-up of its horizon."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float):
        self.parameters, self.decay, self.count = parameters, decay, 0
        self.values = [p.detach().clone() for p in parameters]

    def update(self) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    def copy_to_parameters(self) -> None:
        with torch.no_grad():
            for p, v in zip(self.parameters, self.values):
                p.copy_(v)


def save_atomically(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


# ---------------------------------------------------------------- autoencoder


def build_vae():
    import comfy.taesd.taesd

    vae = comfy.taesd.taesd.TAESD(latent_channels=4)
    reset(vae)
    for block in vae.modules():
        if isinstance(block, comfy.taesd.taesd.Block):
            torch.nn.init.zeros_(block.conv[4].bias)
            with torch.no_grad():
                block.conv[4].weight.mul_(0.3)
    # TAESD works on unit-variance latents; the host multiplies what a VAE returns by the SD1 scale factor.
    vae.vae_scale.requires_grad_(False).fill_(0.18215)
    vae.vae_shift.requires_grad_(False)
    return vae


def gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 of values and of edges over three scales, plus a little L2: sharp enough without a perceptual network."""
    loss = 2.0 * F.mse_loss(out, target)
    for scale in range(3):
        loss = loss + F.l1_loss(out, target)
        loss = loss + sum(F.l1_loss(a, b) for a, b in zip(gradients(out), gradients(target)))
        if scale < 2:
            out, target = F.avg_pool2d(out, 2), F.avg_pool2d(target, 2)
    return loss


def random_crops(images: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    index = torch.randint(len(images), (count,), generator=generator)
    # Multiples of one pixel; clamped draws from a wider range would favour corners, which are blank.
    top, left = torch.randint(0, 65, (2, count), generator=generator)
    crops = [images[i, :, t : t + 64, c : c + 64] for i, t, c in zip(index, top.tolist(), left.tolist())]
    return torch.stack(crops).float() / 255


def train_vae(images: torch.Tensor, work: Path, minutes: float, batch: int) -> None:
    torch.manual_seed(SEED)
    vae = build_vae().to(memory_format=torch.channels_last)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=1e-4)
    average = Average(parameters, 0.995)
    generator = torch.Generator().manual_seed(SEED)
    step, spent, path = 0, 0.0, work / "vae.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, average.count = state["average"], state["count"]
        step, spent = state["step"], state["spent"]
        generator.set_state(state["generator"])
    clock, losses = Clock(minutes, spent), []

    def save():
        save_atomically(
            {
                "vae": vae.state_dict(),
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
        rate = 1e-3 * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * clock.fraction())))
        for group in optimizer.param_groups:
            group["lr"] = rate
        crops = random_crops(images, batch, generator).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.taesd_encoder(crops)
        latent = latent.float()
        # Unit variance for the diffusion model, and a decoder that forgives its small errors.
        moments = latent.mean((0, 2, 3)).square().mean() + (latent.var((0, 2, 3)) - 1).square().mean()
        overshoot = F.relu(latent.abs() - 2.8).square().mean()
        noisy = latent + 0.08 * torch.randn(latent.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            out = vae.taesd_decoder(noisy)
        reconstruction = reconstruction_loss(out.float(), crops)
        loss = reconstruction + 0.02 * moments + 0.1 * overshoot
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        step += 1
        losses.append(reconstruction.item())
        if step % 50 == 0:
            print(
                f"vae {clock.elapsed():6.0f} s step {step} loss {numpy.mean(losses[-50:]):.4f} "
                f"latent std {latent.std():.2f}",
                flush=True,
            )
        if step % 200 == 0:
            save()
    save()


def load_trained_vae(work: Path):
    vae = build_vae()
    if (work / "vae.pt").exists():
        state = torch.load(work / "vae.pt", weights_only=True)
        vae.load_state_dict(state["vae"])
        parameters = [p for p in vae.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, v in zip(parameters, state["average"]):
                p.copy_(v)
    else:
        vae.load_state_dict({k: v.float() for k, v in load_file(HERE / "emoji_vae.safetensors").items()})
    return vae.eval().requires_grad_(False)


def encode_all(vae, images: torch.Tensor) -> torch.Tensor:
    """Model-space latents (n, 4, 16, 16) of all images."""
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([vae.taesd_encoder(chunk.float() / 255) for chunk in images.split(32)]).float()


# ---------------------------------------------------------------- diffusion model


def build_unet():
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    unet = UNetModel(**UNET_CONFIG, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    reset(unet)
    for block in unet.modules():
        if isinstance(block, ResBlock):
            torch.nn.init.zeros_(block.out_layers[-1].weight)
            torch.nn.init.zeros_(block.out_layers[-1].bias)
    torch.nn.init.zeros_(unet.out[-1].weight)
    torch.nn.init.zeros_(unet.out[-1].bias)
    return unet


def alphas_cumprod() -> torch.Tensor:
    """The SD1 schedule, as the host builds it for an eps model (1,000 steps)."""
    import comfy.model_sampling

    sigmas = comfy.model_sampling.ModelSamplingDiscrete().sigmas
    return 1 / (sigmas.square() + 1)


def start_of_focus(unet, work: Path) -> list[torch.Tensor]:
    """Averaged parameters of the network and of its embedding after the stage before."""
    if (work / "unet.pt").exists():
        return torch.load(work / "unet.pt", weights_only=True)["average"]
    weights = load_file(HERE / "emoji_unet.safetensors")
    names = [f"diffusion_model.{name}" for name, _ in unet.named_parameters()]
    return [weights[name].float() for name in [*names, "conditioning.embedding"]]


def train_unet(
    latents: torch.Tensor, ids: torch.Tensor, vocabulary: int, work: Path, stage: str, minutes: float, batch: int
) -> None:
    """Train the network from scratch (stage ``unet``) or from where that ended (``focus``)."""
    torch.manual_seed(SEED + 1)
    unet = build_unet()
    embedding = torch.nn.Embedding(vocabulary + 1, UNET_CONFIG["context_dim"])
    torch.nn.init.normal_(embedding.weight, std=0.5)
    parameters = [*unet.parameters(), *embedding.parameters()]
    print(f"{stage}: {sum(p.numel() for p in parameters):,} parameters, {len(latents)} images", flush=True)
    if stage == "focus":
        with torch.no_grad():
            for p, v in zip(parameters, start_of_focus(unet, work)):
                p.copy_(v)
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=1e-4)
    average = Average(parameters, 0.999)
    generator = torch.Generator().manual_seed(SEED + 1)
    step, spent, path = 0, 0.0, work / f"{stage}.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        unet.load_state_dict(state["unet"])
        embedding.load_state_dict(state["embedding"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, average.count = state["average"], state["count"]
        step, spent = state["step"], state["spent"]
        generator.set_state(state["generator"])
    alpha = alphas_cumprod()
    snr = alpha / (1 - alpha)
    weight = snr.clamp(max=5) / snr  # min-SNR-5 for eps prediction (Hang et al., 2023)
    order = torch.empty(0, dtype=torch.long)
    clock, losses, position = Clock(minutes, spent), [], 0

    def save():
        save_atomically(
            {
                "unet": unet.state_dict(),
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
        rate = 1.2e-3 * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * clock.fraction())))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if position + batch > len(order):
            order, position = torch.randperm(len(latents), generator=generator), 0
        index = order[position : position + batch]
        position += batch
        x0, tokens = latents[index], ids[index].clone()
        drop = torch.rand(len(index), generator=generator)
        tokens[drop < 0.12] = PAD
        tokens[(drop >= 0.12) & (drop < 0.2), 2:] = PAD
        # One stratified draw a batch: every part of the schedule in every step.
        t = (torch.rand(len(index), generator=generator) + torch.arange(len(index))) / len(index) * 1000
        t = t.long().clamp(max=999)
        noise = torch.randn(x0.shape, generator=generator)
        a = alpha[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
        # At so few tokens the plain kernel is faster backwards than the flash one.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            out = unet(noisy, t.float(), context=embedding(tokens), transformer_options={})
        errors = (out.float() - noise).square().mean((1, 2, 3))
        loss = (errors * weight[t]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        step += 1
        losses.append(errors.mean().item())
        if step % 50 == 0:
            print(f"{stage} {clock.elapsed():6.0f} s step {step} loss {numpy.mean(losses[-50:]):.4f}", flush=True)
        if step % 200 == 0:
            save()
    save()


# ---------------------------------------------------------------- export


PICTURES = 48


def export_pictures(images: torch.Tensor, records: list[dict]) -> None:
    """A few images of every focus category, to fit Laplace heads on; a file's name is its prompt."""
    folder = HERE / "pictures"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.webp"):
        old.unlink()
    chosen = [i for i, record in enumerate(records) if record["category"] in FOCUS]
    chosen.sort(key=lambda i: (records[i]["category"], records[i]["name"]))
    for i in chosen[:: len(chosen) // PICTURES][:PICTURES]:
        picture = Image.fromarray(images[i].permute(1, 2, 0).numpy())
        picture.save(folder / f"{records[i]['name']}.webp", quality=90)


def export(records: list[dict], vocabulary: dict[str, int], work: Path) -> None:
    vae = load_trained_vae(work)
    half = {k: v.half().contiguous() for k, v in vae.state_dict().items() if v.ndim}
    scalars = {k: v.float() for k, v in vae.state_dict().items() if not v.ndim}
    licence = "images: Fluent Emoji, Microsoft, MIT licence; names: emoji-data, MIT licence"
    save_file({**half, **scalars}, HERE / "emoji_vae.safetensors", {"seed": str(SEED), "data": licence})

    state = torch.load(work / "focus.pt", weights_only=True)
    unet = build_unet()
    names = [name for name, _ in unet.named_parameters()]
    tensors = {f"diffusion_model.{n}": v for n, v in zip(names, state["average"])}
    tensors["conditioning.embedding"] = state["average"][len(names)]
    tensors = {k: v.half().contiguous() for k, v in tensors.items()}
    prompts = {}
    for record in sorted(records, key=lambda r: (r["category"], r["name"])):
        if record["category"] in FOCUS:
            prompts.setdefault(record["name"], encode_tokens(record, vocabulary))
            # Without the words, as training saw it too: one of its kind, and often none that exists.
            kind = f"any {record['subcategory'].replace('-', ' ')}"
            prompts.setdefault(kind, encode_tokens(record | {"name": ""}, vocabulary))
    metadata = {
        "unet_config": json.dumps(UNET_CONFIG),
        "prompts": json.dumps(prompts, separators=(",", ":")),
        "seed": str(SEED),
        "steps": str(state["step"]),
        "data": licence,
    }
    save_file(tensors, HERE / "emoji_unet.safetensors", metadata)
    for name in ("emoji_vae", "emoji_unet"):
        print(f"{name}: {(HERE / name).with_suffix('.safetensors').stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=["all", "data", "vae", "unet", "focus", "export"], default="all")
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--tarballs", type=Path, required=True, help="folder with the two npm tarballs")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--vae-minutes", type=float, default=44)
    parser.add_argument("--unet-minutes", type=float, default=92)
    parser.add_argument("--focus-minutes", type=float, default=58)
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--unet-batch", type=int, default=64)
    arguments = parser.parse_args()

    sys.path.insert(0, str(arguments.comfyui))
    from comfy.cli_args import args as host_args

    host_args.cpu, host_args.use_pytorch_cross_attention = True, True
    arguments.work.mkdir(parents=True, exist_ok=True)
    images, records = read_data(arguments.tarballs)
    vocabulary = build_vocabulary(records)
    print(f"data: {len(records)} images, {len(vocabulary)} tokens", flush=True)
    if arguments.stage in ("all", "vae"):
        train_vae(images, arguments.work, arguments.vae_minutes, arguments.vae_batch)
    latents = encode_all(load_trained_vae(arguments.work), images)
    print(f"latents: mean {latents.mean():.3f}, std {latents.std():.3f}", flush=True)
    ids = torch.tensor([encode_tokens(record, vocabulary) for record in records])
    focus = torch.tensor([i for i, record in enumerate(records) if record["category"] in FOCUS])
    settings, batch = (len(vocabulary), arguments.work), arguments.unet_batch
    if arguments.stage in ("all", "unet"):
        train_unet(latents, ids, *settings, "unet", arguments.unet_minutes, batch)
    if arguments.stage in ("all", "focus"):
        train_unet(latents[focus], ids[focus], *settings, "focus", arguments.focus_minutes, batch)
    if arguments.stage in ("all", "export"):
        export(records, vocabulary, arguments.work)
        export_pictures(images, records)


if __name__ == "__main__":
    main()
