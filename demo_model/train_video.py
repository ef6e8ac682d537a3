"""Train the video model: small clips of emoji that move, a Wan network with a Wan autoencoder that compresses time.

Data: 48 sprites of Fluent Emoji in ``sprites.png`` (made from the tarballs of ``train.py``). Clips are composed as they
are needed: 13 frames of 80 by 80 pixels in which one emoji slides, rises, falls, turns, bounces, grows, or passes
behind another, on a pale ground. All of this follows from a ``Scenes`` of tensors, so faults can be planted in it.

Stages:

1. ``sprites``: the sheet of sprites, from the two tarballs that ``train.py`` reads. It lies beside this file already.
2. ``vae``: the host's WanVAE at a width of 12, see ``whole_clips.py``. A first frame stands alone, four others each
   share a latent frame, so 13 frames are 4 latent frames of 16 channels and 10 by 10 cells.
3. ``flow``: the host's WanModel at a small size, a rectified flow on the encoded clips. It is told the emoji, its
   motion and the emoji in front by three learned tokens.
4. ``sheet``: pictures of clips, encoded and decoded ones and sampled ones, to judge by eye.

The best weights so far are written to ``--out`` as training goes, so a run that is stopped leaves what it has.

Run with the interpreter of a ComfyUI that ``python dev.py host`` made; on a GPU, ``--device cuda --seconds 360``::

    .venv/bin/python demo_model/train_video.py --comfyui .host/ComfyUI --out demo_model --seconds 7200
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from train import HERE, Clock, read_data, reconstruction_loss
from whole_clips import WholeClips

SEED = 20231019
EMOJI = (
    "tiger face", "rabbit face", "cat face", "dog face", "pig face", "frog face", "panda face", "bear face", "fox face",
    "lion face", "monkey face", "koala", "penguin", "hatching chick", "owl", "unicorn face", "octopus", "crab",
    "tropical fish", "turtle", "lady beetle", "butterfly", "honeybee", "hedgehog", "watermelon", "banana", "pineapple",
    "red apple", "strawberry", "cherries", "hamburger", "slice of pizza", "doughnut", "birthday cake",
    "smiling face with sunglasses", "smiling face with heart shaped eyes", "crying face", "pouting face", "ghost",
    "robot face", "alien monster", "clown face", "soccer ball", "rocket", "mushroom", "sunflower", "jack o lantern",
    "cactus",
)  # fmt: skip
MOTIONS = ("slides right", "slides left", "rises", "falls", "turns", "bounces", "grows", "passes behind")
TURNS, GROWS, BEHIND = (MOTIONS.index(name) for name in ("turns", "grows", "passes behind"))
SPRITE, SPRITE_COLUMNS = 44, 8
SIDE, FRAMES = 80, 13
# The autoencoder sees one window of a clip at a time, of a length after which its memory of frames has settled.
WINDOW, WINDOW_FRAMES = 48, 9
# Tokens: none, the emoji that moves, its motion, the emoji in front.
EMPTY, FIRST_MOTION, FIRST_FRONT = 0, 1 + len(EMOJI), 1 + len(EMOJI) + len(MOTIONS)
TOKENS, TOKEN_WIDTH = 1 + 2 * len(EMOJI) + len(MOTIONS), 64
SHIFT = 3.0  # of the flow's schedule; Wan's own 8 is for far larger latents
VAE_CONFIG = {
    "dim": 12,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
CONFIG = {
    "model_type": "t2v",
    "dim": 160,
    "ffn_dim": 448,
    "num_heads": 5,
    "num_layers": 7,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": TOKEN_WIDTH,
    "freq_dim": 64,
}
LICENCE = "images: Fluent Emoji, Microsoft, MIT licence; names: emoji-data, MIT licence"


# ---------------------------------------------------------------- clips


def make_sprites(tarballs: Path) -> None:
    """The sheet of sprites, RGBA, in the order of ``EMOJI``."""
    images, records = read_data(tarballs, transparent=True)
    by_name = {record["name"]: image for record, image in zip(records, images)}
    rows = -(-len(EMOJI) // SPRITE_COLUMNS)
    sheet = Image.new("RGBA", (SPRITE * SPRITE_COLUMNS, SPRITE * rows))
    for i, name in enumerate(EMOJI):
        picture = Image.fromarray(by_name[name].permute(1, 2, 0).numpy())
        small = picture.resize((SPRITE, SPRITE), Image.Resampling.LANCZOS)
        sheet.paste(small, (SPRITE * (i % SPRITE_COLUMNS), SPRITE * (i // SPRITE_COLUMNS)))
    sheet.save(HERE / "sprites.png", optimize=True)


def read_sprites(device: torch.device) -> torch.Tensor:
    """``(48, 4, 44, 44)`` from 0 to 1, the colours multiplied by the opacity."""
    sheet = torch.from_numpy(numpy.array(Image.open(HERE / "sprites.png"))).float() / 255
    rows = sheet.unfold(0, SPRITE, SPRITE).unfold(1, SPRITE, SPRITE)
    sprites = rows.flatten(0, 1)[: len(EMOJI)]
    return torch.cat([sprites[:, :3] * sprites[:, 3:], sprites[:, 3:]], 1).to(device)


@dataclasses.dataclass
class Scenes:
    """What happens in ``n`` clips of ``t`` frames; positions and sizes in pixels, angles in radians.

    Attributes:
        subject, motion, front: what moves, how, and what it passes behind, ``(n,)``, as numbers of the lists above.
        position, angle, size: of the subject, ``(n, t, 2)`` (x and y of the middle), ``(n, t)``, ``(n, t)``.
        front_position, front_size: of the emoji in front, which stays, ``(n, 2)`` and ``(n,)``.
        ground: colour, ``(n, 3)`` from 0 to 1.
    """

    subject: torch.Tensor
    motion: torch.Tensor
    front: torch.Tensor
    position: torch.Tensor
    angle: torch.Tensor
    size: torch.Tensor
    front_position: torch.Tensor
    front_size: torch.Tensor
    ground: torch.Tensor

    def tokens(self) -> torch.Tensor:
        front = torch.where(self.motion == BEHIND, FIRST_FRONT + self.front, EMPTY)
        return torch.stack([1 + self.subject, FIRST_MOTION + self.motion, front], 1)


def draw_scenes(count: int, device: torch.device, generator: torch.Generator | None = None) -> Scenes:
    """Scenes by chance. Nothing here or in ``render`` waits for the device, so a GPU can record it."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator, device=device)

    def choice(among: int) -> torch.Tensor:
        return torch.randint(among, (count,), generator=generator, device=device)

    subject, motion = choice(len(EMOJI)), choice(len(MOTIONS))
    front = (subject + 1 + choice(len(EMOJI) - 1)) % len(EMOJI)  # never the same
    share = torch.linspace(0, 1, FRAMES, device=device)
    along, across = uniform(14, 24) + uniform(30, 46) * share, uniform(18, SIDE - 18).expand(-1, FRAMES)
    still = uniform(24, SIDE - 24).expand(-1, FRAMES), uniform(24, SIDE - 24).expand(-1, FRAMES)
    hop = 60 - uniform(24, 38) * (torch.pi * (2 * share + uniform(0, 1))).sin().abs()
    way = torch.where(uniform(0, 1) < 0.5, along, SIDE - along)
    path = way, uniform(30, SIDE - 30).expand(-1, FRAMES)
    paths = [
        (along, across), (SIDE - along, across), (across, SIDE - along), (across, along), still, (way, hop), still, path
    ]  # fmt: skip
    every = torch.stack([torch.stack(pair, -1) for pair in paths])  # motion, clip, frame, x and y
    growth = torch.where((motion == GROWS)[:, None], 0.5 + uniform(0.5, 0.7) * share, 1)
    turned = torch.where((motion == TURNS)[:, None], uniform(2.6, 5.6) * share, 0)
    beside = torch.cat([uniform(34, SIDE - 34), path[1][:, :1] + uniform(-5, 5)], 1)
    return Scenes(
        subject, motion, front, every[motion, torch.arange(count, device=device)], turned, uniform(34, 42) * growth,
        beside, uniform(34, 42)[:, 0], 1 - 0.3 * torch.rand(count, 3, generator=generator, device=device),
    )  # fmt: skip


def paint(sprites: torch.Tensor, position, angle, size, side: int) -> torch.Tensor:
    """Each sprite ``(m, 4, s, s)`` on a transparent square: ``(m, 4, side, side)``."""
    centres = torch.arange(side, device=sprites.device) + 0.5
    y, x = (centres[None, :, None] - position[:, 1, None, None], centres[None, None, :] - position[:, 0, None, None])
    cosine, sine = (value[:, None, None] for value in (angle.cos(), angle.sin()))
    grid = torch.stack([cosine * x + sine * y, cosine * y - sine * x], -1) * 2 / size[:, None, None, None]
    return F.grid_sample(sprites, grid, align_corners=False)


def render(sprites: torch.Tensor, scenes: Scenes, corner: torch.Tensor | None = None, side: int = SIDE) -> torch.Tensor:
    """Clips ``(n, 3, t, side, side)`` from -1 to 1: all of the picture, or the window with this corner ``(n, 2)``."""
    count, frames = scenes.angle.shape
    corner = torch.zeros_like(scenes.front_position) if corner is None else corner
    place = (scenes.position - corner[:, None]).flatten(0, 1)
    repeated = sprites[scenes.subject][:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    layer = paint(repeated, place, scenes.angle.flatten(), scenes.size.flatten(), side)
    layer = layer.unflatten(0, (count, frames))
    clips = layer[:, :, :3] + (1 - layer[:, :, 3:]) * scenes.ground[:, None, :, None, None]
    still = torch.zeros_like(scenes.front_size)
    layer = paint(sprites[scenes.front], scenes.front_position - corner, still, scenes.front_size, side)[:, None]
    layer = layer * (scenes.motion == BEHIND).view(-1, 1, 1, 1, 1)
    clips = layer[:, :, :3] + (1 - layer[:, :, 3:]) * clips
    return 2 * clips.movedim(1, 2) - 1


def windows(sprites: torch.Tensor, count: int) -> torch.Tensor:
    """``(count, 3, 9, 48, 48)``: the first frames of clips, mostly around what moves."""
    device = sprites.device
    scenes = draw_scenes(count, device)
    for name in ("position", "angle", "size"):
        setattr(scenes, name, getattr(scenes, name)[:, :WINDOW_FRAMES])
    moment = torch.randint(WINDOW_FRAMES, (count,), device=device)
    middle = scenes.position[torch.arange(count, device=device), moment]
    corner = (middle + torch.rand(count, 2, device=device) * 32 - 16 - WINDOW / 2).round().clamp(0, SIDE - WINDOW)
    return render(sprites, scenes, corner, WINDOW)


def known_scenes(count: int, device: torch.device, seed: int) -> Scenes:
    """The same scenes each time."""
    return draw_scenes(count, device, torch.Generator(device).manual_seed(seed))


# ---------------------------------------------------------------- training


def reset_layers(module: torch.nn.Module) -> None:
    """The host's layers skip their initialisation; give them torch's own, and even linear ones in a transformer."""
    for name, parameter in module.named_parameters():
        if name.endswith("gamma") or (parameter.ndim == 1 and "norm" in name and name.endswith("weight")):
            torch.nn.init.ones_(parameter)
        elif parameter.ndim == 1:
            torch.nn.init.zeros_(parameter)
        elif name.endswith("modulation"):
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
        else:
            torch.nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


def build_vae():
    """The host's WanVAE, which begins as one that halves and doubles pictures and does little else.

    From its usual beginning it draws nothing but grey for hundreds of steps: every norm takes off how bright a picture
    is, and each of the layers between picture and latent lets through a little less.
    """
    import comfy.ldm.wan.vae as host

    vae = host.WanVAE(**VAE_CONFIG)
    reset_layers(vae)
    with torch.no_grad():
        for layer in vae.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Conv3d)):
                layer.weight.mul_(3**0.5)  # outputs as large as inputs
        for block in vae.modules():
            if isinstance(block, host.ResidualBlock):
                block.residual[6].weight.mul_(0.3)
                if isinstance(block.shortcut, torch.nn.Conv3d):
                    torch.nn.init.orthogonal_(block.shortcut.weight)
            elif isinstance(block, host.AttentionBlock):
                block.proj.weight.zero_()
            elif isinstance(block, host.Resample):
                pass_through(block)
        # Around the clips' mean, and with a part that is the same for all, against which a norm leaves brightness.
        first = vae.encoder.conv1
        first.weight.mul_(3**0.5)
        first.bias.copy_(0.5 * torch.randn(len(first.bias)) - 0.7 * first.weight.sum((1, 2, 3, 4)))
    return vae


def pass_through(block) -> None:
    """Let a layer that halves average four cells, and one that doubles repeat them; the same in time."""
    weight = block.resample[1].weight.mul_(0.2)
    out, into = weight.shape[:2]
    if block.mode.startswith("down"):
        weight[:, :, :2, :2] += 0.25 * torch.eye(out)[..., None, None]
    else:
        weight[:, :, 1, 1] += torch.nn.init.orthogonal_(torch.empty(out, into))
    if block.mode == "downsample3d":
        block.time_conv.weight.mul_(0.2).add_(torch.eye(into)[..., None, None, None] / 3)
    elif block.mode == "upsample3d":
        weight = block.time_conv.weight.mul_(0.2)
        weight[:, :, 2, 0, 0] += torch.eye(into).repeat(2, 1)


def build_network():
    import comfy.ldm.wan.model
    import comfy.ops

    network = comfy.ldm.wan.model.WanModel(
        **CONFIG, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init
    )
    reset_layers(network)
    torch.nn.init.zeros_(network.head.head.weight)
    return network


def latent_format():
    import comfy.latent_formats

    return comfy.latent_formats.Wan21()


class Trainer:
    """AdamW and Muon over modules, by the clock: the rate falls as the time runs out, and the best average is exported.

    All parameters are views of one tensor, so a step's own sums are few kernels, and a GPU can record the whole step
    and repeat it without being told of each kernel again.

    Args:
        matrices: the parameters that Muon changes (Jordan et al. 2024): each by an orthogonal matrix of its shape.
    """

    BETAS, DECAY, AVERAGE, TURN = (0.95, 0.98), 1e-3, 0.999, 13.0

    def __init__(
        self,
        name: str,
        modules: list[torch.nn.Module],
        matrices: list[torch.nn.Parameter],
        arguments: argparse.Namespace,
        seconds: float,
    ):
        self.name, self.record = name, arguments.device == "cuda" and not arguments.plain
        parameters = [p for module in modules for p in module.parameters()]
        self.values = torch.cat([p.detach().flatten() for p in parameters])
        self.gradient, self.first, self.second, self.change = (torch.zeros_like(self.values) for _ in range(4))
        self.average, self.count = self.values.clone(), 0
        sizes = [p.numel() for p in parameters]
        for p, value, gradient in zip(parameters, self.values.split(sizes), self.gradient.split(sizes)):
            p.data, p.grad = value.view_as(p), gradient.view_as(p)
        # The changes of all matrices of a shape, by shape.
        self.matrices: dict[tuple[int, int], list[torch.Tensor]] = {}
        wanted = {id(p) for p in matrices}
        for p, change in zip(parameters, self.change.split(sizes)):
            if id(p) in wanted:
                matrix = change.view(len(p), -1)
                self.matrices.setdefault(tuple(matrix.shape), []).append(matrix)
        # What changes from step to step, where a recorded step reads it: the rate, and what the average takes in.
        self.rate, self.share, self.total = self.values.new_zeros(3).unbind()
        self.clock, self.best = Clock(seconds / 60), math.inf
        print(f"{name}: {len(self.values):,} parameters, {seconds:.0f} s", flush=True)

    def step(self, loss_of: Callable[[], torch.Tensor]) -> None:
        self.gradient.zero_()
        loss = loss_of()
        loss.backward()
        with torch.no_grad():
            gradient = self.gradient.nan_to_num_(0.0, 0.0, 0.0)
            gradient /= gradient.norm().clamp(min=1.0)
            self.first.lerp_(gradient, 1 - self.BETAS[0])
            self.second.lerp_(gradient.square(), 1 - self.BETAS[1])
            if self.matrices:
                self.change.copy_(gradient.lerp(self.first, self.BETAS[0]))
                turned = {shape: orthogonal(torch.stack(same)) for shape, same in self.matrices.items()}
            self.change.copy_(self.first / (self.second.sqrt() + 1e-8))
            for (rows, columns), same in self.matrices.items():
                scale = self.TURN * max(1.0, rows / columns) ** 0.5
                for matrix, value in zip(same, turned[rows, columns]):
                    matrix.copy_(scale * value)
            self.values.sub_(self.rate * (self.change + self.DECAY * self.values))
            self.average.lerp_(self.values, self.share)
            self.total += loss.detach()

    def repeatable(self, loss_of: Callable[[], torch.Tensor]) -> Callable[[], None]:
        """A step that can be repeated; on a GPU, recorded. What is done to prepare it changes no parameter."""
        self.rate.zero_(), self.share.zero_()
        if not self.record:
            self.step(loss_of)
            return lambda: self.step(loss_of)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(loss_of)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(loss_of)
        return graph.replay

    def fastest(self, candidates: dict[str, Callable[[], torch.Tensor]]) -> str:
        """The name of the loss whose steps take the least time; one that this machine cannot take is left out."""
        seconds = {}
        for name, loss_of in candidates.items():
            start = time.monotonic()
            try:
                step = self.repeatable(loss_of)
                self.wait()
                prepared = time.monotonic()
                for _ in range(3):
                    step()
                self.wait()
            except Exception as error:
                print(f"{self.name}: {name}: {type(error).__name__}: {error}", flush=True)
                continue
            seconds[name] = (time.monotonic() - prepared) / 3
            print(f"{self.name}: {name}: {seconds[name]:.4f} s a step, {prepared - start:.0f} s to prepare", flush=True)
        self.first.zero_(), self.second.zero_()
        name = min(seconds, key=seconds.get)
        print(f"{self.name}: {name}", flush=True)
        return name

    def wait(self) -> None:
        if self.values.is_cuda:
            torch.cuda.synchronize()

    def run(self, loss_of, until: float, rate: float, score_of, export, between=None) -> None:
        """Minimise ``loss_of()`` until this share of the time.

        Args:
            rate: the highest, which falls to a hundredth at the end of all of the time.
            score_of: what is to be least, of the averaged parameters.
            export: writes the module's parameters; called while they are the averaged ones.
            between: called before each step, for what cannot be recorded.
        """
        step = self.repeatable(loss_of)
        self.total.zero_()
        told, scored, since = time.monotonic(), time.monotonic(), self.count
        while (share := self.clock.fraction()) < until:
            self.count += 1
            decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))
            self.rate.fill_(rate * min(1.0, self.count / 100) * decay)
            self.share.fill_(1 - min(self.AVERAGE, (1 + self.count) / (10 + self.count)))
            if between:
                between()
            step()
            if self.count % 8 == 0:
                self.wait()  # the clock has to see the GPU's work
            if (now := time.monotonic()) - told > 5:
                mean = self.total.item() / (self.count - since)
                print(f"{self.name} {self.clock.elapsed():6.0f} s step {self.count} loss {mean:.4f}", flush=True)
                self.total.zero_()
                told, since = now, self.count
            if now - scored > max(15, 0.05 * self.clock.total):
                self.keep(score_of, export)
                scored = time.monotonic()
        self.keep(score_of, export)

    @torch.no_grad()
    def keep(self, score_of, export) -> None:
        """Export the averaged parameters if they are the best so far."""
        here = self.values.clone()
        self.values.copy_(self.average)
        score = float(score_of())
        if score < self.best:
            self.best = score
            export()
        self.values.copy_(here)
        print(f"{self.name} {self.clock.elapsed():6.0f} s step {self.count} score {score:.5f}", flush=True)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Near the orthogonal factors of matrices ``(k, n, m)``, by five steps of Newton and Schulz."""
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def half_precision(device: torch.device):
    # No cache of cast weights: a recorded step would keep that of another.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def attention_kernel(device: torch.device):
    """At so few tokens the plain kernel is faster backwards than the flash one on a CPU."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def train_vae(sprites: torch.Tensor, arguments: argparse.Namespace, seconds: float) -> None:
    torch.manual_seed(SEED)
    device, batch = sprites.device, arguments.vae_batch
    vae = build_vae()
    if arguments.go_on:
        vae.load_state_dict({k: v.float() for k, v in load_file(arguments.out / "video_vae.safetensors").items()})
        fold(vae, inverse=True)
    vae = vae.to(device)
    matrices = [p for p in vae.parameters() if p.ndim > 3 and len(p) > 3]
    trainer = Trainer("vae", [vae], matrices, arguments, seconds)

    def loss_with(whole: WholeClips, draw) -> Callable[[], torch.Tensor]:
        def loss_of() -> torch.Tensor:
            clips = draw()
            latent = whole.encode(clips)
            # Near unit variance, and a decoder that forgives small errors of a latent.
            moments = latent.mean((0, 2, 3, 4)).square().mean() + (latent.var((0, 2, 3, 4)) - 1).square().mean()
            out = whole.decode(latent + 0.08 * torch.randn_like(latent))
            out, target = out / 2, clips / 2
            motion = F.l1_loss(out.diff(dim=2), target.diff(dim=2))
            frames = [value.movedim(2, 1).flatten(0, 1) for value in (out, target)]
            return reconstruction_loss(*frames) + 0.5 * motion + 0.02 * moments

        return loss_of

    known = render(sprites, known_scenes(arguments.encode_batch, device, SEED))

    def choose(**ways: WholeClips) -> WholeClips:
        seconds = {name: loss_with(whole, lambda: windows(sprites, batch)) for name, whole in ways.items()}
        return ways[trainer.fastest(seconds)]

    dtypes = [torch.bfloat16] if sprites.is_cuda else [torch.bfloat16, torch.float32]
    whole = choose(
        **{
            f"{dtype}, {'folded' if folded else 'in three dimensions'}": WholeClips(vae, dtype, folded)
            for dtype, folded in itertools.product(dtypes, (True, False))
        }
    )
    if trainer.record:
        whole = choose(plain=whole, compiled=WholeClips(vae, whole.dtype, whole.fold, True))
    loss_of = loss_with(whole, lambda: windows(sprites, batch))

    def export() -> None:
        trained = build_vae().to(device)
        trained.load_state_dict(vae.state_dict())
        latent = whole.encode(known)
        fold(trained, (latent.mean((0, 2, 3, 4)), latent.std((0, 2, 3, 4))))
        write(arguments.out / "video_vae.safetensors", trained.state_dict(), {"config": VAE_CONFIG}, trainer.count)

    options = {
        "rate": 8e-4 if arguments.go_on else 1.5e-3,
        "score_of": lambda: (whole.decode(whole.encode(known)).clamp(-1, 1) - known).square().mean(),
        "export": export,
    }
    trainer.run(loss_of, 0.8, **options)
    # Last, all of the picture and of the time.
    all_of_it = loss_with(whole, lambda: render(sprites, draw_scenes(max(1, batch // 4), device)))
    trainer.run(all_of_it, 1.0, **options)


@torch.no_grad()
def fold(vae, statistics=None, inverse: bool = False) -> None:
    """Give the latents the mean and deviation that Wan's latent format takes off again, or take them off.

    Both ends of the autoencoder have a convolution of one cell that takes this in exactly.
    """
    form = latent_format()
    device = vae.conv1.weight.device
    mean, std = (value.flatten().to(device) for value in (form.latents_mean, form.latents_std))
    if inverse:
        scale, shift = 1 / std, -mean / std
    else:
        scale = std / statistics[1]
        shift = mean - statistics[0] * scale
    count = len(scale)
    vae.conv1.weight[:count] *= scale.view(-1, 1, 1, 1, 1)
    vae.conv1.bias[:count] = vae.conv1.bias[:count] * scale + shift
    vae.conv2.bias -= vae.conv2.weight[:, :, 0, 0, 0] @ (shift / scale)
    vae.conv2.weight /= scale.view(1, -1, 1, 1, 1)


def write(path: Path, tensors: dict[str, torch.Tensor], configuration: dict, steps: int) -> None:
    metadata = {key: json.dumps(value) for key, value in configuration.items()}
    metadata |= {"seed": str(SEED), "steps": str(steps), "data": LICENCE}
    tensors = {name: value.half().cpu().contiguous() for name, value in tensors.items()}
    save_file(tensors, path.with_suffix(".tmp"), metadata)
    path.with_suffix(".tmp").replace(path)


def load_vae(folder: Path, device: torch.device):
    vae = build_vae()
    vae.load_state_dict({k: v.float() for k, v in load_file(folder / "video_vae.safetensors").items()})
    return vae.to(device).eval().requires_grad_(False)


class Bank:
    """Encoded clips, some of them renewed as training goes on."""

    def __init__(self, vae, sprites: torch.Tensor, arguments: argparse.Namespace, seconds: float):
        self.sprites, self.batch, self.form, self.next = sprites, arguments.encode_batch, latent_format(), 0
        self.whole = WholeClips(vae, torch.bfloat16 if sprites.is_cuda else torch.float32, True)
        start, chunks = time.monotonic(), []
        while len(chunks) * self.batch < arguments.clips and time.monotonic() - start < seconds:
            chunks.append(self.encode())
            chunks[-1][1].tolist()  # the clock has to see the GPU's work
        self.latents, self.tokens = (torch.cat(parts) for parts in zip(*chunks))
        print(f"{len(self.latents)} clips encoded in {time.monotonic() - start:.0f} s", flush=True)

    @torch.no_grad()
    def encode(self) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = draw_scenes(self.batch, self.sprites.device)
        latent = self.form.process_in(self.whole.encode(render(self.sprites, scenes)))
        return latent, scenes.tokens()

    def renew(self) -> None:
        place = slice(self.next, self.next + self.batch)
        self.latents[place], self.tokens[place] = self.encode()
        self.next = (self.next + self.batch) % len(self.latents)


def train_flow(sprites: torch.Tensor, arguments: argparse.Namespace, seconds: float) -> None:
    import comfy.ldm.wan.model

    # The host makes this on the CPU and copies it, which a recorded step cannot.
    comfy.ldm.wan.model.sinusoidal_embedding_1d = sinusoidal_embedding
    torch.manual_seed(SEED + 1)
    start = time.monotonic()
    device, batch = sprites.device, arguments.flow_batch
    network, embedding = build_network(), torch.nn.Embedding(TOKENS, TOKEN_WIDTH)
    if arguments.go_on:
        weights = {k: v.float() for k, v in load_file(arguments.out / "video_flow.safetensors").items()}
        embedding.load_state_dict({"weight": weights.pop("conditioning.embedding")})
        network.load_state_dict({k.removeprefix("diffusion_model."): v for k, v in weights.items()})
    network, embedding = network.to(device), embedding.to(device)
    bank = Bank(load_vae(arguments.out, device), sprites, arguments, 0.1 * seconds)
    trainer = Trainer("flow", [network, embedding], [], arguments, seconds - (time.monotonic() - start))
    freqs = network.rope_encode(*bank.latents.shape[2:], device=device, dtype=torch.float32)

    def loss_at(x0, tokens, t, noise, options) -> torch.Tensor:
        noisy = torch.lerp(x0, noise, t.view(-1, 1, 1, 1, 1))
        with attention_kernel(device), half_precision(device):
            context = embedding(tokens)
            out = network.forward_orig(noisy, t * 1000, context, freqs=freqs, transformer_options=options)
        return (out.float() - (noise - x0)).square().mean()

    def spread(share: torch.Tensor) -> torch.Tensor:
        """Over the schedule as the host's sampling spreads it."""
        return SHIFT * share / (1 + (SHIFT - 1) * share)

    def loss_with(options: dict) -> Callable[[], torch.Tensor]:
        def loss_of() -> torch.Tensor:
            index = torch.randint(len(bank.latents), (batch,), device=device)
            x0, tokens = bank.latents[index], bank.tokens[index]
            unsaid = (torch.rand(batch, 1, device=device) < 0.1) | (torch.rand(batch, 3, device=device) < 0.1)
            # One stratified draw a batch.
            share = (torch.rand(batch, device=device) + torch.arange(batch, device=device)) / batch
            return loss_at(x0, tokens.masked_fill(unsaid, EMPTY), spread(share), torch.randn_like(x0), options)

        return loss_of

    ways = {"plain": loss_with({})}
    if trainer.record:
        ways["compiled"] = loss_with(compiled_blocks(network))
    loss_of = ways[trainer.fastest(ways)]

    held, held_tokens = bank.encode()
    generator = torch.Generator(device).manual_seed(SEED)
    held_noise = torch.randn(held.shape, generator=generator, device=device)
    held_t = spread((torch.arange(len(held), device=device) + 0.5) / len(held))

    def export() -> None:
        tensors = {f"diffusion_model.{name}": value for name, value in network.state_dict().items()}
        tensors["conditioning.embedding"] = embedding.weight.detach()
        words = {"emoji": EMOJI, "motions": MOTIONS, "config": CONFIG, "shift": SHIFT}
        write(arguments.out / "video_flow.safetensors", tensors, words, trainer.count)

    trainer.run(
        loss_of,
        1.0,
        rate=7e-4 if arguments.go_on else 1.5e-3,
        score_of=lambda: loss_at(held, held_tokens, held_t, held_noise, {}),
        export=export,
        between=lambda: bank.renew() if trainer.count % arguments.renew == 0 else None,
    )


def sinusoidal_embedding(dim: int, position: torch.Tensor) -> torch.Tensor:
    """As the host's, made where ``position`` is."""
    place = torch.arange(dim // 2, device=position.device, dtype=torch.float32)
    angle = torch.outer(position.float(), torch.pow(10000, -place / (dim // 2)))
    return torch.cat([angle.cos(), angle.sin()], 1)


def compiled_blocks(network) -> dict:
    """Options of the host's that run each block of the network compiled."""

    def patch(block):
        run = torch.compile(block)
        return lambda given, _: {"img": run(given["img"], e=given["vec"], freqs=given["pe"], context=given["txt"])}

    return {"patches_replace": {"dit": {("double_block", i): patch(block) for i, block in enumerate(network.blocks)}}}


# ---------------------------------------------------------------- pictures


@torch.no_grad()
def sample(network, embedding, tokens: torch.Tensor, steps: int = 25, cfg: float = 3.0) -> torch.Tensor:
    """Latents in model space, by Euler's method over the schedule that the host's ``simple`` scheduler gives."""
    device = tokens.device
    generator = torch.Generator(device).manual_seed(SEED)
    share = torch.linspace(1, 0, steps + 1, device=device)
    sigmas = SHIFT * share / (1 + (SHIFT - 1) * share)
    cells = (16, 1 + (FRAMES - 1) // 4, SIDE // 8, SIDE // 8)
    x = torch.randn((len(tokens), *cells), generator=generator, device=device)
    context = torch.cat([embedding(tokens), embedding(torch.zeros_like(tokens))])
    for sigma, following in zip(sigmas, sigmas[1:]):
        with half_precision(device):
            out = network(torch.cat([x, x]), sigma.expand(2 * len(x)) * 1000, context=context).float()
        positive, negative = out.chunk(2)
        x = x + (following - sigma) * (negative + cfg * (positive - negative))
    return x


def strips(clips: torch.Tensor, names: list[str], path: Path) -> None:
    """A sheet with one clip ``(3, t, h, w)`` a row, its words above."""
    n, _, t, h, w = clips.shape
    sheet = Image.new("RGB", (t * (w + 2), n * (h + 14)), "white")
    pixels = ((clips.clamp(-1, 1) + 1) * 127.5).byte().cpu().permute(0, 2, 3, 4, 1).numpy()
    for row, name in enumerate(names):
        ImageDraw.Draw(sheet).text((2, row * (h + 14)), name, "black")
        for column in range(t):
            sheet.paste(Image.fromarray(pixels[row, column]), (column * (w + 2), row * (h + 14) + 13))
    sheet.save(path)


def words_of(tokens: torch.Tensor) -> list[str]:
    texts = ["", *EMOJI, *MOTIONS, *EMOJI]
    return [" ".join(texts[token] for token in row).strip() for row in tokens.tolist()]


@torch.no_grad()
def draw_sheets(sprites: torch.Tensor, arguments: argparse.Namespace) -> None:
    """``reconstructions.png``: clips, each followed by what the autoencoder makes of it; ``samples.png``, by motion."""
    device = sprites.device
    vae = load_vae(arguments.out, device)
    clips = render(sprites, known_scenes(12, device, SEED + 2))
    with half_precision(device):
        decoded = vae.decode(vae.encode(clips)).float()
    pairs = torch.stack([clips, decoded], 1).flatten(0, 1)
    error = (decoded.clamp(-1, 1) - clips).square().mean() / 4
    print(f"reconstruction: PSNR {-10 * error.log10():.1f} dB", flush=True)
    strips(pairs, ["clip", "decoded"] * 12, arguments.out / "reconstructions.png")

    path = arguments.out / "video_flow.safetensors"
    if not path.exists():
        return
    weights = {k: v.float() for k, v in load_file(path).items()}
    table = torch.nn.Embedding.from_pretrained(weights.pop("conditioning.embedding")).to(device)
    network = build_network()
    network.load_state_dict({k.removeprefix("diffusion_model."): v for k, v in weights.items()})
    network = network.to(device).eval()
    rows = arguments.sheet_rows
    scenes = known_scenes(rows, device, SEED + 3)
    scenes.motion = torch.arange(rows, device=device) * len(MOTIONS) // rows
    tokens = scenes.tokens()
    latents = latent_format().process_out(sample(network, table, tokens))
    with half_precision(device):
        strips(vae.decode(latents).float(), words_of(tokens), arguments.out / "samples.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = ["all", "sprites", "vae", "flow", "sheet"]
    parser.add_argument("stage", nargs="?", choices=stages, default="all", help="'all' leaves the sprites as they are")
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--tarballs", type=Path, help="folder with the two npm tarballs, to make the sprites")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the pictures")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=7200, help="of everything, pictures too")
    parser.add_argument("--vae-share", type=float, default=0.48, help="of the time")
    parser.add_argument("--go-on", action="store_true", help="start from the weights in --out")
    parser.add_argument("--plain", action="store_true", help="no recorded steps, nothing compiled")
    parser.add_argument("--vae-batch", type=int)
    parser.add_argument("--flow-batch", type=int)
    parser.add_argument("--encode-batch", type=int)
    parser.add_argument("--clips", type=int, help="how many encoded clips are kept")
    parser.add_argument("--renew", type=int, help="after how many steps a batch of them is made anew")
    parser.add_argument("--sheet-rows", type=int, default=24)
    arguments = parser.parse_args()
    start = time.monotonic()
    sizes = {"cpu": (4, 24, 8, 2000, 10), "cuda": (64, 512, 128, 32768, 20)}[arguments.device]
    for name, size in zip(("vae_batch", "flow_batch", "encode_batch", "clips", "renew"), sizes):
        setattr(arguments, name, getattr(arguments, name) or size)

    if arguments.stage == "sprites":
        return make_sprites(arguments.tarballs)
    sys.path.insert(0, str(arguments.comfyui))
    from comfy.cli_args import args as host_args

    # The host's own management stays on the CPU; this script places its tensors itself.
    host_args.cpu, host_args.use_pytorch_cross_attention = True, True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 4
    arguments.out.mkdir(parents=True, exist_ok=True)
    sprites = read_sprites(torch.device(arguments.device))
    # The pictures take the last of the time.
    left = 0.96 * arguments.seconds - (time.monotonic() - start)
    if arguments.stage in ("all", "vae"):
        train_vae(sprites, arguments, left if arguments.stage == "vae" else left * arguments.vae_share)
    left = 0.96 * arguments.seconds - (time.monotonic() - start)
    if arguments.stage in ("all", "flow"):
        train_flow(sprites, arguments, left)
    draw_sheets(sprites, arguments)


if __name__ == "__main__":
    main()
