"""One progress bar over all network calls of a node, and the previews that it shows."""

from __future__ import annotations

import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image

from ...bayesdiff_core.drawing.pillow import from_pil, to_pil
from ...bayesdiff_core.reading.maps import colour_map, normalise_map, overlay_map, resize_map
from ...bayesdiff_core.reading.uncertainty import std_of

# How much the map hides of the image in the preview, where the model is least certain.
OPACITY = 0.85


class Progress:
    """One progress bar over all network calls of a node, with the host's own latent preview in the first run.

    A step of a sampling run counts as one call; where it takes more, the bar is set right once the run is over.

    Args:
        map_preview: whether the preview shows the growing uncertainty over the image once that is there.
        stage: which part of how many this is of what the node does, from 0; each has the same share of the bar.

    Attributes:
        runs: sampling runs to come, those that are over included.
        extra: calls to come after the runs.
        denoised: what the sampler last predicted in the first run, in model space.
    """

    def __init__(self, model: ModelPatcher, map_preview: bool = False, stage: tuple[int, int] = (0, 1)):
        self.map_preview, self.stage = map_preview, stage
        self.runs, self.extra, self.finished = 1, 0, 0
        self.denoised: torch.Tensor | None = None
        self.image: Image.Image | None = None  # the host's preview of it
        self.value = self.total = self.steps = 0
        self.bar = comfy.utils.ProgressBar(self.runs)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def step(self, step: int, denoised: torch.Tensor, total_steps: int) -> None:
        """A step of a run is over."""
        preview = None
        if self.finished == 0:
            self.denoised = denoised
            if self.previewer:
                preview = self.previewer.decode_latent_to_preview_image("JPEG", denoised)
                self.image = preview[1]
        self.steps = total_steps
        done = self.finished * total_steps + step + 1
        self.update(done, self.runs * total_steps + self.extra, preview)

    def call(self, done: int, before: int) -> None:
        """``done`` calls are over after the ``before`` of the sampling run, which a cache makes fewer than steps."""
        before = max(before, self.steps)
        self.update(before + done, before + max(done, self.extra))

    def update(self, value: int, total: int, preview=None) -> None:
        before, stages = self.stage
        self.value, self.total = before * total + value, stages * total
        self.bar.update_absolute(self.value, self.total, preview)

    def show(self, variance: torch.Tensor) -> None:
        """Show the uncertainty so far, if that was asked for, over the last preview of the first image."""
        if not self.map_preview or variance.ndim not in (4, 5):
            return
        values = std_of(variance[:1] if variance.ndim == 4 else variance[:1, :, 0])
        size = latent_preview.MAX_PREVIEW_RESOLUTION
        if self.image is None:
            scale = size / max(values.shape[1:])
            heat = colour_map(normalise_map(values, True))[0]
            image = to_pil(heat).resize((round(values.shape[2] * scale), round(values.shape[1] * scale)))
        else:
            frame = from_pil(self.image)[None]
            values = normalise_map(resize_map(values, *frame.shape[1:3]), True)
            image = to_pil(overlay_map(frame, values, OPACITY)[0])
        self.bar.update_absolute(self.value, self.total, ("JPEG", image, size))
