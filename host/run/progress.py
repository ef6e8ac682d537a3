"""One progress bar over all network calls of a node, and the previews that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image

from ...bayesdiff_core.drawing.pillow import from_pil, to_pil
from ...bayesdiff_core.reading.maps import colour_map, normalise_map, overlay_map, resize_map
from ...bayesdiff_core.reading.uncertainty import std_of
from ..nested import parts_of
from .beside import Beside

# How much the map hides of the image in the preview, where the model is least certain.
OPACITY = 0.85


class Progress:
    """One progress bar over all network calls of a node, beside the host's own callback in the first run.

    That callback shows the preview, by whatever previewer the host or another pack has.

    A step of a sampling run counts as one call; where it takes more, the bar is set right once the run is over.

    Args:
        map_preview: whether the preview shows the growing uncertainty over the image once that is there.
        stage: which part of how many this is of what the node does, from 0; each has the same share of the bar.

    Attributes:
        runs: sampling runs to come, those that are over included.
        extra: calls to come after the runs.
    """

    def __init__(self, model: ModelPatcher, map_preview: bool = False, stage: tuple[int, int] = (0, 1)):
        self.map_preview, self.stage = map_preview, stage
        self.runs, self.extra, self.finished = 1, 0, 0
        self.denoised: torch.Tensor | None = None  # the last prediction of the first run, in model space
        self.value = self.total = self.steps = 0
        self.bar = comfy.utils.ProgressBar(self.runs)
        self.model, self.beside = model, Beside()

    def step(self, step: int, denoised: torch.Tensor, x: torch.Tensor, total_steps: int, callback) -> None:
        """A step of a run is over.

        Args:
            callback: the host's own.
        """
        self.steps = total_steps
        if self.finished == 0:
            self.denoised = denoised if self.map_preview else None
            callback(step, denoised, x, total_steps)
        else:
            with self.beside.guarded("showing the progress"):
                self.bar.update_absolute(*self.place(step + 1, total_steps))

    def call(self, done: int, before: int) -> None:
        """``done`` calls are over after the ``before`` of the sampling run, which a cache makes fewer than steps."""
        before = max(before, self.steps)
        with self.beside.guarded("showing the progress"):
            self.bar.update_absolute(*self.staged(before + done, before + max(done, self.extra)))

    def place(self, step: int, steps: int) -> tuple[int, int]:
        """Where the bar of a single run stands on that of the node."""
        return self.staged(self.finished * steps + step, self.runs * steps + self.extra)

    def staged(self, value: int, total: int) -> tuple[int, int]:
        before, stages = self.stage
        self.value, self.total = before * total + value, stages * total
        return self.value, self.total

    @contextmanager
    def scaling(self) -> Iterator[None]:
        """Bars that the host makes inside stand on that of the node, previews and all."""
        hook = comfy.utils.PROGRESS_BAR_HOOK
        if hook is None:
            yield
            return

        def scaled(value, total, *others, **named):
            return hook(*self.place(value, total), *others, **named)

        comfy.utils.set_progress_bar_global_hook(scaled)
        try:
            yield
        finally:
            comfy.utils.set_progress_bar_global_hook(hook)

    def show(self, variance: torch.Tensor) -> None:
        """Show the uncertainty so far, if that was asked for, over the last preview of the first image."""
        if self.map_preview and variance.ndim in (4, 5):
            with self.beside.guarded("showing the map"):
                self.show_map(variance)

    def preview(self) -> Image.Image | None:
        """The host's picture of the last prediction, by whatever previewer it has; None without one."""
        previewer = latent_preview.get_previewer(self.model.load_device, self.model.model.latent_format)
        # Older hosts tell of a nested latent as they pack it, of which there is no picture.
        denoised = None if self.denoised is None else parts_of(self.denoised)[0]
        if previewer is None or denoised is None or denoised.ndim not in (4, 5):
            return None
        shown = previewer.decode_latent_to_preview_image("JPEG", denoised)
        return shown[1] if isinstance(shown, tuple) else None  # other packs' previewers may send theirs by themselves

    def show_map(self, variance: torch.Tensor) -> None:
        values = std_of(variance[:1] if variance.ndim == 4 else variance[:1, :, 0])
        size = latent_preview.MAX_PREVIEW_RESOLUTION
        below = self.preview()
        if below is None:
            scale = size / max(values.shape[1:])
            heat = colour_map(normalise_map(values, True))[0]
            image = to_pil(heat).resize((round(values.shape[2] * scale), round(values.shape[1] * scale)))
        else:
            frame = from_pil(below)[None]
            values = normalise_map(resize_map(values, *frame.shape[1:3]), True)
            image = to_pil(overlay_map(frame, values, OPACITY)[0])
        self.bar.update_absolute(self.value, self.total, ("JPEG", image, size))
