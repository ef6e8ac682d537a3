"""The host's WanVAE over whole clips at once, to train it.

The host takes a clip a latent frame at a time and remembers frames between, to save memory. That is many small kernels,
and a GPU waits for them longer than it works. The same sums over all frames at once are few large ones: every
convolution in time looks back two frames, before the clip are zeros, and the first frame is outside the compression of
time. A test holds both ways to the same numbers.

Tensors here are ``(clips, frames, rows, columns, channels)``, contiguous. The channels are filled up with zeros to a
multiple of eight, for which a GPU has fast kernels; a channel of zeros stays one, so nothing else changes.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F


def wide(channels: int) -> int:
    return -(-channels // 8) * 8


def fill(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Zeros for the added channels of a weight ``(out, in, ...)``."""
    out, into = weight.shape[:2]
    return F.pad(weight, [0, 0] * (weight.ndim - 2) + [0, wide(into) - into, 0, wide(out) - out]).to(dtype)


def fill_vector(vector: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return F.pad(vector, [0, wide(len(vector)) - len(vector)]).to(dtype)


class WholeClips:
    """``encode`` and ``decode`` of a WanVAE, whose parameters are read anew at each call.

    Args:
        vae: the host's, not compiled.
        dtype: of the sums.
        fold: whether a convolution in time is one in space over thrice the channels; else it is left to three
            dimensions. Which is faster depends on the machine.
        compiled: whether normalisation and activation are compiled to one kernel.
    """

    def __init__(self, vae, dtype: torch.dtype, fold: bool, compiled: bool = False):
        import comfy.ldm.wan.vae as host

        self.vae, self.dtype, self.fold, self.host = vae, dtype, fold, host
        self.activations = functools.cache(lambda channels: activation(channels, compiled))

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips ``(n, 3, t, h, w)`` to latents ``(n, 16, 1 + (t - 1) / 4, h / 8, w / 8)``."""
        x = clips.movedim(1, -1).to(self.dtype)
        x = F.pad(x, [0, wide(x.shape[-1]) - x.shape[-1]])
        encoder = self.vae.encoder
        x = self.walk([encoder.conv1, *encoder.downsamples, *encoder.middle], x)
        x = self.pointwise(self.vae.conv1, self.head(encoder.head, x))
        return x[..., : self.vae.z_dim].movedim(-1, 1).float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents ``(n, 16, t, h, w)`` to clips ``(n, 3, 1 + 4 (t - 1), 8 h, 8 w)``."""
        decoder = self.vae.decoder
        x = self.pointwise(self.vae.conv2, latents.movedim(1, -1).to(self.dtype))
        x = self.walk([decoder.conv1, *decoder.middle, *decoder.upsamples], x)
        return self.head(decoder.head, x)[..., :3].movedim(-1, 1).float()

    def walk(self, layers, x: torch.Tensor) -> torch.Tensor:
        kinds = {
            self.host.CausalConv3d: self.convolve,
            self.host.ResidualBlock: self.residual,
            self.host.AttentionBlock: self.attend,
            self.host.Resample: self.resample,
        }
        for layer in layers:
            x = kinds[type(layer)](layer, x)
        return x

    def convolve(self, layer, x: torch.Tensor) -> torch.Tensor:
        """Three by three by three, the last of the three frames its own."""
        weight, bias = fill(layer.weight, self.dtype), fill_vector(layer.bias, self.dtype)
        if self.fold:
            return self.flat(torch.cat(backwards(x), -1), weight.transpose(1, 2).flatten(1, 2), bias, padding=1)
        x = F.pad(x, [0] * 6 + [2, 0]).permute(0, 4, 1, 2, 3)
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(x, weight, bias, padding=(0, 1, 1)).permute(0, 2, 3, 4, 1)

    def flat(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, **options) -> torch.Tensor:
        """A convolution of each frame."""
        weight = weight.contiguous(memory_format=torch.channels_last)
        out = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, bias, **options)
        return out.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    def pointwise(self, layer, x: torch.Tensor) -> torch.Tensor:
        weight = fill(layer.weight, self.dtype).flatten(1)
        return F.linear(x, weight, fill_vector(layer.bias, self.dtype))

    def in_time(self, layer, frames: list[torch.Tensor]) -> torch.Tensor:
        """A convolution in time alone, of the three frames that each output sees."""
        weight = fill(layer.weight, self.dtype)[..., 0, 0].transpose(1, 2).flatten(1)
        return F.linear(torch.cat(frames, -1), weight, fill_vector(layer.bias, self.dtype))

    def activate(self, norm, x: torch.Tensor) -> torch.Tensor:
        return self.activations(len(norm.gamma))(x, norm.gamma.flatten())

    def residual(self, block, x: torch.Tensor) -> torch.Tensor:
        first, _, conv, second, _, _, last = block.residual
        out = self.convolve(conv, self.activate(first, x))
        out = self.convolve(last, self.activate(second, out))
        return out + (x if isinstance(block.shortcut, torch.nn.Identity) else self.pointwise(block.shortcut, x))

    def head(self, head, x: torch.Tensor) -> torch.Tensor:
        norm, _, conv = head
        return self.convolve(conv, self.activate(norm, x))

    def attend(self, block, x: torch.Tensor) -> torch.Tensor:
        gamma = block.norm.gamma.flatten()
        out = self.pointwise(block.to_qkv, normalise(x, gamma, len(gamma)))
        q, k, v = (part[:, :, None] for part in out.flatten(2, 3).chunk(3, -1))  # one head
        out = F.scaled_dot_product_attention(q, k, v)[:, :, 0].reshape(x.shape)
        return x + self.pointwise(block.proj, out)

    def resample(self, layer, x: torch.Tensor) -> torch.Tensor:
        conv = layer.resample[1]
        weight, bias = fill(conv.weight, self.dtype), fill_vector(conv.bias, self.dtype)
        if layer.mode.startswith("down"):
            x = self.flat(F.pad(x, [0, 0, 0, 1, 0, 1]), weight, bias, stride=2)
            if layer.mode == "downsample3d":
                x = torch.cat([x[:, :1], self.in_time(layer.time_conv, [x[:, :-2:2], x[:, 1:-1:2], x[:, 2::2]])], 1)
            return x
        if layer.mode == "upsample3d" and x.shape[1] > 1:
            # Each frame but the first becomes two.
            pairs = self.in_time(layer.time_conv, backwards(x[:, 1:])).unflatten(-1, (2, -1)).movedim(-2, 2)
            x = torch.cat([x[:, :1], pairs.flatten(1, 2)], 1)
        n, t, h, w, c = x.shape
        x = x[:, :, :, None, :, None].expand(n, t, h, 2, w, 2, c).reshape(n, t, 2 * h, 2 * w, c)
        return self.flat(x, weight, bias, padding=1)


def backwards(x: torch.Tensor) -> list[torch.Tensor]:
    """Two frames back, one frame back, and now."""
    padded = F.pad(x, [0] * 6 + [2, 0])
    return [padded[:, :-2], padded[:, 1:-1], x]


def normalise(x: torch.Tensor, gamma: torch.Tensor, channels: int) -> torch.Tensor:
    """The host's RMS_norm over ``channels``; the added ones are zeros and count for nothing."""
    scale = F.pad(gamma, [0, x.shape[-1] - channels]) * (channels / x.shape[-1]) ** 0.5
    return F.rms_norm(x, (x.shape[-1],), scale.to(x.dtype), eps=1e-12)


def activation(channels: int, compiled: bool):
    def activate(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return F.silu(normalise(x, gamma, channels))

    return torch.compile(activate, dynamic=True) if compiled else activate
