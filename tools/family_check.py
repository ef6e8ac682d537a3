"""Whether the pack does for a model family all that it promises, tried on a small instance of it."""

from __future__ import annotations

import dataclasses

import torch
from bayesdiff.bayesdiff_core.estimators.base import Estimate
from bayesdiff.bayesdiff_core.estimators.instant import Instant
from bayesdiff.bayesdiff_core.estimators.trajectory import SaveAt
from bayesdiff.bayesdiff_core.posterior.laplace_head import LaplaceHead, SpectralPrecision
from bayesdiff.host.fit import FitSettings, as_examples, fit_head
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.host.posterior import Posterior
from bayesdiff.host.run.observe import Observer
from bayesdiff.host.run.progress import Progress
from bayesdiff.host.run.stock import sample_stock
from bayesdiff.nodes.mask import UncertaintyToMask
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from families import STEPS, Setup
from measure import count_calls

# Large enough to stand above float32 rounding; the output is linear in it.
CHANGE = 30.0
DIRECTIONS = 8


class Fault(Exception):
    """What the pack does wrong with a family, in a few words."""


def random_posterior(model, path: str) -> Posterior:
    """A posterior whose weights deviate in a few random directions alone."""
    layer, generator = find_last_layer(model, path), torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(layer.geometry.width, DIRECTIONS, generator=generator))
    precision = SpectralPrecision(basis, torch.arange(1.0, 1 + DIRECTIONS), rest=1e12)
    return Posterior(model, layer, LaplaceHead(layer.geometry, precision, 1.0, {}))


@dataclasses.dataclass(frozen=True)
class Compared(Instant):
    """Compares the variance that a run shows at its middle state with that of perturbed weights.

    Each direction of the posterior, added to every output column, moves a latent element by what it adds.

    Attributes:
        found: gets the variance shown and the one expected, ``(n, ...)`` each; nothing where the run shows none.
    """

    posterior: Posterior = dataclasses.field(kw_only=True)
    found: list = dataclasses.field(default_factory=list)

    def estimate(self, run, along: list[int]) -> Estimate:
        shown = [state for state in run.trajectory.states if state.variance is not None]
        if shown:
            state, layer, total = shown[len(shown) // 2], self.posterior.layer, 0.0
            nominal = run.denoised(state, state.x).double()
            precision = self.posterior.head.precision
            for vector, value in zip(precision.basis.T, precision.values):
                delta = CHANGE * vector[:, None].expand(-1, layer.geometry.out_features)
                with layer.perturbed(delta):
                    change = (run.denoised(state, state.x).double() - nominal) / CHANGE
                total = total + change.square() / value
            self.found.extend([state.variance.double(), total])
        return super().estimate(run, along)


def check_latent_and_shapes(setup: Setup) -> None:
    """Our sampler: the stock one's latent, no call more, and a map and a mask of the image's size.

    Raises:
        Fault: one of these fails.
    """
    samples = setup.latent["samples"][:1]
    data = as_examples(torch.randn(samples.shape, generator=torch.Generator().manual_seed(0)), setup.positive)
    head = fit_head(setup.model, data, setup.negative, FitSettings(setup.cfg, levels=2, own_images=1, steps=STEPS))
    if head.about["layer"] != setup.path:
        raise Fault(f"the head is of {head.about['layer']} instead of {setup.path}")
    layer = Posterior.bind(head, setup.model).layer
    stock_calls, expected = count_calls(layer, setup.stock)
    calls, output = count_calls(
        layer, lambda: KSamplerBayesDiff.execute(**setup.inputs(), head=head, quality="instant", members=2)
    )
    latent, uncertainty, scores = output.args[:3]
    if not torch.equal(latent["samples"], expected):
        raise Fault("the latent is not the stock sampler's")
    if uncertainty.unknown:
        raise Fault(uncertainty.unknown)
    if calls != stock_calls:
        raise Fault(f"{calls} network calls instead of {stock_calls}")
    if uncertainty.variance.shape != expected.shape or not uncertainty.variance.isfinite().all():
        raise Fault(f"a variance of shape {tuple(uncertainty.variance.shape)} or not finite")
    if not (uncertainty.variance.flatten(1).mean(1) > 0).all() or len(scores) != len(expected):
        raise Fault("no variance at all, or too few scores")
    size = [setup.downscale * side for side in expected.shape[-2:]]
    shape = torch.Size([len(expected) * uncertainty.frames, *size])
    mask = UncertaintyToMask.execute(uncertainty, 0.2, 0, 0.0)[0]
    if mask.shape != shape or not 0.1 < mask.mean() < 0.3:
        raise Fault(f"a mask of {tuple(mask.shape)}, {mask.mean():.0%} set, instead of {tuple(shape)}, 20%")
    if uncertainty.maps(size=size).shape != shape:
        raise Fault(f"a map of {tuple(uncertainty.maps(size=size).shape)} instead of {tuple(shape)}")


def check_variance(setup: Setup) -> None:
    """The variance of a prediction is that of perturbed weights, at the place where each output lands.

    Raises:
        Fault: it is not, or none is shown.
    """
    posterior = random_posterior(setup.model, setup.path)
    compared, progress = Compared(posterior=posterior), Progress(setup.model)
    observer = Observer(posterior, compared, SaveAt(), progress)
    sample_stock(setup.run, setup.model, setup.latent, progress, wrap=observer.add_to)
    if not compared.found:
        raise Fault("no variance is shown" if observer.found is None else observer.found.unknown or "nothing is shown")
    shown, expected = compared.found
    if shown.shape != expected.shape:
        raise Fault(f"a variance of shape {tuple(shown.shape)} instead of {tuple(expected.shape)}")
    off = ((shown - expected).abs() / expected.mean()).max()
    if not torch.allclose(shown, expected, rtol=1e-3, atol=1e-4 * float(expected.mean())):
        raise Fault(f"the variance is off by {off:.2g} of its mean")


def check_family(setup: Setup) -> str:
    """All of it.

    Returns:
        how the last layer was found.

    Raises:
        Fault: what fails.
    """
    try:
        found = find_last_layer(setup.model).path
    except ValueError:
        found = ""
    if found not in ("", setup.path):
        raise Fault(f"the table takes {found} for the last layer instead of {setup.path}")
    check_latent_and_shapes(setup)
    check_variance(setup)
    return "by the table" if found else "found"
