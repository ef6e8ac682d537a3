"""What a soft mask leaves of a deviation: at every step it pulls the image, and each member with it, to what it keeps.

With a mask of m the host shows the network ``m x`` and of the kept image the rest, and takes ``m D`` of what it
predicts. So of a deviation delta of the clean latent, a step from noise over signal l to l' leaves ``l'/l delta + (1 -
l'/l) m (g + k m delta)``: a draw moves D by g, the root of gamma², and the network passes on a share k of what it is
shown. That is all where the image is nearly there, and nothing in the noise: ``k = 1 / (1 + (l / LOW)²)``, with the
level below which a deviation only passes through. The same walk without a mask ends elsewhere, and the ratio of the two
is what the mask leaves.
"""

from __future__ import annotations

import torch

from .deviations import LOW
from .evidence import at_levels, log_of, mean_over_channels
from .trajectory import Trajectory


def left_by_mask(trajectory: Trajectory) -> torch.Tensor | None:
    """How much a mask leaves of the deviation that each cell would have without, ``(n, ...)``; None without a mask.

    Where nothing shows gamma² it is the share that is denoised, which is too much.
    """
    share = trajectory.share_denoised
    seen = [state for state in trajectory.states_of_all_stages if state.variance is not None]
    if share is None or not trajectory.is_mixed or not seen:
        return share
    levels = [state.noise_over_signal for state in seen]
    logs = [log_of(mean_over_channels(state.variance)) for state in seen]  # pyright: ignore[reportArgumentType]
    masked = plain = torch.zeros_like(logs[0])
    steps = trajectory.steps_of_all_stages
    for level, below in zip(steps, [*steps[1:], trajectory.end.noise_over_signal]):
        # Below what was seen g falls with the noise, of which denoised is a share.
        moved = (at_levels(levels, logs, [level])[0] / 2).exp() * min(level / min(levels), 1.0)
        kept, passed = min(below / level, 1.0), 1 / (1 + (level / LOW) ** 2)
        masked = kept * masked + (1 - kept) * share * (moved + passed * share * masked)
        plain = kept * plain + (1 - kept) * (moved + passed * plain)
    return torch.where(share < 1, masked / plain, 1.0)
