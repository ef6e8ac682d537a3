"""Deviations of posterior draws from a nominal run, by the host's own sampler and guider."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..bayesdiff_core.deviations import State, choose_states, contraction, follow
from ..bayesdiff_core.ensemble import EnsembleVariance
from ..bayesdiff_core.laplace_head import LaplaceHead
from .last_layer import LastLayer
from .state import latent_gain


def mask_at(sigma: torch.Tensor, model_wrap, sigmas: torch.Tensor, denoise_mask, model_options: dict):
    """Where the host denoises at this noise level, as its own inpainting does it; None for everywhere."""
    function = model_options.get("denoise_mask_function")
    if denoise_mask is None or function is None:
        return denoise_mask
    return function(sigma, denoise_mask, extra_options={"model": model_wrap, "sigmas": sigmas})


def scales(sampling: torch.nn.Module, sigma: float) -> tuple[float, float]:
    """Scales of noise and signal in a latent at a noise level, read off the model's own way of noising."""
    one, zero, level = torch.ones(1), torch.zeros(1), torch.full((1,), sigma)
    noise, signal = (float(sampling.noise_scaling(level, *parts)) for parts in ((one, zero), (zero, one)))
    return noise, signal


def restart_hooks(model_wrap) -> None:
    """Let the hooks that prompts bring along begin their walk through the noise levels again: it only goes forward."""
    hooks = [hook for conds in model_wrap.conds.values() for cond in conds or [] if cond.get("hooks") is not None
             for hook in cond["hooks"].hooks]  # fmt: skip
    if hooks:
        model_wrap.model_patcher.clean_hooks()
    for hook in hooks:
        hook.initialize_timesteps(model_wrap.inner_model)


def generator_devices(device: torch.device) -> list[torch.device]:
    """Devices whose global generator work on ``device`` may use, for :func:`torch.random.fork_rng`."""
    return [device] if device.type == "cuda" else []


class Deviations:
    """Follows posterior draws beside one sampling run: wrappers for a clone of the model, and what they find.

    The nominal run goes first and undisturbed; the calls of the members come after it, inside the same sampling
    context, so that prompts, controls, masks and patches are those of the run.

    Args:
        share: how many calls of the network to spend on members, as a share of those of the run.
        states: at about how many of the run's states to follow each member.
        generator: source of the draws.
        called: called after each perturbed call of the network, with how many of how many are done, and with how many
            calls the run itself had.

    Attributes:
        members: how many members were followed, at least one.
        variance: of the run's samples, ``(n, ...)`` on the CPU, in squared units of the latent that the user sees.
    """

    def __init__(
        self,
        layer: LastLayer,
        head: LaplaceHead,
        share: float,
        states: int,
        generator: torch.Generator,
        called: Callable[[int, int, int], None],
    ):
        self.layer, self.head, self.share, self.count = layer, head, share, states
        self.generator, self.called = generator, called
        self.states: list[State] = []
        # How the model noises, while its run is seen.
        self.recording: torch.nn.Module | None = None
        self.mask: torch.Tensor | None = None
        self.members = 0
        self.variance: torch.Tensor | None = None

    def add_to(self, model: ModelPatcher, key: str) -> None:
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, self.predict_noise)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, self.sampler_sample)

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        """PREDICT_NOISE wrapper: see a prediction, guidance and all, and let it pass."""
        denoised = executor(x, timestep, model_options, seed)
        if self.recording is not None:
            sigma = float(timestep.flatten()[0])
            noise, signal = scales(self.recording, sigma)
            # Copies: the sampler may go on in place. In memory of the CPU, where there is more.
            x, seen = x.to("cpu", copy=True), denoised.to("cpu", copy=True)
            if self.states:
                self.states[-1].contraction = contraction(self.states[-1], x, signal, self.mask)
            self.states.append(State(sigma, noise, signal, x, seen))
        return denoised

    def sampler_sample(self, executor, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
                       denoise_mask=None, disable_pbar=False):  # fmt: skip
        """SAMPLER_SAMPLE wrapper: run the sampler, then follow the members from state to state."""
        # Samplers write to both: their own arguments into these, uni_pc another end into sigmas.
        options, sigma_end = dict(extra_args), float(sigmas[-1])
        self.states, self.mask = [], None if denoise_mask is None else denoise_mask.cpu()
        self.recording = model_wrap.inner_model.model_sampling
        samples = executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        self.recording = None
        # The global generator stays where the stock sampler leaves it.
        with torch.random.fork_rng(generator_devices(samples.device)):
            self.variance = self.follow_members(model_wrap, sigmas, sigma_end, options, denoise_mask, samples)
        return samples

    def follow_members(self, model_wrap, sigmas, sigma_end, options, denoise_mask, samples) -> torch.Tensor:
        found, states = EnsembleVariance(torch.zeros(samples.shape)), self.states
        if not states:
            if len(sigmas) > 1:
                logging.warning(
                    "BayesDiff: this sampler or guider never asked the model for a prediction, so its uncertainty is "
                    "unknown and given as zero; choose the quality 'ensemble' for it."
                )
            return torch.zeros(samples.shape)
        sampling = model_wrap.inner_model.model_sampling
        noise_end, signal_end = scales(sampling, sigma_end)
        states[-1].contraction = noise_end / states[-1].noise if states[-1].noise > 0 else 1.0
        chosen = choose_states(states, self.count)
        self.members = max(1, round(self.share * len(states) / len(chosen)))
        total, done = self.members * len(chosen), 0
        for _ in range(self.members):
            delta_w = self.head.draw(self.generator)
            restart_hooks(model_wrap)

            def deviate(state: State, delta: torch.Tensor | None, delta_w=delta_w) -> torch.Tensor:
                nonlocal done
                sigma = torch.full((len(state.x),), state.sigma, device=samples.device)
                mask = mask_at(sigma, model_wrap, sigmas, denoise_mask, options["model_options"])
                x = state.x.to(samples)
                if delta is not None:
                    delta = delta.to(samples)
                    x = x + (delta if mask is None else delta * mask)
                with self.layer.perturbed(delta_w):
                    denoised = model_wrap(x, sigma, **options)
                done += 1
                self.called(done, total, len(states))
                change = denoised - state.denoised.to(denoised)
                return (change if mask is None else change * mask).cpu()

            delta = follow(states, chosen, signal_end, deviate).to(samples)
            last = torch.full((1,), sigma_end, device=samples.device)
            change = sampling.inverse_noise_scaling(last, delta) - sampling.inverse_noise_scaling(
                last, torch.zeros_like(delta)
            )
            found.add(change * latent_gain(model_wrap.inner_model, change))
        return found.mean_square()
