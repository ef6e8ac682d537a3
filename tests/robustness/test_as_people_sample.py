"""Real situations in which the stock sampler makes an image: ours makes the same, and says what it cannot tell."""

from __future__ import annotations

import comfy.samplers
import latent_preview
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.deviations import Deviations
from bayesdiff.nodes.sampler import SamplerCustomBayesDiff
from comfy.clip_vision import Output
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_custom_sampler import BasicScheduler, KSamplerSelect, RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_sag import SelfAttentionGuidance
from families import FAMILIES
from family import Family
from image_families import UNET
from running import in_windows, options, ours, scaled, stock

EMPTY = {"samples": torch.zeros(2, 4, 16, 16)}
RUN = dict(steps=4, seed=3)
QUALITIES = ["no head", "instant", "draft", "ensemble"]


pytestmark = pytest.mark.usefixtures("inference_mode")


def sample(demo, head, latent: dict, quality: str, **settings) -> tuple:
    return ours(demo, None if quality == "no head" else head, latent, quality.replace("no head", "instant"), **settings)


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_previewer_that_shows_by_itself_and_returns_nothing(demo, demo_head, monkeypatch, quality):
    class Silent:
        def decode_latent_to_preview_image(self, preview_format, x0):
            return None

    monkeypatch.setattr(latent_preview, "get_previewer", lambda *_: Silent())
    expected = stock(demo, EMPTY, **RUN)["samples"]
    latent, uncertainty, _ = sample(demo, demo_head, EMPTY, quality, **RUN)
    assert torch.equal(latent["samples"], expected) and not uncertainty.unknown


def custom(demo, head, sampler, guider, quality: str) -> tuple:
    """The stock node's latent, and ours with its uncertainty."""
    (sigmas,) = BasicScheduler.execute(demo[0], "normal", 4, 1.0).args
    (noise,) = RandomNoise.execute(3).args
    given = dict(noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=EMPTY)
    expected = SamplerCustomAdvanced.execute(**given).args[0]["samples"]
    head = None if quality == "no head" else head
    quality = "instant" if head is None else quality
    latent, _, uncertainty, *_ = SamplerCustomBayesDiff.execute(**given, quality=quality, members=2, head=head).args
    return expected, latent["samples"], uncertainty


def guider_of(demo, kind: type = comfy.samplers.CFGGuider):
    guider = kind(demo[0])
    guider.set_conds(demo[1], demo[2])
    guider.set_cfg(3.0)
    return guider


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_sampler_that_enlarges_its_latent_on_the_way(demo, demo_head, quality):
    (sampler,) = SamplerLCMUpscale.execute(1.5, 2, "bislerp").args
    expected, found, uncertainty = custom(demo, demo_head, sampler, guider_of(demo), quality)
    assert torch.equal(found, expected) and uncertainty.variance.shape == expected.shape == (2, 4, 24, 24)
    assert not uncertainty.unknown and uncertainty.variance.isfinite().all() and uncertainty.variance.mean() > 0


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_sampler_that_finishes_each_image_by_itself_is_unknown_but_to_whole_runs(demo, demo_head, quality):
    def one_by_one(model, x, sigmas, extra_args=None, callback=None, disable=None):
        sigma = x.new_ones(len(x))
        denoised = model(x, sigmas[0] * sigma, **extra_args)
        x = denoised + (x - denoised) * sigmas[1] / sigmas[0]
        return torch.cat([model(image, sigmas[1] * sigma[:1], **extra_args) for image in x.split(1)])

    expected, found, uncertainty = custom(
        demo, demo_head, comfy.samplers.KSAMPLER(one_by_one), guider_of(demo), quality
    )
    assert torch.equal(found, expected)
    if quality == "ensemble":
        assert not uncertainty.unknown and uncertainty.variance.mean() > 0
    else:
        assert "samples it in parts" in uncertainty.unknown and "'ensemble'" in uncertainty.unknown


class PastPredictions(comfy.samplers.CFGGuider):
    """Asks the network without the host's wrappers, as the guiders of some packs do."""

    def __call__(self, *args, **kwargs):
        return self.predict_noise(*args, **kwargs)


class PastAll(PastPredictions):
    """And samples without them."""

    def outer_sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        wrappers = self.model_options["transformer_options"].pop("wrappers", {})
        try:
            return super().outer_sample(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            self.model_options["transformer_options"]["wrappers"] = wrappers


@pytest.mark.parametrize("kind", [PastPredictions, PastAll])
@pytest.mark.parametrize("quality", ["no head", "draft"])
def test_a_guider_that_goes_past_the_wrappers_is_unknown(demo, demo_head, kind, quality):
    (sampler,) = KSamplerSelect.execute("euler").args
    expected, found, uncertainty = custom(demo, demo_head, sampler, guider_of(demo, kind), quality)
    assert torch.equal(found, expected)
    assert "got some that go past it" in uncertainty.unknown and uncertainty.variance.isnan().all()


@pytest.mark.parametrize("quality", QUALITIES)
def test_context_windows_over_the_batch(demo, demo_head, quality):
    windowed = (in_windows(demo[0], 2), *demo[1:])
    latent = {"samples": torch.zeros(2, 4, 16, 16)}
    expected = stock(windowed, latent, **RUN)["samples"]
    found, uncertainty, _ = sample(windowed, demo_head, latent, quality, **RUN)
    assert torch.equal(found["samples"], expected)
    assert uncertainty.unknown or uncertainty.variance.isfinite().all()


@pytest.mark.parametrize("quality", QUALITIES)
def test_patches_that_draw_random_numbers_in_every_call(demo, demo_head, quality):
    """A head whose draws change next to nothing leaves next to nothing: the patch is not counted."""
    tiled = (HyperTile.execute(demo[0], 64, 2, 1, False)[0], *demo[1:])
    latent = {"samples": torch.zeros(1, 4, 32, 32)}
    expected = stock(tiled, latent, **RUN)["samples"]
    found, uncertainty, _ = sample(tiled, demo_head, latent, quality, **RUN)
    assert torch.equal(found["samples"], expected) and not uncertainty.unknown
    if quality == "draft":
        tiny = sample(tiled, scaled(demo_head, 1e-12), latent, quality, **RUN)[1]
        assert tiny.variance.mean() < 1e-6 * uncertainty.variance.mean()


ASKED_AGAIN, DONE_AGAIN = "answers the same when it is asked again", "ends in the same image when it is done again"


@pytest.mark.parametrize(
    ("quality", "why"), [("draft", ASKED_AGAIN), ("balanced", ASKED_AGAIN), ("ensemble", DONE_AGAIN)]
)
def test_a_patch_that_remembers_its_calls_is_unknown(demo, demo_head, quality, why):
    calls = 0

    def remembers(q, k, v, extra):
        nonlocal calls
        calls += 1
        return q * (1 + 0.01 * calls), k, v

    model = demo[0].clone()
    model.set_model_attn1_patch(remembers)
    expected = stock((model, *demo[1:]), EMPTY, **RUN)["samples"]
    calls = 0
    found, uncertainty, _ = ours((model, *demo[1:]), demo_head, EMPTY, quality, **RUN)
    assert torch.equal(found["samples"], expected) and uncertainty.variance.isnan().all()
    assert why in uncertainty.unknown


class BlockCache:
    """Remembers what all blocks but the first add, and answers with that; as some packs do it for a UNet.

    Args:
        knows: whether it answers, of how far the first block's output is from that of the step it remembers, relative,
            and the number of the call.
    """

    def __init__(self, network: torch.nn.Module, knows):
        self.network, self.knows = network, knows
        self.calls, self.answered, self.sigma = 0, 0, 0.0
        self.first = self.rest = torch.empty(0)

    def call(self, model_function, args: dict) -> torch.Tensor:
        if float(args["timestep"][0]) > self.sigma:  # a new run
            self.first = torch.empty(0)
        self.sigma, self.calls, forward = float(args["timestep"][0]), self.calls + 1, self.network._forward
        self.network._forward = lambda x, *inputs, **options: self.answer(forward, x, inputs, options)
        try:
            return model_function(args["input"], args["timestep"], **args["c"])
        finally:
            del self.network._forward

    def answer(self, forward, x, inputs, options) -> torch.Tensor:
        first = self.network.input_blocks[0](x, None)
        if first.shape == self.first.shape:
            if self.knows(float((first - self.first).abs().mean() / self.first.abs().mean()), self.calls):
                self.answered += 1
                return self.network.out(first + self.rest)
        seen = []
        handle = self.network.out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        try:
            return forward(x, *inputs, **options)
        finally:
            handle.remove()
            self.first, self.rest = first, seen[0] - first


def cached(demo, knows) -> tuple[tuple, BlockCache]:
    """The demo model under a cache, and the cache."""
    model = demo[0].clone()
    cache = BlockCache(model.model.diffusion_model, knows)
    # As a function: the host copies an object with its clones.
    model.set_model_unet_function_wrapper(lambda function, args: cache.call(function, args))
    return (model, *demo[1:]), cache


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_cache_that_answers_steps_for_the_network(demo, demo_head, caplog, quality):
    """Members are followed at the steps that the network answered itself."""
    run = RUN | dict(steps=16)
    model, cache = cached(demo, lambda far, _: far < 0.15)
    expected = stock(model, EMPTY, **run)["samples"]
    answered = cache.answered
    assert answered >= 3 and not torch.equal(expected, stock(demo, EMPTY, **run)["samples"])
    found, uncertainty, _ = sample(model, demo_head, EMPTY, quality, **run)
    assert torch.equal(found["samples"], expected) and not uncertainty.unknown
    if quality != "ensemble":
        assert f"a cache on the model answered {answered} of 16 steps" in caplog.text
    if quality == "draft":
        truth = sample(model, demo_head, EMPTY, "ensemble", **run | dict(members=8))[1]
        assert 0.5 < uncertainty.variance.mean().sqrt() / truth.variance.mean().sqrt() < 2.0
        tiny = sample(model, scaled(demo_head, 1e-12), EMPTY, quality, **run)[1]
        assert tiny.variance.mean() < 1e-6 * uncertainty.variance.mean()


@pytest.mark.parametrize("quality", ["draft", "balanced"])
def test_a_cache_that_answers_members_for_the_network_is_unknown(demo, demo_head, quality):
    model, _ = cached(demo, lambda far, calls: calls % 3 == 0)
    expected = stock(model, EMPTY, **RUN)["samples"]
    model, _ = cached(demo, lambda far, calls: calls % 3 == 0)
    found, uncertainty, _ = sample(model, demo_head, EMPTY, quality, **RUN)
    assert torch.equal(found["samples"], expected)
    assert "a cache on the model that answers some for it" in uncertainty.unknown and uncertainty.variance.isnan().all()
    assert uncertainty.cost > 1, "calls count, whatever came of them"


def test_a_cache_that_answers_for_the_network_in_a_fit(demo):
    from bayesdiff.host.settings import Guidance
    from factory import fit_own_head

    (model, positive, negative, _), _ = cached(demo, lambda far, calls: True)
    with pytest.raises(ValueError, match="connect the model as it is before the cache"):
        fit_own_head(model, Guidance(positive, negative, 3.0), (4, 16, 16), 2, 4, 2)


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_patch_that_asks_the_network_about_its_own_answer(demo, demo_head, quality):
    """In its second call the network sees what a draw did to the first."""
    guided = (SelfAttentionGuidance.execute(demo[0], 0.5, 2.0).args[0], *demo[1:])
    expected = stock(guided, EMPTY, **RUN)["samples"]
    found, uncertainty, _ = sample(guided, demo_head, EMPTY, quality, **RUN)
    assert torch.equal(found["samples"], expected) and not torch.equal(expected, stock(demo, EMPTY, **RUN)["samples"])
    assert not uncertainty.unknown and uncertainty.variance.isfinite().all() and uncertainty.variance.mean() > 0


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_soft_mask_pulls_members_back_to_the_end(demo, demo_head, share):
    """As where the host takes the average of the masks of a batch of stills."""
    latent = stock(demo, {"samples": torch.zeros(1, 4, 16, 16)}, steps=8, seed=9)
    latent = latent | {"noise_mask": torch.full((1, 128, 128), share)}
    run = dict(steps=8, seed=3, members=4)
    truth = sample(demo, demo_head, latent, "ensemble", **run)[1]
    found = sample(demo, demo_head, latent, "draft", options=options(Deviations(members=4)), **run)[1]
    assert 0.6 < found.variance.mean().sqrt() / truth.variance.mean().sqrt() < 1.6


@pytest.fixture(scope="module")
def garments():
    """A rectified flow of pixels, and a head of it."""
    from bayesdiff.host.settings import Guidance
    from factory import fit_own_head
    from fashion_model import load_fashion_model

    of = load_fashion_model("bag")
    with torch.inference_mode():
        return of, fit_own_head(of[0], Guidance(of[1], of[2], 3.0), (3, 32, 32), 4, 4, 4)


@pytest.mark.parametrize("name", ["emoji", "garments"])
def test_instant_knows_how_far_a_soft_mask_pulls_back(demo, demo_head, garments, name):
    """Without that it would say three to six times as much on the one model, and five to thirty on the other."""
    (of, head), shape = ((demo, demo_head), (1, 4, 16, 16)) if name == "emoji" else (garments, (1, 3, 32, 32))
    latent = stock(of, {"samples": torch.zeros(shape)}, steps=8, seed=9)
    for share in (0.5, 0.25):
        masked = latent | {"noise_mask": torch.full((1, 8 * shape[2], 8 * shape[3]), share)}
        found, truth = (sample(of, head, masked, kind, steps=8, members=4)[2][0] for kind in ("instant", "ensemble"))
        assert 0.5 < found / truth < 2.0, share


@pytest.mark.parametrize("quality", ["no head", "instant", "draft"])
def test_a_sampler_that_leaves_noise_for_its_last_step_is_told(garments, quality, caplog):
    """In few steps Heun goes too far on a rectified flow: the ensemble varies four times as much as any estimate."""
    (of, head), latent, told = garments, {"samples": torch.zeros(2, 3, 32, 32)}, {}
    for name in ("euler", "heun"):
        caplog.clear()
        expected = stock(of, latent, steps=8, cfg=1.0, sampler_name=name)["samples"]
        found, uncertainty, _ = sample(of, head, latent, quality, steps=8, cfg=1.0, sampler_name=name)
        assert torch.equal(found["samples"], expected) and not uncertainty.unknown
        told[name] = "times the noise that this step takes away" in caplog.text
    assert told == {"euler": False, "heun": True}


def test_a_network_that_takes_one_image_a_call():
    """No call of ours has another batch than the run's, on a family whose outputs have to be placed."""
    from bayesdiff.host.fit import FitSettings, as_examples, fit_head, own_samples
    from bayesdiff.host.settings import Guidance

    family = FAMILIES["Flux"]
    model, positive, negative = family.build(), family.conditioning(1), family.conditioning(2)
    network, latent = model.model.diffusion_model, {"samples": torch.zeros(1, 16, 32, 32)}
    forward = network.forward

    def one_image(x, *args, **kwargs):
        if len(x) > 1:
            raise RuntimeError(f"this network takes one image, got {len(x)}")
        return forward(x, *args, **kwargs)

    network.forward = one_image
    guidance, flux = Guidance(positive, negative, 1.0), (model, positive, negative, None)
    data = own_samples(model, guidance, latent, 3, 2, 0)
    head = fit_head(model, as_examples(data, positive), negative, FitSettings(1.0, levels=2, own_images=2, steps=4))
    assert head.calibration is not None
    expected = stock(flux, latent, cfg=1.0, **RUN)["samples"]
    for quality in QUALITIES:
        found, uncertainty, _ = sample(flux, head, latent, quality, cfg=1.0, **RUN)
        assert torch.equal(found["samples"], expected) and not uncertainty.unknown


@pytest.mark.parametrize("quality", QUALITIES)
def test_prompts_of_unlike_length_whose_text_goes_through_the_last_layer(quality):
    from bayesdiff.host.settings import Guidance
    from factory import fit_own_head

    family = FAMILIES["Lumina 2"]
    model, positive, (tokens, options) = family.build(), family.conditioning(1), family.conditioning(2)[0]
    lumina = (model, positive, [[torch.cat([tokens, tokens[:, :5]], dim=1), options]], None)
    head = fit_own_head(model, Guidance(lumina[1], lumina[2], 3.0), family.latent[1:], 3, 2, 2)
    latent = {"samples": torch.zeros(family.latent)}
    expected = stock(lumina, latent, **RUN)["samples"]
    found, uncertainty, _ = sample(lumina, head, latent, quality, **RUN)
    assert torch.equal(found["samples"], expected)
    assert not uncertainty.unknown and uncertainty.variance.isfinite().all()


def test_a_family_that_adds_noise_to_the_pictures_of_its_prompt():
    """The host gives such a model the seed of the run; a fit is no run, and has none of its own."""
    from bayesdiff.host.settings import Guidance
    from factory import fit_own_head

    options = UNET | dict(num_classes="sequential", adm_in_channels=1536)
    family = Family("SD21UnclipL", options, "out.2", (2, 4, 8, 8), (7, 16))
    picture = Output()
    picture["image_embeds"] = torch.randn(1, 768, generator=torch.Generator().manual_seed(0))
    model, negative = family.build(), family.conditioning(2)
    (positive,) = nodes.unCLIPConditioning().apply_adm(family.conditioning(1), picture, 1.0, 0.1)
    head = fit_own_head(model, Guidance(positive, negative, 3.0), family.latent[1:], 3, 2, 2)
    unclip, latent = (model, positive, negative, None), {"samples": torch.zeros(family.latent)}
    expected = stock(unclip, latent, **RUN)["samples"]
    found, uncertainty, _ = sample(unclip, head, latent, "draft", **RUN)
    assert torch.equal(found["samples"], expected) and not uncertainty.unknown
