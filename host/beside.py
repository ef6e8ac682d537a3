"""Beside a sampling run of the host: what an estimator of the core sees of it, and how it calls the network."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..bayesdiff_core.estimators import Estimate, Estimator
from ..bayesdiff_core.laplace_head import LaplaceHead
from ..bayesdiff_core.nominal import State, contraction, level, nearest
from .last_layer import LastLayer
from .look import Look
from .state import latent_gain, output_gain
from .tail import read_positions


def mask_at(sigma: torch.Tensor, model_wrap, sigmas: torch.Tensor, denoise_mask, model_options: dict):
    """Where the host denoises at this noise level, as its own inpainting does it; None for everywhere."""
    function = model_options.get("denoise_mask_function")
    if denoise_mask is None or function is None:
        return denoise_mask
    return function(sigma, denoise_mask, extra_options={"model": model_wrap, "sigmas": sigmas})


def scales(sampling, sigma: float) -> tuple[float, float]:
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


def step_cache(model_options: dict):
    """What the host's EasyCache or LazyCache remembers of this run; None without one."""
    return model_options.get("transformer_options", {}).get("easycache")


def without_cache(options: dict) -> dict:
    """Sampler options whose calls all reach the network.

    A cache that is past its end neither skips a call nor remembers it. What it knows is of the run: it is asked in the
    order of the steps, and fails where a call goes back to an earlier one.
    """
    cache = step_cache(options["model_options"])
    if cache is None:
        return options
    past = cache.clone()
    past.end_t = math.inf
    transformer_options = options["model_options"]["transformer_options"] | {"easycache": past}
    return options | {"model_options": options["model_options"] | {"transformer_options": transformer_options}}


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host takes an error for that; newer ones know more kinds."""
    tell, kind = getattr(comfy.model_management, "is_oom", None), comfy.model_management.OOM_EXCEPTION
    return tell(error) if tell else kind is not Exception and isinstance(error, kind)


@contextmanager
def estimating() -> Iterator[None]:
    """Where memory runs out in the estimate, and not in the sampling before it, the host's error says so too."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            error.args = (
                f"{error}; memory ran out in estimating the uncertainty, after the sampling: take fewer pictures at "
                "once, or sample without it.",
            )
        raise


POST_CFG = "sampler_post_cfg_function"


class Beside:
    """Wrappers for a clone of a model that see one sampling run and let an estimator work once it is over.

    The nominal run goes first and undisturbed; what comes after it happens inside the same sampling context, so that
    prompts, controls, masks and patches are those of the run. To the estimator it is its
    :class:`~..bayesdiff_core.nominal.NominalRun`.

    Args:
        levels_of: from the noise levels of the run, the sigmas at which mean and variance of the noisy latent are kept.
        generator: source of the posterior draws.
        called: called after each call of the network beside the run, with how many of how many are done, and with how
            many the run itself had.
        shown: called with the variance of the picture as it becomes known, in the sampler's space.

    Attributes:
        estimate: what the estimator found, in the latent units that the user sees; None before.
        trajectory: sigma, noisy latent and its variance at the levels that are kept.
        calls: of the network, beside the run's own ``len(states)``.
    """

    def __init__(
        self, layer: LastLayer, head: LaplaceHead, estimator: Estimator,
        levels_of: Callable[[torch.Tensor], tuple[float, ...]], generator: torch.Generator,
        called: Callable[[int, int, int], None], shown: Callable[[torch.Tensor], None],
    ):  # fmt: skip
        self.layer, self.head, self.estimator, self.levels_of = layer, head, estimator, levels_of
        self.generator, self.called, self.shown = generator, called, shown
        self.look = Look(layer, head, estimator.independent_guidance)
        self.states: list[State] = []
        self.uncond: list[torch.Tensor | None] = []
        self.recording = False
        self.calls, self.expected_calls = 0, 0
        self.estimate: Estimate | None = None
        self.trajectory: list[tuple[float, torch.Tensor, torch.Tensor]] = []

    def add_to(self, model: ModelPatcher, key: str) -> None:
        self.model = model
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, self.predict_noise)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, self.sampler_sample)
        self.look.add_to(model)

    # ------------------------------------------------------------ the run itself

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        """PREDICT_NOISE wrapper: see a prediction, guidance and all, and let it pass."""
        if not self.recording:
            return executor(x, timestep, model_options, seed)
        model_options = model_options or {}
        sigma = float(timestep.flatten()[0])
        noise, signal = scales(self.sampling, sigma)
        # Copies: the sampler may go on in place. In memory of the CPU, where there is more.
        seen, variance = x.to("cpu", copy=True), None
        uncond: list[torch.Tensor] = []
        if len(model_options.get(POST_CFG, [])) > len(self.options["model_options"].get(POST_CFG, [])):
            # A CFG++ sampler: its steps go along the prediction for the negative prompt.
            model_options = model_options | {POST_CFG: [*model_options[POST_CFG], self.see_uncond(uncond)]}
        cache = step_cache(model_options)
        skipped = cache.total_steps_skipped if cache is not None else 0
        if self.estimator.looks(level(noise, signal), self.schedule):
            with self.look.once():
                denoised = executor(x, timestep, model_options, seed)
            variance = self.look.variance(getattr(self.model_wrap, "cfg", None))
        else:
            denoised = executor(x, timestep, model_options, seed)
        if cache is not None and cache.total_steps_skipped > skipped:
            return denoised  # not the network's word: to a member, which asks the network, it would look like a change
        if self.states:
            self.states[-1].contraction = contraction(self.states[-1], seen, signal, self.mask_on_cpu)
        self.states.append(State(sigma, noise, signal, seen, denoised.to("cpu", copy=True), variance=variance))
        self.uncond.append(uncond[0] if uncond else None)
        return denoised

    @staticmethod
    def see_uncond(found: list[torch.Tensor]) -> Callable[[dict], torch.Tensor]:
        def see(args: dict) -> torch.Tensor:
            found.append(args["uncond_denoised"].to("cpu", copy=True))
            return args["denoised"]

        return see

    def sampler_sample(self, executor, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
                       denoise_mask=None, disable_pbar=False):  # fmt: skip
        """SAMPLER_SAMPLE wrapper: run the sampler, then let the estimator work."""
        # Samplers write to both: their own arguments into these, uni_pc another end into sigmas.
        self.options, self.sigmas, sigma_end = dict(extra_args), sigmas.clone(), float(sigmas[-1])
        self.executor, self.model_wrap, self.denoise_mask = executor, model_wrap, denoise_mask
        self.device, self.dtype = noise.device, noise.dtype
        self.mask_on_cpu = None if denoise_mask is None else denoise_mask.cpu()
        self.sampling = model_wrap.inner_model.model_sampling
        self.noise_end, self.signal_end = scales(self.sampling, sigma_end)
        self.schedule = [level(*scales(self.sampling, float(sigma))) for sigma in sigmas[:-1]]
        function = getattr(executor.class_obj, "sampler_function", None)
        self.sampler = getattr(function, "__name__", "").removeprefix("sample_")
        self.generator_state = torch.get_rng_state()
        self.states, self.uncond, self.recording = [], [], True
        samples = executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        self.recording = False
        if not self.states:
            if len(sigmas) > 1:
                logging.warning(
                    "BayesDiff: this sampler or guider never asked the model for a prediction, so its uncertainty is "
                    "unknown and given as zero; choose the estimator 'ensemble' for it."
                )
            self.estimate = Estimate(torch.zeros(samples.shape), torch.empty(0, *samples.shape), {})
            return samples
        self.states[-1].contraction = self.noise_end / self.states[-1].noise if self.states[-1].noise > 0 else 1.0
        self.options = without_cache(self.options)
        # The global generator stays where the stock sampler leaves it.
        with estimating(), torch.random.fork_rng(generator_devices(samples.device)):
            self.place_variances()
            self.work(sigma_end)
        return samples

    # ------------------------------------------------------------ after it

    def place_variances(self) -> None:
        """Bring the gamma² that was seen, one number an output position, to the elements of the latent."""
        looked = [(state, state.variance) for state in self.states if state.variance is not None]
        if not looked:
            return
        x, geometry = self.states[0].x, self.layer.geometry
        first, variance = looked[0]
        count = variance[0].numel()
        conv_is_last = geometry.kind == "conv2d" and geometry.out_features >= x.shape[1]
        if conv_is_last and variance.shape[1:] == x.shape[2:]:
            positions = torch.arange(count).reshape(1, *x.shape[2:]).expand(x.shape[1:])
        else:
            sigma, prompt = first.sigma, next(conds for conds in self.model_wrap.conds.values() if conds)

            def denoise(x: torch.Tensor) -> torch.Tensor:
                restart_hooks(self.model_wrap)
                at, options = torch.full((len(x),), sigma, device=x.device), self.options["model_options"]
                return comfy.samplers.calc_cond_batch(self.model_wrap.inner_model, [prompt], x, at, options)[0]

            positions = read_positions(self.model, self.layer, denoise, x[:1].to(self.device, self.dtype), count)
        shape = variance.shape
        for state, variance in looked:
            if positions is None or variance.shape != shape:  # prompts for areas, at some levels only
                state.variance = None
                continue
            gain = output_gain(self.sampling, torch.full((1,), state.sigma), state.x[:1])
            state.variance = variance.flatten(1)[:, positions] * gain.square()

    def work(self, sigma_end: float) -> None:
        """Let the estimator work, and bring what it found to the units that the user sees."""
        self.last_sigma = -math.inf
        self.expected_calls = self.estimator.calls(len(self.states))
        usable = [index for index, state in enumerate(self.states) if state.signal > 0]
        levels = [self.states[index].sigma for index in usable]
        wanted = sorted(self.levels_of(self.sigmas), reverse=True) if usable else []
        along = [usable[nearest(levels, level)] for level in wanted]
        found = self.estimator.estimate(self, along)
        gain = self.gain(sigma_end, found.variance)
        self.estimate = Estimate(found.variance * gain.square(), found.deviations * gain, {})
        for index in along:
            state = self.states[index]
            self.trajectory.append(
                (state.sigma, self.as_latent(state), found.along[index] * self.gain(state.sigma, state.x).square())
            )

    def gain(self, sigma: float, like: torch.Tensor) -> torch.Tensor:
        """Slope of the latent that the user sees in the sampler's x at a noise level, element by element."""
        at, like = torch.full((1,), sigma), like.float()
        unscaled = self.sampling.inverse_noise_scaling(at, torch.ones_like(like))
        unscaled = unscaled - self.sampling.inverse_noise_scaling(at, torch.zeros_like(like))
        return unscaled * latent_gain(self.model_wrap.inner_model, like)

    def as_latent(self, state: State) -> torch.Tensor:
        """The noisy latent of a state as a stock sampler that stops there would return it."""
        unscaled = self.sampling.inverse_noise_scaling(torch.full((1,), state.sigma), state.x)
        return self.model_wrap.inner_model.process_latent_out(unscaled.float())

    # ------------------------------------------------------------ what an estimator may ask, see NominalRun

    def draw(self) -> torch.Tensor:
        return self.head.draw(self.generator)

    def denoised(self, state: State, x: torch.Tensor, delta_w: torch.Tensor | None = None) -> torch.Tensor:
        if state.sigma > self.last_sigma:
            restart_hooks(self.model_wrap)
        self.last_sigma = state.sigma
        sigma = torch.full((len(state.x),), state.sigma, device=self.device)
        mask = mask_at(sigma, self.model_wrap, self.sigmas, self.denoise_mask, self.options["model_options"])
        nominal = state.x.to(self.device, self.dtype)
        change = x.to(self.device, self.dtype) - nominal
        nominal = nominal + (change if mask is None else change * mask)
        if delta_w is None:
            denoised = self.model_wrap(nominal, sigma, **self.options)
        else:
            with self.layer.perturbed(delta_w):
                denoised = self.model_wrap(nominal, sigma, **self.options)
        self.calls += 1
        self.called(self.calls, max(self.calls, self.expected_calls), len(self.states))
        if mask is not None:
            kept = state.denoised.to(denoised)
            denoised = kept + (denoised - kept) * mask
        return denoised.float().cpu()

    def expect(self, calls: int) -> None:
        self.expected_calls = calls

    def show(self, variance: torch.Tensor) -> None:
        self.shown(variance)

    def ride(self, change: Callable[[State, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        # What the noise alone does; x and denoised enter a sampler's steps linearly, so it can be taken off again.
        noise_alone = Riding(self, None)
        end_of_noise = noise_alone.run()
        riding = Riding(self, change, noise_alone.passed)
        return riding.run() - end_of_noise, riding.passed


@dataclasses.dataclass
class Riding:
    """Takes the guider's place under a sampler, so that a deviation passes through the sampler's own steps.

    Attributes:
        change: the deviation of ``denoised`` at a state; None for none.
        noise: what the noise that the sampler injects does to x, at every state.
        passed: the deviation of x at every state.
    """

    beside: Beside
    change: Callable[[State, torch.Tensor], torch.Tensor] | None
    noise: list[torch.Tensor] | None = None
    passed: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def __getattr__(self, name: str):
        return getattr(self.beside.model_wrap, name)

    def run(self) -> torch.Tensor:
        """The deviation at the end, in the sampler's space."""
        beside = self.beside
        nothing = torch.zeros(beside.states[0].x.shape, device=beside.device, dtype=beside.dtype)
        torch.set_rng_state(beside.generator_state)
        end = beside.executor(
            self, beside.sigmas.clone(), dict(beside.options), None, nothing, nothing, beside.denoise_mask, True
        )
        if len(self.passed) != len(beside.states):
            raise ValueError(self.problem())
        return end.cpu() * beside.signal_end

    def problem(self) -> str:
        return (
            f"Expected a sampler that takes the same steps for every latent, and a model that skips none, got "
            f"'{self.beside.sampler}', which does not, or a cache of steps on the model; choose the estimator "
            "'deviations' or 'ensemble'."
        )

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, seed=None) -> torch.Tensor:
        index, beside = len(self.passed), self.beside
        if index >= len(beside.states):
            raise ValueError(self.problem())
        state = beside.states[index]
        deviation = x.cpu().float()
        if self.noise is not None:
            deviation = deviation - self.noise[index]
        self.passed.append(deviation)
        base = beside.options["model_options"].get(POST_CFG, [])
        added = model_options.get(POST_CFG, [])[len(base) :]
        if self.change is None:
            nothing = torch.zeros_like(x)
            for function in added:
                function({"denoised": nothing, "uncond_denoised": nothing})
            return nothing
        kept = beside.options
        if added:
            uncond = beside.uncond[index]
            assert uncond is not None, "the nominal run had the same hooks"
            shifted = [self.shifted(function, uncond) for function in added]
            beside.options = kept | {"model_options": model_options | {POST_CFG: [*base, *shifted]}}
        try:
            return self.change(state, deviation).to(x)
        finally:
            beside.options = kept

    @staticmethod
    def shifted(function: Callable[[dict], torch.Tensor], nominal: torch.Tensor) -> Callable[[dict], torch.Tensor]:
        """A sampler's own look at the prediction for the negative prompt, as a deviation from the nominal one."""

        def see(args: dict) -> torch.Tensor:
            uncond = args["uncond_denoised"]
            function(args | {"uncond_denoised": uncond - nominal.to(uncond)})
            return args["denoised"]

        return see
