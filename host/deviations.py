"""Deviations of posterior draws from a nominal run, by the host's own sampler and guider."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..bayesdiff_core.deviations import State, choose_states, contraction, follow
from ..bayesdiff_core.ensemble import EnsembleVariance
from ..bayesdiff_core.laplace_head import LaplaceHead
from .denoised import latent_gain
from .last_layer import LastLayer


class NominalRun:
    """What the network saw and predicted in a sampling run, recorded as it goes by."""

    def __init__(self):
        self.states: list[State] = []
        self.recording = False
        self.mask: torch.Tensor | None = None

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        """PREDICT_NOISE wrapper: see a prediction, guidance and all, and let it pass."""
        denoised = executor(x, timestep, model_options, seed)
        if self.recording:
            if self.states:
                self.states[-1].contraction = contraction(self.states[-1], x, self.mask)
            self.states.append(State(float(timestep.flatten()[0]), x.clone(), denoised.clone()))
        return denoised


def mask_at(state: State, model_wrap, sigmas: torch.Tensor, denoise_mask, model_options: dict):
    """Where the host denoises at this state, as its own inpainting does it; None for everywhere."""
    function = model_options.get("denoise_mask_function")
    if denoise_mask is None or function is None:
        return denoise_mask
    sigma = torch.full((len(state.x),), state.sigma, device=state.x.device)
    return function(sigma, denoise_mask, extra_options={"model": model_wrap, "sigmas": sigmas})


class Deviations:
    """Follows posterior draws beside one sampling run: wrappers for a clone of the model, and what they find.

    The nominal run goes first and undisturbed; the calls of the members come after it, inside the same sampling
    context, so that prompts, controls, masks and patches are those of the run.

    Args:
        members: how many draws to follow.
        states: at about how many of the run's states.
        called: called after each perturbed call of the network, with how many are done and how many there will be.
    """

    def __init__(self, layer: LastLayer, head: LaplaceHead, members: int, states: int, seed: int, called):
        self.layer, self.head, self.members, self.count, self.called = layer, head, members, states, called
        self.generator = torch.Generator().manual_seed(seed)
        self.run = NominalRun()
        self.variance: torch.Tensor | None = None

    def add_to(self, model: ModelPatcher, key: str) -> None:
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, self.run.predict_noise)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, self.sampler_sample)

    def sampler_sample(self, executor, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
                       denoise_mask=None, disable_pbar=False):  # fmt: skip
        """SAMPLER_SAMPLE wrapper: run the sampler, then follow the members from state to state."""
        options = dict(extra_args)
        self.run.states, self.run.mask, self.run.recording = [], denoise_mask, True
        samples = executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        self.run.recording = False
        states = self.run.states
        if not states:
            self.variance = torch.zeros_like(samples).cpu()
            return samples
        states[-1].contraction = min(float(sigmas[-1]) / states[-1].sigma, 1.0)
        chosen = choose_states([state.sigma for state in states], self.count)
        total, done = self.members * len(chosen), 0
        end = model_wrap.inner_model.model_sampling.inverse_noise_scaling
        found = EnsembleVariance(torch.zeros_like(samples, device="cpu", dtype=torch.float32))
        for _ in range(self.members):
            delta_w = self.head.draw(self.generator)

            def deviate(state, delta, delta_w=delta_w):
                nonlocal done
                mask = mask_at(state, model_wrap, sigmas, denoise_mask, options["model_options"])
                sigma = torch.full((len(state.x),), state.sigma, device=state.x.device)
                with self.layer.perturbed(delta_w):
                    denoised = model_wrap(state.x if delta is None else state.x + delta, sigma, **options)
                done += 1
                self.called(done, total)
                change = denoised - state.denoised
                return change if mask is None else change * mask

            delta = follow(states, chosen, deviate)
            change = (end(sigmas[-1], delta) - end(sigmas[-1], torch.zeros_like(delta))) * latent_gain(
                model_wrap.inner_model, delta
            )
            found.add(change.float().cpu())
        self.variance = found.variance()
        return samples
