"""Gradients of several processes, summed while the backward pass still makes more of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 2**23
"""Numbers a message: 32 MiB in float32."""


class GradientSum:
    """Sums the `.grad` of parameters over all processes, in buckets, each as soon as its gradients are there (Li et al.
    2020, "PyTorch Distributed", section 3.2.3).

    A backward pass ends at the first layers, so buckets are filled from the last parameter on; from the second step,
    those that got no gradient in the first come at the end. All processes send buckets in the same order. Call `begin`
    before the last backward pass of a step, and `finish` after it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self.parameters, self.device = list(parameters), device
        self.buckets: list[list[nn.Parameter]] = []
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._waited_for: list[set[int]] = []
        self._begun = self._arranged = False
        self.arrange([])
        for p in self.parameters:
            p.register_post_accumulate_grad_hook(self._made)

    def arrange(self, unused: Sequence[nn.Parameter]) -> None:
        """Fill the buckets: those which are waited for in vain come last, where they hold up no others."""
        idle = {id(p) for p in unused}
        from_the_last = [p for p in reversed(self.parameters) if id(p) not in idle]
        self.buckets, size = [], 0
        for p in [*from_the_last, *unused]:
            if not self.buckets or size + p.numel() > BUCKET or p.dtype != self.buckets[-1][-1].dtype:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(p)
            size += p.numel()
        self._bucket_of = {id(p): number for number, bucket in enumerate(self.buckets) for p in bucket}

    def begin(self) -> None:
        """From here on a gradient is whole when it is made."""
        self._waited_for, self._begun = [{id(p) for p in bucket} for bucket in self.buckets], True

    def _made(self, p: Tensor) -> None:
        """Send what can be sent, now that this parameter has its gradient."""
        if not self._begun:  # a part of a step that is not its last: more will be added
            return
        self._waited_for[self._bucket_of[id(p)]].discard(id(p))
        while len(self._sent) < len(self.buckets) and not self._waited_for[len(self._sent)]:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        """Begin to sum the next bucket; a parameter without a gradient counts as zero."""
        bucket = self.buckets[len(self._sent)]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._sent.append((work, flat))

    @torch.no_grad()
    def finish(self, extras: Tensor) -> Tensor:
        """Put the sums in place, and return the sum of `extras` (N,) over the processes.

        A parameter that got no gradient anywhere keeps None; one that got it somewhere counts as zero elsewhere. Only a
        process that lacks a gradient waits for the device, to learn which of the two it is.
        """
        while len(self._sent) < len(self.buckets):  # those with gradients that were not made, here or in this part
            self._send()
        lacking = [number for number, p in enumerate(self.parameters) if p.grad is None]
        used = torch.ones(len(self.parameters), device=self.device)
        if lacking:
            used[lacking] = 0
        message = torch.cat([extras.float(), used])
        dist.all_reduce(message)
        extras, used = message.split([len(extras), len(used)])
        if lacking:
            for number, count in zip(lacking, used[lacking].tolist(), strict=True):
                if count:
                    self.parameters[number].grad = torch.empty_like(self.parameters[number])
        for bucket, (work, flat) in zip(self.buckets, self._sent, strict=True):
            work.wait()
            for p, chunk in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                if p.grad is not None:
                    p.grad.copy_(chunk.view_as(p))
        self._sent, self._begun = [], False
        if not self._arranged:  # after the first step, which waits for the device in any case
            counts = used.tolist()
            self.arrange([p for p, count in zip(self.parameters, counts, strict=True) if not count])
            self._arranged = True
        return extras
