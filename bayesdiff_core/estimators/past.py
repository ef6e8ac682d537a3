"""What an earlier stage left: the uncertainty of the latent that a run goes on from.

Many images are sampled in stages: one schedule split over two models, or a small image enlarged and sampled again. What
one stage left open the next begins with. A member goes on from where it ended, under its own draw; of an estimate
without members, the variance goes on by the rule of :func:`left_of_past`.

Where a stage goes on from the very latent that the last one left, noise and all, the run was only cut. Then what both
showed is read together, as if it had not been.
"""

from __future__ import annotations

import dataclasses

import torch

from .evidence import levels_needed, mean_over_channels
from .trajectory import State, Trajectory

# Noise over signal in a latent that counts as finished.
FINISHED = 0.02
# Noise over signal at which a run keeps half of a variance that it begins with.
HALF_KEPT = 1.5


@dataclasses.dataclass(frozen=True)
class Handover:
    """What a later stage takes from a run, beside its latent, variance and members.

    Attributes:
        seed: of the draws. A later stage goes on with it, so that draw k of one head is the same W in every stage.
        noise_over_signal: left in the latent.
        states: of the run and of those before it, where noise is left: at most sixteen, without x, and with their
            variances as means over channels. So it takes at most some twenty latents of memory.
        sized: whether these variances have their right size, and not their shape alone.
    """

    seed: int = 0
    noise_over_signal: float = 0.0
    states: tuple[State, ...] = ()
    sized: bool = True

    @classmethod
    def of(cls, trajectory: Trajectory, seed: int) -> Handover:
        """What a run hands over."""
        left = trajectory.end.noise_over_signal
        if left < FINISHED:
            return cls(seed, left)
        states = trajectory.states_of_all_stages
        needed = levels_needed([state.noise_over_signal for state in states])
        kept = tuple(slim(state) for state in states if state.noise_over_signal in needed)
        return cls(seed, left, kept, trajectory.all_sized)

    def select(self, index: torch.Tensor) -> Handover:
        """Of the images at ``index`` ``(m,)`` alone."""
        chosen = (
            dataclasses.replace(
                state,
                denoised=state.denoised[index],
                variance=None if state.variance is None else state.variance[index],
            )
            for state in self.states
        )
        return dataclasses.replace(self, states=tuple(chosen))

    @staticmethod
    def join(parts: list[Handover]) -> Handover:
        """Of all images of the parts, in their order; without states where these are of other levels."""
        joined = [
            dataclasses.replace(
                same[0],
                denoised=torch.cat([state.denoised for state in same]),
                variance=None if same[0].variance is None else torch.cat([state.variance for state in same]),
            )
            for same in zip(*(part.states for part in parts))
            if len({(state.sigma, state.variance is None) for state in same}) == 1
        ]
        whole = len(joined) == len(parts[0].states)
        return dataclasses.replace(parts[0], states=tuple(joined) if whole else ())


def slim(state: State) -> State:
    """A state without what a later stage has no use for."""
    variance = None if state.variance is None else mean_over_channels(state.variance)[:, None]
    return dataclasses.replace(state, x=torch.empty(0), variance=variance)


def variance_at_start(trajectory: Trajectory) -> torch.Tensor:
    """Variance of x where a run begins, ``(n, ...)``, in the sampler's space; zero where nothing came in."""
    if trajectory.past is None:
        return torch.zeros(trajectory.shape)
    return trajectory.past.variance * trajectory.states[0].signal ** 2


def with_past(variance: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
    """A variance of a run's own, at its end and in the sampler's space, with what is left of what came in."""
    left = left_of_past(trajectory)
    return variance if left is None else variance + left * trajectory.end.signal**2


def left_of_past(trajectory: Trajectory) -> torch.Tensor | None:
    """What is left at the end of a run of the variance that it began with, ``(n, ...)``, of the clean latent.

    Noise hides a part of what came in, half of it at :data:`HALF_KEPT`; where a mask keeps the image, all is kept. A
    rule that reads the part off each image (its own spread against the noise, or how much of it the first prediction
    keeps) ranks images worse, on both models that were tried: see docs/stages.md.

    Returns:
        None where nothing came in, or where the states of the stages before tell it.
    """
    past = trajectory.past
    if past is None or past.states:
        return None
    kept = 1 / (1 + (trajectory.states[0].noise_over_signal / HALF_KEPT) ** 2)
    if trajectory.share_denoised is None:
        return past.variance * kept
    return past.variance * (1 - trajectory.share_denoised[:, None] * (1 - kept))
