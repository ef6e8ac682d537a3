"""Work beside a sampling run: whatever fails in it, the run goes on."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

from ...bayesdiff_core.estimators.trajectory import Unknown
from .quirks import is_out_of_memory

OUT_OF_MEMORY = (
    "Expected memory for the estimate beside the sampling, got none left; sample fewer images at once, or choose the "
    "quality 'instant'."
)
FAILED = (
    "Expected to read the uncertainty of this run, but {doing} failed ({error}); the image is the stock sampler's. The "
    "log tells where: please report it."
)


class Beside:
    """Guards work beside a run.

    Attributes:
        problem: why nothing can be told of the run, in a sentence for the user; "" as long as nothing failed.
    """

    def __init__(self):
        self.problem = ""

    @contextmanager
    def guarded(self, doing: str) -> Iterator[None]:
        """Inside, everything but an interruption is stopped, and kept as the problem; the first one counts.

        Args:
            doing: what is done inside, completes "... failed".
        """
        try:
            yield
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:
            problem = problem_of(error, doing)
            if not isinstance(error, Unknown):
                # As text: a record with the error itself would hold the run alive.
                logging.warning(f"BayesDiff: {doing} failed.\n{traceback.format_exc()}")
            self.problem = self.problem or problem
            # Its frames hold the run too: a model that dies with them, in a circle, the host would count as lost.
            traceback.clear_frames(error.__traceback__)


def problem_of(error: Exception, doing: str) -> str:
    """An error of ours as a sentence for the user."""
    if isinstance(error, Unknown):
        return str(error)
    if is_out_of_memory(error):
        comfy.model_management.soft_empty_cache()
        return OUT_OF_MEMORY
    text = " ".join(str(error).split())[:200]
    return FAILED.format(doing=doing, error=f"{type(error).__name__}: {text}" if text else type(error).__name__)
