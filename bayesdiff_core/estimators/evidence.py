"""What a run itself shows of where its image is uncertain. It takes no network call, and no posterior to begin with.

Two things are seen in every state. How much ``denoised`` was yet to change: where the network went on changing its
mind, the image hangs on chance. And, where a head is there, the posterior variance gamma² of ``denoised``, which is
exact. A run visits states of its own choosing, so both are brought to one grid of noise levels, and mean the same for
any sampler, schedule and number of steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .trajectory import State, Trajectory, Unknown

# Noise over signal at which the evidence is read.
LEVELS = (12.0, 7.0, 4.0, 2.3, 1.3, 0.75, 0.4, 0.22)
# Levels at which shapes and parts are decided, and one at which the image is all but there.
MIDDLE, LATE = (4.0, 2.3, 1.3), 0.22
# States whose levels differ by less count as one.
SAME_LEVEL = 1e-3


def mean_over_channels(values: torch.Tensor) -> torch.Tensor:
    """``(n, ...)`` of ``(n, c, ...)``, in float32."""
    return values.float().mean(1)


def blur_box(maps: torch.Tensor) -> torch.Tensor:
    """Mean over 3 by 3 cells of maps ``(n, ..., h, w)``, or over 3 cells of ``(n, w)``; edges repeat."""
    if maps.ndim < 3:
        return F.avg_pool1d(F.pad(maps[:, None], (1, 1), mode="replicate"), 3, stride=1)[:, 0]
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.avg_pool2d(F.pad(planes, (1, 1, 1, 1), mode="replicate"), 3, stride=1).reshape(maps.shape)


def blur_inside(maps: torch.Tensor, share: torch.Tensor | None) -> torch.Tensor:
    """:func:`blur_box` that looks at what is denoised alone, and is zero where nothing is.

    Args:
        maps: ``(n, ..., h, w)``.
        share: of the same shape, how much of each cell is denoised; None for all.
    """
    if share is None:
        return blur_box(maps)
    weight = (share > 0).to(maps)
    return weight * blur_box(maps * weight) / blur_box(weight).clamp(min=1e-6)


def log_level(noise_over_signal: float) -> float:
    """Its natural logarithm; below 1e-4 and above 1e4, that of these bounds."""
    return math.log(min(max(noise_over_signal, 1e-4), 1e4))


def levels_needed(schedule: Sequence[float]) -> set[float]:
    """Those of a schedule's levels that the evidence at :data:`LEVELS` is read from: each one's two neighbours."""
    found: set[float] = set()
    for level in LEVELS:
        above = [there for there in schedule if there >= level]
        below = [there for there in schedule if there < level]
        found |= {min(above)} if above else set()
        found |= {max(below)} if below else set()
    return found


def is_needed(noise_over_signal: float, schedule: Sequence[float]) -> bool:
    """Whether the evidence is read from a state of this level, in a run with this schedule."""
    return any(math.isclose(noise_over_signal, level, rel_tol=1e-3) for level in levels_needed(schedule))


def still_needed(levels: Sequence[float]) -> set[int]:
    """Which states of a run so far its evidence may still be read from, whatever states are yet to come.

    A level that has two nearer neighbours stays without use, so what a run keeps need not grow with its steps.

    Args:
        levels: noise over signal of its states so far, in order.

    Returns:
        their places: at most two a level of :data:`LEVELS`, those that stand in for the newest if it turns out to be
        the run's last (its own change is none), and the newest.
    """
    if not levels:
        return set()
    newest = levels[-1]
    needed = levels_needed(levels) | levels_needed([level for level in levels if level > newest])
    # Of several equal ones the last counts.
    last = {level: place for place, level in enumerate(levels)}
    return {place for level, place in last.items() if level in needed} | {len(levels) - 1}


def at_levels(levels: Sequence[float], maps: Sequence[torch.Tensor], wanted: Sequence[float]) -> torch.Tensor:
    """Maps of some states at the wanted levels: linear between two states in the logarithm of noise over signal.

    Args:
        levels: noise over signal of the states, in any order. Of several equal ones the last counts.
        maps: of each ``(n, ...)``.

    Returns:
        ``(len(wanted), n, ...)``; beyond the states it is the nearest one's.
    """
    order: list[tuple[float, torch.Tensor]] = []
    for level, found in sorted(zip(map(log_level, levels), maps), key=lambda pair: pair[0]):
        if order and level - order[-1][0] < SAME_LEVEL:
            order.pop()
        order.append((level, found))
    result = []
    for level in map(log_level, wanted):
        above = next((i for i, (there, _) in enumerate(order) if there >= level), len(order) - 1)
        (low, first), (high, second) = order[max(above - 1, 0)], order[above]
        share = (level - low) / (high - low) if low < level < high else float(level >= high)
        result.append(torch.lerp(first, second, share))
    return torch.stack(result)


def log_change(trajectory: Trajectory) -> torch.Tensor | None:
    """Logarithm of how much ``denoised`` was yet to change, at :data:`LEVELS`.

    Returns:
        ``(8, n, ...)`` of the blurred mean square over channels; None of a run of a single prediction, which
        never changes.
    """
    last, share = trajectory.states[-1], trajectory.share_denoised
    image, before = last.denoised.float(), trajectory.states_of_all_stages[:-1]
    states = [state for state in before if state.noise_over_signal > last.noise_over_signal]
    if not states:
        return None
    squares = [blur_inside(mean_over_channels((state.denoised.float() - image).square()), share) for state in states]
    return at_levels([state.noise_over_signal for state in states], [log_of(each) for each in squares], LEVELS)


def log_variance(states: Sequence[State]) -> torch.Tensor | None:
    """Logarithm of gamma² of ``denoised`` at :data:`LEVELS`, as :func:`log_change`; None where it was not seen."""
    seen = [(state.noise_over_signal, state.variance) for state in states if state.variance is not None]
    if not seen:
        return None
    levels, variances = zip(*seen)
    return at_levels(levels, [log_of(mean_over_channels(variance)) for variance in variances], LEVELS)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a run shows, in logarithms, cell by cell.

    Attributes:
        change: ``(8, n, ...)``, how much ``denoised`` was yet to change at each of :data:`LEVELS`.
        gradient: ``(2, n, ...)``, local gradient energy of the image, and its blur.
        variance: ``(8, n, ...)``, gamma² of ``denoised``; None where it was not seen.
        share: ``(n, ...)``, how much of each cell was denoised; None for all.
        sized: whether the size of ``variance`` is right, and not its shape alone.
    """

    change: torch.Tensor
    gradient: torch.Tensor
    variance: torch.Tensor | None
    share: torch.Tensor | None
    sized: bool = True

    @property
    def covariates(self) -> torch.Tensor:
        """All of it, ``(p, n, ...)``; gamma² comes last, where it was seen."""
        return torch.cat([self.change, self.gradient, *([] if self.variance is None else [self.variance])])

    @property
    def two_terms(self) -> torch.Tensor:
        """The change over :data:`MIDDLE` and gamma² at :data:`LATE`, half of each in logarithm, ``(n, ...)``.

        About the logarithm of the variance, on every model that was tried but for one number. The change alone where
        gamma² was not seen, or not in its size.
        """
        change = self.change[[LEVELS.index(level) for level in MIDDLE]].mean(0)
        if self.variance is None or not self.sized:
            return change
        return change / 2 + self.variance[LEVELS.index(LATE)]

    @property
    def inside(self) -> torch.Tensor:
        """``(n, ...)`` of bool, which cells were denoised at all."""
        shape = self.change.shape[1:]
        return torch.ones(shape, dtype=torch.bool) if self.share is None else (self.share > 0).expand(shape)


def read_evidence(trajectory: Trajectory) -> Evidence:
    """What a run shows.

    Raises:
        Unknown: it made a single prediction, which never changes.
    """
    change = log_change(trajectory)
    if change is None:
        raise Unknown(
            "Expected a run of at least two predictions, whose change tells where the image is uncertain, got one; "
            "give the sampler more steps, or connect a Laplace head and choose a quality with members."
        )
    return Evidence(
        change,
        log_gradient(trajectory.states[-1].denoised),
        log_variance(trajectory.states_of_all_stages),
        trajectory.share_denoised,
        trajectory.all_sized,
    )


def log_gradient(image: torch.Tensor) -> torch.Tensor:
    """Logarithms of the local gradient energy of a latent ``(n, c, ...)`` and of its blur, ``(2, n, ...)``."""
    image = image.float()
    energy = torch.zeros_like(image[:, 0])
    for dim in range(2, image.ndim)[-2:]:
        step = torch.diff(image, dim=dim, append=image.narrow(dim, image.shape[dim] - 1, 1))
        energy = energy + step.square().mean(1)
    return torch.stack([log_of(energy), log_of(blur_box(energy))])


def log_of(values: torch.Tensor) -> torch.Tensor:
    """Logarithm of squares ``(n, ...)``; what is next to nothing counts as a millionth of the image's mean."""
    mean = values.flatten(1).mean(1).nan_to_num(0, 0, 0).reshape(-1, *[1] * (values.ndim - 1))
    return torch.maximum(values, (1e-6 * mean).clamp(min=torch.finfo(torch.float32).tiny)).log()
