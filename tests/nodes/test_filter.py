"""The filter node on batches in the host's own formats."""

from __future__ import annotations

import math

import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.reading.grid import LatentGrid
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty
from bayesdiff.nodes.filter import (
    AS_BEFORE,
    BEST_FIRST,
    DROP_FRACTION,
    DROP_OUTLIERS,
    KEEP_BEST,
    THRESHOLD,
    FilterByUncertainty,
)
from comfy_execution.graph_utils import ExecutionBlocker

SCORES = [0.4, 0.1, math.nan, 0.3]
COUNT = len(SCORES)
NAMES = [output.id for output in FilterByUncertainty.define_schema().outputs]


def ramp(*shape: int, count: int = COUNT) -> torch.Tensor:
    """A batch whose every element is the number of its image."""
    return torch.arange(float(count)).reshape(-1, *[1] * len(shape)).expand(count, *shape)


def split(rule=KEEP_BEST, keep=2, fraction=0.5, deviations=1.0, threshold=0.3, order=BEST_FIRST, **given) -> dict:
    """Outputs of the node by name; single batches are given as the host gives them, in lists of one."""
    given = {name: value if name == "scores" else [value] for name, value in given.items()}
    output = FilterByUncertainty.execute(
        [rule], [keep], [fraction], [deviations], [threshold], [order], **({"scores": SCORES} | given)
    )
    return dict(zip(NAMES, output.args))


def blocked(value) -> bool:
    return isinstance(value, ExecutionBlocker)


def test_everything_connected_is_split_alike():
    uncertainty = Uncertainty(
        ramp(4, 2, 2).square(), ramp(4, 2, 2), LatentGrid(8), "ensemble", 2, {}, 3.0, ramp(4, 2, 2)[None]
    )
    positive = [
        [ramp(5, 6), {"pooled_output": ramp(7), "mask": ramp(16, 16), "strength": 1.0}],
        [torch.ones(1, 5, 6), {}],
    ]
    latent = {"samples": ramp(4, 2, 2), "noise_mask": ramp(16, 16), "batch_index": [10, 11, 12, 13], "other": "kept"}
    found = split(
        uncertainty=uncertainty, latent=latent, images=ramp(16, 16, 3) / 4, masks=ramp(16, 16), positive=positive,
        negative=[[torch.zeros(1, 5, 6), {"pooled_output": torch.zeros(1, 7)}]],
    )  # fmt: skip
    for side, index in (("kept", [1, 3]), ("dropped", [0, 2])):
        expected = [float(i) for i in index]
        assert found[f"{side}_scores"] == pytest.approx([SCORES[i] for i in index], nan_ok=True)
        chosen = found[f"{side}_latent"]
        assert chosen["samples"][:, 0, 0, 0].tolist() == chosen["noise_mask"][:, 0, 0].tolist() == expected
        assert chosen["batch_index"] == [10 + i for i in index] and chosen["other"] == "kept"
        assert (
            (4 * found[f"{side}_images"])[:, 0, 0, 0].tolist() == found[f"{side}_masks"][:, 0, 0].tolist() == expected
        )
        assert found[f"{side}_uncertainty"].latent[:, 0, 0, 0].tolist() == expected
        tokens, options = found[f"{side}_positive"][0]
        assert tokens[:, 0, 0].tolist() == options["pooled_output"][:, 0].tolist() == expected
        assert options["mask"][:, 0, 0].tolist() == expected and options["strength"] == 1.0
        assert len(found[f"{side}_positive"][1][0]) == 1 and len(found[f"{side}_negative"][0][0]) == 1
    assert latent["batch_index"] == [10, 11, 12, 13] and len(latent["samples"]) == COUNT, "the input stays as it was"
    assert "Kept 2 of 4: 1 (0.1), 3 (0.3)" in found["report"] and "1 of the scores are not numbers" in found["report"]


def test_masks_of_one_serve_all_and_those_of_fewer_repeat():
    latent = {"samples": ramp(4, 2, 2), "noise_mask": torch.ones(1, 16, 16)}
    found = split(latent=latent, masks=torch.ones(16, 16))
    assert len(found["kept_latent"]["noise_mask"]) == 1 and found["kept_masks"].shape == (2, 16, 16)
    found = split(latent=latent | {"noise_mask": ramp(1, 16, 16, count=2)}, keep=3)
    assert found["kept_latent"]["noise_mask"][:, 0, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_kept_latents_get_the_noise_that_they_had(demo):
    """Without batch_index the numbers of the batch are set, as the host's own node does it."""
    model, positive, negative, _ = demo
    with torch.inference_mode():
        settings = (model, 5, 2, 3.0, "euler", "normal", positive, negative)
        batch = nodes.common_ksampler(*settings, {"samples": torch.zeros(COUNT, 4, 16, 16)})[0]
        kept = split(latent=batch)["kept_latent"]
        again = nodes.common_ksampler(*settings, kept | {"samples": torch.zeros(2, 4, 16, 16)})[0]
    assert torch.allclose(again["samples"], batch["samples"][[1, 3]], atol=1e-4)


@pytest.mark.parametrize("rule", [KEEP_BEST, DROP_FRACTION, DROP_OUTLIERS, THRESHOLD])
def test_every_rule(rule):
    """Mean and deviation of 0.4, 0.1 and 0.3 are 0.267 and 0.125."""
    found = split(rule, images=ramp(8, 8, 3) / 4)
    assert (4 * found["kept_images"][:, 0, 0, 0]).tolist() == [1, 3]
    assert (4 * found["dropped_images"][:, 0, 0, 0]).tolist() == [0, 2]


def test_the_order_of_the_batch_can_stay():
    found = split(keep=3, order=AS_BEFORE, images=ramp(8, 8, 3) / 4)
    assert (4 * found["kept_images"][:, 0, 0, 0]).tolist() == [0, 1, 3]
    found = split(keep=3, images=ramp(8, 8, 3) / 4)
    assert (4 * found["kept_images"][:, 0, 0, 0]).tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    ("keep", "empty", "full"), [(0, "kept", "dropped"), (4, "dropped", "kept"), (99, "dropped", "kept")]
)
def test_an_empty_side_blocks_what_comes_after_it(keep, empty, full):
    found = split(keep=keep, images=ramp(8, 8, 3) / 4, latent={"samples": ramp(4, 2, 2)})
    for kind in ("images", "latent", "scores"):
        assert blocked(found[f"{empty}_{kind}"]) and found[f"{empty}_{kind}"].message is None
    assert len(found[f"{full}_images"]) == COUNT and len(found[f"{full}_scores"]) == COUNT
    assert "Expected the input masks for the output masks" in found[f"{full}_masks"].message
    assert found["contact_sheet"].ndim == 4


@pytest.mark.parametrize("rule", [KEEP_BEST, DROP_FRACTION, DROP_OUTLIERS, THRESHOLD])
@pytest.mark.parametrize("score", [0.2, math.nan])
def test_a_batch_of_one(rule, score):
    found = split(rule, keep=1, fraction=0.1, scores=[score], images=torch.ones(1, 8, 8, 3))
    assert blocked(found["dropped_images"]) and not blocked(found["kept_images"])


def test_an_uncertainty_is_scored_where_there_are_no_scores():
    variance = torch.tensor([4.0, 1.0, 9.0]).reshape(3, 1, 1, 1).expand(3, 4, 2, 2)
    uncertainty = Uncertainty(
        variance, variance, LatentGrid(8), "ensemble", 2, {}, 3.0, torch.empty(0, *variance.shape)
    )
    found = split(scores=None, uncertainty=uncertainty)
    assert found["kept_scores"] == pytest.approx([1.0, 2.0]) and found["kept_uncertainty"].deviations.shape[1] == 2


def test_wrong_batches_are_one_sentence():
    with pytest.raises(ValueError, match="Expected 4 in the batch at the input images, one per score, got 3"):
        split(images=ramp(8, 8, 3, count=3))
    with pytest.raises(ValueError, match="Expected 4 in the batch at the input masks, one per score, got 2"):
        split(masks=ramp(8, 8, count=2))
    with pytest.raises(ValueError, match="Expected scores or an uncertainty to rank by, got neither"):
        split(scores=None)
    with pytest.raises(ValueError, match="Expected parts of one size and kind in the list at the input images, got"):
        FilterByUncertainty.execute(
            [KEEP_BEST], [1], [0.5], [1.0], [1.0], [BEST_FIRST], SCORES,
            images=[ramp(8, 8, 3, count=2), ramp(8, 4, 3, count=2)],
        )  # fmt: skip


def test_a_list_of_batches_is_joined():
    """What the host makes of a list of runs."""
    parts = [{"samples": torch.full((2, 4, 2, 2), float(i)), "batch_index": [2 * i, 2 * i + 1]} for i in range(2)]
    kept = FilterByUncertainty.execute(
        [KEEP_BEST], [1], [0.5], [1.0], [1.0], [BEST_FIRST], SCORES, latent=parts,
        images=[ramp(8, 8, 3, count=2), ramp(8, 8, 3, count=2)],
    ).args  # fmt: skip
    best = min(range(4), key=SCORES.__getitem__)
    assert kept[0]["batch_index"] == [best] and float(kept[0]["samples"].mean()) == best // 2


def test_of_unknown_scores_all_are_kept():
    found = split(THRESHOLD, scores=[math.nan] * COUNT, images=ramp(8, 8, 3) / 4)
    assert "all are kept" in found["report"] and len(found["kept_images"]) == COUNT
