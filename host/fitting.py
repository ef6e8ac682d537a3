"""Features for fitting a Laplace head, taken at noised latents through the host's own sampling path."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.fit import FeatureRows, ResidualNoise, fit_laplace_head
from ..bayesdiff_core.laplace_head import LaplaceHead
from .last_layer import LastLayer, describe_model, find_last_layer

# Pictures in one call of the network: small, so that a model that just fits its card can still be fitted.
CALL_BATCH = 4


class NoisedLatents(comfy.samplers.Sampler):
    """Takes a sampler's place in the host, and instead of denoising calls the model on latents noised anew.

    A call at cfg 1 with a latent x0, a noise level sigma and noise eps shows the features that training saw, and
    its residual, known because x0 is, is the noise of the likelihood.
    """

    def __init__(
        self, layer: LastLayer, rows: FeatureRows, noise: ResidualNoise, levels: int, generator: torch.Generator,
        progress: comfy.utils.ProgressBar,
    ):  # fmt: skip
        self.layer, self.rows, self.noise = layer, rows, noise
        self.levels, self.generator, self.progress = levels, generator, progress

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        x0, sampling = latent_image, model_wrap.inner_model.model_sampling
        # Stratified over the schedule, which is uniform over training's time steps.
        shares = (torch.arange(self.levels) + torch.rand(self.levels, generator=self.generator)) / self.levels
        for share in shares.clamp(1e-3, 1 - 1e-3).tolist():
            sigma = torch.full((len(x0),), sampling.percent_to_sigma(share), device=x0.device)
            eps = torch.randn(x0.shape, generator=self.generator).to(x0.device)
            x = sampling.noise_scaling(sigma, eps, x0)
            with self.layer.watched(lambda features, sigma=sigma: self.rows.add(features, float(sigma[0]))):
                denoised = model_wrap(x, sigma, **extra_args)
            self.noise.add((denoised - x0) / output_gain(sampling, sigma, x0), float(sigma[0]))
            self.progress.update(1)
        return x0


def output_gain(sampling: torch.nn.Module, sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """∂D/∂F, the slope of ``denoised`` in the network's output; it is affine in it for every prediction type."""
    zero = torch.zeros_like(like)
    return sampling.calculate_denoised(sigma, zero + 1, zero) - sampling.calculate_denoised(sigma, zero, zero)


def own_samples(model: ModelPatcher, positive, negative, latent: dict, count: int, steps: int, cfg: float, seed: int):
    """``count`` samples ``(count, ...)`` of the model's own, of the size of ``latent``."""
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros_like(latent["samples"][:1]))
    shape, generator = (count, *empty.shape[1:]), torch.Generator().manual_seed(seed)
    noises = torch.randn(shape, generator=generator).split(CALL_BATCH)
    bar = comfy.utils.ProgressBar(len(noises) * steps)
    return torch.cat(
        [
            comfy.sample.sample(
                model, noise, steps, cfg, "euler", "simple", positive, negative, torch.zeros_like(noise), seed=seed,
                callback=lambda *_: bar.update(1), disable_pbar=True,
            )
            for noise in noises
        ]
    )  # fmt: skip


def fit_head(
    model: ModelPatcher, positive, negative, data: torch.Tensor, levels: int, max_rows: int, seed: int, source: str
) -> LaplaceHead:
    """Fit a Laplace head of ``model`` on latents.

    Conditional and unconditional features count alike, because guidance reads both.

    Args:
        data: ``(n, ...)`` latents as the user sees them.
        levels: noise levels at which each latent is seen, under each conditioning.
        max_rows: feature rows kept in memory.
        source: where ``data`` came from, for the head's metadata.
    """
    layer = find_last_layer(model)
    generator = torch.Generator().manual_seed(seed)
    batches = data.split(CALL_BATCH)
    calls = 2 * levels * len(batches)
    rows = FeatureRows(layer.geometry, max(1, max_rows // calls), generator)
    sampling = model.get_model_object("model_sampling")
    noise = ResidualNoise(float(sampling.sigma_min), float(sampling.sigma_max))
    sampler = NoisedLatents(layer, rows, noise, levels, generator, comfy.utils.ProgressBar(calls))
    for conditioning in (positive, negative):
        for batch in batches:
            comfy.sample.sample_custom(
                model,
                torch.zeros_like(batch),
                1.0,
                sampler,
                torch.ones(2),
                conditioning,
                conditioning,
                batch,
                seed=seed,
            )
    about = describe_model(model, layer) | {
        "data": source,
        "images": str(len(data)),
        "levels": str(levels),
        "seed": str(seed),
        "noise_std_by_sigma_bin": " ".join(f"{value:.4g}" for value in noise.std().tolist()),
    }
    features = torch.cat(rows.rows)
    return fit_laplace_head(
        layer.geometry, layer.geometry.matrix(layer.module), features, noise.of(torch.cat(rows.sigmas)),
        rows.seen // (2 * levels), about,
    )  # fmt: skip
