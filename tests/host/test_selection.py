"""What belongs to an image goes with it: one selector for latents, prompts, and all that is in them."""

from __future__ import annotations

import comfy.controlnet
import nodes
import pytest
import torch
from bayesdiff.host.conditioning import join_conditionings, select_conditioning
from bayesdiff.host.selection import join_latents, select_latent
from bayesdiff.nodes.best_of_n import KSamplerBestOfN
from comfy.clip_vision import Output
from running import in_windows, stock

RUN = dict(steps=3, cfg=3.0, sampler_name="euler", scheduler="normal")
IMAGES = 4


pytestmark = pytest.mark.usefixtures("inference_mode")


class MeanOfHint(torch.nn.Module):
    """A control network that adds the mean of each hint to the middle of the model."""

    dtype = torch.float32

    def forward(self, x, hint, timesteps, context, **_):
        return {"middle": [hint.mean((1, 2, 3))[:, None, None, None]]}


def with_hints(demo, hints: torch.Tensor) -> tuple:
    """The demo model under a ControlNet of the host's own class."""
    model, positive, negative, vae = demo
    network = comfy.controlnet.ControlNet(
        MeanOfHint(), load_device=model.load_device, manual_cast_dtype=None, extra_conds=[]
    )
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    return model, *apply(positive, negative, network, hints, 1.0, 0.0, 1.0), vae


@pytest.fixture(scope="module")
def controlled(demo):
    hints = torch.linspace(-2, 2, IMAGES)[:, None, None, None].expand(IMAGES, 128, 128, 3).clone()
    return with_hints(demo, hints)


def hints_of(conditioning: list) -> list[float]:
    return [round(float(hint.mean()), 3) for hint in conditioning[0][1]["control"].cond_hint_original]


def test_a_hint_goes_with_its_image(controlled):
    _, positive, negative, _ = controlled
    given = hints_of(positive)
    copies: dict = {}
    chosen, other = (select_conditioning(prompt, [3, 1], IMAGES, copies) for prompt in (positive, negative))
    assert hints_of(chosen) == [given[3], given[1]] and hints_of(positive) == given
    # One ControlNet for both prompts, as the host wants it to ask about both at once.
    assert chosen[0][1]["control"] is other[0][1]["control"]


def test_best_of_n_gives_each_candidate_its_own_hint(controlled):
    """Each kept image is the stock sampler's of that candidate with its hint."""
    model, positive, negative, _ = controlled
    empty = {"samples": torch.zeros(IMAGES, 4, 16, 16)}
    expected = stock(controlled, empty, seed=3, **RUN)["samples"]
    latent = KSamplerBestOfN.execute(
        model=model, positive=positive, negative=negative, **RUN, seed=3, latent_image=empty, denoise=1.0,
        candidates=IMAGES, keep=IMAGES, share=0.7, quality="quick", batch_size=IMAGES, score_finished=False,
    ).args[0]  # fmt: skip
    for found, number in zip(latent["samples"], latent["batch_index"]):
        assert torch.allclose(found, expected[number], atol=1e-3), number


def test_best_of_n_tears_no_clip_apart(demo):
    model = in_windows(demo[0], 4)
    with pytest.raises(ValueError, match="Expected a model that samples each image of a batch by itself, got context"):
        KSamplerBestOfN.execute(
            model=model, positive=demo[1], negative=demo[2], **RUN, seed=3, denoise=1.0, candidates=4, keep=2,
            latent_image={"samples": torch.zeros(4, 4, 16, 16)}, share=0.7, quality="quick", batch_size=1,
            score_finished=False,
        )  # fmt: skip


def test_all_that_a_prompt_holds_for_each_image_is_chosen():
    rows = torch.arange(IMAGES).float()
    vision = Output()
    vision["image_embeds"], vision["note"] = rows[:, None], "kept"
    options = {
        "pooled_output": rows[:, None],
        "reference_latents": [rows[:, None, None, None], torch.ones(1, 4, 2, 2)],
        "mask": rows[:, None, None],
        "clip_vision_output": vision,
        "strength": 0.5,
        "area": (8, 8, 0, 0),
    }
    ((tokens, chosen),) = select_conditioning([[None, options]], [2, 0], IMAGES)
    assert tokens is None and chosen["strength"] == 0.5 and chosen["area"] == (8, 8, 0, 0)
    for found in (chosen["pooled_output"], chosen["mask"], chosen["reference_latents"][0]):
        assert found.flatten().tolist() == [2.0, 0.0]
    assert chosen["reference_latents"][1].shape == (1, 4, 2, 2)
    assert chosen["clip_vision_output"]["image_embeds"].flatten().tolist() == [2.0, 0.0]
    assert vision["image_embeds"].flatten().tolist() == rows.tolist()


@pytest.mark.parametrize(
    "shape", [None, (16, 16), (1, 16, 16), (4, 16, 16), (4, 1, 16, 16), (1, 1, 16, 16), (2, 16, 16), (3, 16, 16)]
)
def test_masks_of_any_shape_stay_with_their_images(demo, shape):
    """Two of four images, as the stock sampler inpaints all four."""
    start = stock(demo, {"samples": torch.zeros(IMAGES, 4, 16, 16)}, seed=1, **RUN)
    mask = None if shape is None else torch.rand(shape, generator=torch.Generator().manual_seed(0)).round()
    latent = start | {"noise_mask": mask}
    expected = stock(demo, latent, seed=3, denoise=0.6, **RUN)["samples"]
    chosen = select_latent(latent, [3, 1])
    assert chosen["batch_index"] == [3, 1]
    found = stock(demo, chosen, seed=3, denoise=0.6, **RUN)["samples"]
    assert torch.allclose(found, expected[[3, 1]], atol=1e-3)
    parts = [select_latent(latent, [0, 1]), select_latent(latent, [2, 3])]
    joined = stock(demo, join_latents(parts), seed=3, denoise=0.6, **RUN)["samples"]
    assert torch.allclose(joined, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(4, 1, 1, 4, 4), (4, 4, 4), (1, 1, 1, 4, 4)])
def test_masks_of_stills_of_a_video_family(shape):
    mask = torch.arange(len(torch.empty(shape))).float().reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    latent = {"samples": torch.zeros(4, 16, 1, 8, 8), "noise_mask": mask}
    chosen = select_latent(latent, [2, 0])["noise_mask"]
    wanted = [2.0, 0.0] if len(mask) == 4 else [0.0]
    assert chosen.flatten(1)[:, 0].tolist() == wanted


def test_prompts_of_parts_are_joined():
    one, two = ([[torch.full((1, 3, 2), value), {"pooled_output": torch.full((1, 2), value)}]] for value in (1.0, 2.0))
    ((tokens, options),) = join_conditionings([one, two], [2, 1])
    assert tokens[:, 0, 0].tolist() == [1.0, 1.0, 2.0] and options["pooled_output"][:, 0].tolist() == [1.0, 1.0, 2.0]
