"""Deviations of posterior draws from a nominal run, by the host's own sampler and guider."""

from __future__ import annotations

from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..bayesdiff_core.deviations import State, choose_states, contraction, follow
from ..bayesdiff_core.ensemble import EnsembleVariance
from ..bayesdiff_core.laplace_head import LaplaceHead
from .denoised import latent_gain
from .last_layer import LastLayer


def mask_at(sigma: torch.Tensor, model_wrap, sigmas: torch.Tensor, denoise_mask, model_options: dict):
    """Where the host denoises at this noise level, as its own inpainting does it; None for everywhere."""
    function = model_options.get("denoise_mask_function")
    if denoise_mask is None or function is None:
        return denoise_mask
    return function(sigma, denoise_mask, extra_options={"model": model_wrap, "sigmas": sigmas})


def noise_over_signal(sampling: torch.nn.Module, sigma: float) -> float:
    """Noise over signal at a noise level: sigma itself, but for rectified flows, whose signal fades as noise grows."""
    one, zero = torch.ones(1), torch.zeros(1)
    level = torch.full((1,), sigma)
    # Read off the model: some divide the noised latent afterwards, which takes no part in the ratio.
    noise, signal = (float(sampling.noise_scaling(level, *parts)) for parts in ((one, zero), (zero, one)))
    return noise / max(signal, 1e-6)


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
        self.recording = False
        self.mask: torch.Tensor | None = None
        self.members = 0
        self.variance: torch.Tensor | None = None

    def add_to(self, model: ModelPatcher, key: str) -> None:
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, self.predict_noise)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, self.sampler_sample)

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        """PREDICT_NOISE wrapper: see a prediction, guidance and all, and let it pass."""
        denoised = executor(x, timestep, model_options, seed)
        if self.recording:
            if self.states:
                self.states[-1].contraction = contraction(self.states[-1], x.cpu(), self.mask)
            self.states.append(State(float(timestep.flatten()[0]), x.cpu().clone(), denoised.cpu().clone()))
        return denoised

    def sampler_sample(self, executor, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
                       denoise_mask=None, disable_pbar=False):  # fmt: skip
        """SAMPLER_SAMPLE wrapper: run the sampler, then follow the members from state to state."""
        # The sampler adds arguments of its own to what it is given.
        options = dict(extra_args)
        self.recording, self.mask = True, None if denoise_mask is None else denoise_mask.cpu()
        samples = executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        self.recording = False
        devices = [samples.device] if samples.is_cuda else []
        # The global generator stays where the stock sampler leaves it.
        with torch.random.fork_rng(devices):
            self.variance = self.follow_members(model_wrap, sigmas, options, denoise_mask, samples)
        return samples

    def follow_members(self, model_wrap, sigmas, options, denoise_mask, samples) -> torch.Tensor:
        found = EnsembleVariance(torch.zeros(samples.shape))
        states = self.states
        if not states:
            return torch.zeros(samples.shape)
        states[-1].contraction = min(float(sigmas[-1]) / states[-1].sigma, 1.0)
        sampling = model_wrap.inner_model.model_sampling
        chosen = choose_states([noise_over_signal(sampling, state.sigma) for state in states], self.count)
        self.members = max(1, round(self.share * len(states) / len(chosen)))
        total, done = self.members * len(chosen), 0
        for _ in range(self.members):
            delta_w = self.head.draw(self.generator)

            def deviate(state: State, delta: torch.Tensor | None, delta_w=delta_w) -> torch.Tensor:
                nonlocal done
                x = state.x if delta is None else state.x + delta
                sigma = torch.full((len(x),), state.sigma, device=samples.device)
                with self.layer.perturbed(delta_w):
                    denoised = model_wrap(x.to(samples), sigma, **options)
                done += 1
                self.called(done, total, len(states))
                change = denoised - state.denoised.to(denoised)
                mask = mask_at(sigma, model_wrap, sigmas, denoise_mask, options["model_options"])
                return (change if mask is None else change * mask).cpu()

            delta = follow(states, chosen, deviate).to(samples)
            end = sampling.inverse_noise_scaling
            change = end(sigmas[-1], delta) - end(sigmas[-1], torch.zeros_like(delta))
            found.add(change * latent_gain(model_wrap.inner_model, change))
        return found.mean_square()
