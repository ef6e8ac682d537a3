"""What benchmarks measure: time, memory, network calls, agreement of maps, and a control that needs no network."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import psutil
import torch


class PeakMemory:
    """Peak of this process's memory within a ``with`` block, above what it was before, in MiB (``mib``).

    On a GPU the peak of the allocator, otherwise the process's resident memory, looked at every millisecond.
    """

    def __enter__(self) -> PeakMemory:
        self.process, self.mib, self.done = psutil.Process(), 0.0, threading.Event()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = self.process.memory_info().rss
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.001):
            self.mib = max(self.mib, (self.process.memory_info().rss - self.before) / 2**20)

    def __exit__(self, *_) -> None:
        if torch.cuda.is_available():
            self.mib = (torch.cuda.max_memory_allocated() - self.before) / 2**20
        else:
            self.done.set()
            self.thread.join()


def measure(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median milliseconds of ``repeats`` calls after one that warms up, and the peak of memory in MiB."""
    function()
    times = []
    with PeakMemory() as memory:
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), memory.mib


def count_calls(layer, function: Callable[[], object]) -> tuple[int, object]:
    """How often ``function`` called the network that ends in ``layer``, and what it returned."""
    calls = 0

    def count(features):
        nonlocal calls
        calls += 1

    with layer.watched(count):
        found = function()
    return calls, found


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Rank correlation of maps ``(n, ...)``, averaged over n."""
    ranks = [values.flatten(1).argsort(1).argsort(1).double() for values in (a, b)]
    centred = [values - values.mean(1, keepdim=True) for values in ranks]
    return float(torch.nn.functional.cosine_similarity(*centred).mean())


def gradient_energy(latent: torch.Tensor) -> torch.Tensor:
    """Mean square of the differences to the right and lower neighbour, ``(n, h, w)``; edges repeat.

    The control: a map that knows texture and edges alone.
    """
    padded = torch.nn.functional.pad(latent, (0, 1, 0, 1), mode="replicate")
    right, down = padded[..., :-1, 1:] - latent, padded[..., 1:, :-1] - latent
    return (right.square() + down.square()).mean(1)
