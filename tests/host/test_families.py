"""Every family that the host can build small: right layer, exact perturbation, positions and variances in place."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.deviations import Deviations, choose_states
from bayesdiff.bayesdiff_core.estimators.trajectory import SaveAt
from bayesdiff.bayesdiff_core.posterior.features import guided_features
from bayesdiff.bayesdiff_core.posterior.fit import fit_laplace_head
from bayesdiff.host.fit import FitSettings, as_examples, fit_head
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.host.layout import by_image, discover_last_layer, read_layout
from bayesdiff.host.posterior import Posterior
from bayesdiff.host.run.observe import Observer
from bayesdiff.host.run.progress import Progress
from bayesdiff.host.run.space import output_slope
from bayesdiff.host.run.stock import sample_stock
from bayesdiff.host.settings import Guidance
from bayesdiff.host.states import NoisedState, visit_state
from denoised_variance import denoised_variance
from families import CFG, FAMILIES, STEPS, Setup, set_up


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request):
    with torch.inference_mode():
        yield set_up(request.param)


def test_last_layer_is_found_and_called_once_a_network_call(setup):
    layer = find_last_layer(setup.model)
    assert layer.path == setup.path
    rows, calls = [], []
    handle = setup.model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    with layer.watched(lambda features: rows.append(len(layer.geometry.rows(features)))):
        setup.stock()
    handle.remove()
    assert len(rows) == len(calls) > 0
    assert len(set(rows)) == 1


def test_perturbing_is_changing_the_weights(setup):
    """The model's own layout decides where a deviation ends up in the latent, as it does for the weights themselves."""
    layer = find_last_layer(setup.model)
    plain = setup.stock()
    shape = layer.geometry.width, layer.geometry.out_features
    delta = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    perturbed = functools.partial(layer.perturbed, delta)
    hooked = sample_stock(setup.run, setup.model, setup.latent, Progress(setup.model), perturbed)[0]["samples"]
    module = layer.module
    kept = {name: tensor.clone() for name, tensor in module.named_parameters()}
    with torch.no_grad():
        module.weight.add_((delta[:-1] if layer.geometry.bias else delta).T.reshape(module.weight.shape))
        if layer.geometry.bias:
            module.bias.add_(delta[-1])
    changed = setup.stock()
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.copy_(kept[name])
    effect = (changed - plain).abs().max()
    assert effect > 1e-3 * plain.std()
    assert (hooked - changed).abs().max() < 2e-2 * effect
    assert torch.equal(setup.stock(), plain)


def test_a_fit_counts_the_positions_of_the_image_alone(setup):
    """Text tokens that go through the last layer and are sliced off afterwards are no data about the image."""
    latent = setup.latent["samples"][:1]
    layer = find_last_layer(setup.model)
    data = as_examples(torch.ones_like(latent), setup.positive)
    head = fit_head(setup.model, data, setup.negative, FitSettings(CFG, 1))
    layout, seen = read_layout(setup.model, layer, setup.positive, latent), []
    together = 2 * len(setup.latent["samples"])  # both prompts of all images in one call
    with layer.watched(lambda features: seen.append(layer.geometry.positions(by_image(features, together)))):
        setup.stock()
    expected = len(layout.positions(seen[0]).unique())
    assert head.about["positions"] == str(expected)
    assert expected == seen[0] or setup.path == "final_layer.linear" and type(setup.model.model).__name__ == "Lumina2"


def test_last_layer_is_discovered_without_the_table(setup):
    latent = setup.latent["samples"][:1]
    assert discover_last_layer(setup.model, setup.positive, latent).path == setup.path


def random_posterior(model) -> Posterior:
    """A posterior with a dense covariance of random features."""
    layer = find_last_layer(model)
    width, generator = layer.geometry.width, torch.Generator().manual_seed(1)
    root = torch.randn(width, 2 * width, generator=generator)
    weights = torch.randn(width, layer.geometry.out_features, generator=generator)
    return Posterior(model, layer, fit_laplace_head(layer.geometry, weights, root @ root.T, "full", 1.0, {}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watching(Deviations):
    """Remembers the run that it was given."""

    seen: list = dataclasses.field(default_factory=list)

    def estimate(self, run, along):
        self.seen.append(run)
        return super().estimate(run, along)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_run_shows_the_variance_of_its_own_predictions(setup, cfg):
    """What is read while the run goes on is γ² of its own features, at the place where each output lands."""
    posterior = random_posterior(setup.model)
    layer, head = posterior.layer, posterior.head
    sampled, estimator = Setup(**vars(setup) | {"cfg": cfg}), Watching(states=STEPS, members=1)
    progress = Progress(setup.model)
    observer = Observer(posterior, estimator, SaveAt(), progress)
    latent, _ = sample_stock(sampled.run, setup.model, setup.latent, progress, wrap=observer.add_to)
    states = estimator.seen[0].trajectory.states
    assert len(states) == STEPS, "no call is taken for that of a cache"
    assert torch.equal(latent["samples"], sampled.stock())
    features: list[torch.Tensor] = []
    with layer.watched(features.append):
        sampled.stock()
    layout = read_layout(setup.model, layer, setup.positive, setup.latent["samples"][:1])
    sampling, calls = setup.model.get_model_object("model_sampling"), len(features) // len(states)
    looked = [number for number, state in enumerate(states) if state.variance is not None]
    assert len(looked) >= 2
    for number in looked:
        state = states[number]
        parts = torch.cat(features[number * calls : (number + 1) * calls]).float()
        if cfg != 1:
            uncond, cond = parts.chunk(2)
            parts = guided_features(cond, uncond, cfg)
        slope = output_slope(sampling, torch.full((1,), state.sigma), state.x[:1])
        parts = by_image(parts, len(state.x))
        expected = layout.place(head.variance(parts)) * slope.square()
        assert torch.allclose(state.variance, expected, rtol=1e-3)
    followed = choose_states([state.noise_over_signal for state in states], STEPS)
    assert estimator.seen[0].calls == len(followed), "one network call at each of these states, and none to look"


def brute_force(posterior: Posterior, state: NoisedState, guidance: Guidance) -> torch.Tensor:
    """Each eigenvector of the posterior, added to every output column, moves a latent element by what it adds."""
    layer, head, found = posterior.layer, posterior.head, []

    def visit(denoise, x, sigma, x0):
        plain, total = denoise(x).double(), 0.0
        # Large enough to stand above float32 rounding; the output is linear in it.
        size = 30.0
        for vector, value in zip(head.precision.basis.T, head.precision.values):
            with layer.perturbed(size * vector[:, None].expand(-1, layer.geometry.out_features)):
                total = total + ((denoise(x).double() - plain) / size).square() / value
        found.append(total)

    visit_state(posterior.model, state, guidance, visit)
    latent_format = posterior.model.model.latent_format
    scale = latent_format.process_out(torch.ones_like(state.latent))
    scale = scale - latent_format.process_out(torch.zeros_like(state.latent))
    return (found[0] * scale.double().square()).float()


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_variance_in_the_latents_layout_is_brute_force(setup, cfg):
    """Each eigenvector of the posterior, added to every output column, moves a latent element by what it adds."""
    posterior = random_posterior(setup.model)
    layer, latent = posterior.layer, setup.latent["samples"][:1]
    state = NoisedState(latent, 0.6, torch.randn(latent.shape, generator=torch.Generator().manual_seed(2)))
    guidance = Guidance(setup.positive, setup.negative, cfg)
    layout = read_layout(setup.model, layer, setup.positive, latent)
    variance = denoised_variance(posterior, layout, state, guidance)

    expected = brute_force(posterior, state, guidance)
    assert variance.shape == latent.shape
    assert torch.allclose(variance, expected, rtol=1e-3, atol=1e-4 * float(expected.mean()))


def longer(prompt: list) -> list:
    """The prompt with five more tokens."""
    (tokens, options), *_ = prompt
    return [[torch.cat([tokens, tokens[:, :5]], dim=1), options]]


def with_reference(prompt: list, latent: torch.Tensor) -> list:
    """The prompt with a picture to follow."""
    reference = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    return [[tokens, options | {"reference_latents": [reference]}] for tokens, options in prompt]


@pytest.mark.parametrize("name", ["Lumina 2", "Flux", "Qwen-Image"])
@pytest.mark.parametrize("of", ["positive", "negative"])
def test_a_longer_prompt_that_goes_through_the_last_layer_moves_no_variance(inference_mode, name, of):
    """Tokens of text stand before those of the image, and those of a reference behind them."""
    setup = set_up(name)
    posterior, latent = random_posterior(setup.model), setup.latent["samples"][:1]
    state = NoisedState(latent, 0.6, torch.randn(latent.shape, generator=torch.Generator().manual_seed(2)))
    prompts = {"positive": setup.positive, "negative": setup.negative}
    prompts[of] = longer(prompts[of]) if name == "Lumina 2" else with_reference(prompts[of], latent)
    guidance = Guidance(cfg=CFG, **prompts)
    shorter = setup.negative if of == "positive" else setup.positive
    layout = read_layout(setup.model, posterior.layer, shorter, latent)
    variance, expected = denoised_variance(posterior, layout, state, guidance), brute_force(posterior, state, guidance)
    assert torch.allclose(variance, expected, rtol=1e-3, atol=1e-4 * float(expected.mean()))
