"""How many blocks of a network run while a prediction is made: fewer where a cache answers for some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.utils.hooks import RemovableHandle


def blocks_of(network: torch.nn.Module) -> list[torch.nn.Module]:
    """What stands in the outermost lists of a network: its blocks. A list inside a block may hold experts."""
    if isinstance(network, torch.nn.ModuleList):
        return list(network)
    return [block for child in network.children() for block in blocks_of(child)]


class Blocks:
    """Counts the blocks of a network that run.

    Args:
        guarded: is held while our own code runs inside the network; told what it does.

    Attributes:
        most: how many different ones ran in one call of the network, of the fullest call. A prediction takes several
            calls: guidance that leaves out a block does so in one of them, a cache in all.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        guarded: Callable[[str], AbstractContextManager] = lambda doing: nullcontext(),
    ):
        self.network, self.guarded = network, guarded
        self.most, self.ran = 0, set()

    def watch(self) -> list[RemovableHandle]:
        """Count from 0 what runs until the handles are removed."""
        self.most = 0
        return [module.register_forward_pre_hook(self.see) for module in (self.network, *blocks_of(self.network))]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what runs inside, from 0."""
        handles = self.watch()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def see(self, module, inputs) -> None:
        """A forward pre-hook of the network and of its blocks."""
        if torch.compiler.is_compiling():
            return
        with self.guarded("watching the network"):
            if module is self.network:
                self.ran = set()
            else:
                self.ran.add(id(module))
                self.most = max(self.most, len(self.ran))
