"""Counting FLOPs and live memory of code that runs on the meta device: shapes alone, no numbers, no memory.

PyTorch runs the same operations there as on a device, and frees tensors at the same moments, so the peak of what is
alive is that of its allocator but for fragmentation and the workspaces of libraries.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Kind = Literal["activations", "gradients", "half-precision copies", "gathered weights"]
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Meter(TorchDispatchMode):
    """While active, adds up FLOPs by `row` (2 for each multiplication with its addition, as PyTorch's FlopCounterMode
    counts: convolutions, matrix products, attention) and follows the bytes of tensors that are alive, by their kind.

    What was there before is not counted among the bytes.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.row = "rest"
        self.kind: Kind | None = "activations"
        """Of what is made; none is not counted."""
        self.flops: Counter[str] = Counter()
        self.messages: list[Tensor] = []
        """Of gradients, to other processes."""
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        """What was alive, by kind, when that was most."""
        self._known: dict[int, tuple[str, int, Any]] = {}
        for tensor in before:
            self._follow(tensor, None)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and importing dynamo takes longer than all that is counted

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values())

    @contextlib.contextmanager
    def counting(self, row: str) -> Iterator[None]:
        """Within, FLOPs are those of `row`."""
        before, self.row = self.row, row
        try:
            yield
        finally:
            self.row = before

    def watch(self, row: str, network: nn.Module) -> None:
        """Count the FLOPs of a network's forward passes, and of those of its direct parts, as `row`."""
        outer: list[str] = []

        def enter(module: nn.Module, inputs: Any) -> None:
            outer.append(self.row)
            if self.row != "backward":  # where activations are computed again
                self.row = row

        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self.row = outer.pop()

        for module in (network, *network.children()):
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave, always_call=True)

    def gradients_of(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of these count as such from when they are whole."""

        def whole(parameter: nn.Parameter) -> None:
            if parameter.grad is not None:
                self._rename(parameter.grad, "gradients")

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(whole)

    def messages_of(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of these are copied into what is sent to other processes, when they are whole."""

        def copied(parameter: nn.Parameter) -> None:
            before, self.kind = self.kind, "gradients"
            self.messages.append(torch.empty_like(parameter))
            self.kind = before

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(copied)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet, target = func._overloadpacket, kwargs.get("device")
        if packet is torch.ops.aten._to_copy and args[0].is_meta and target is not None and target.type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)  # as `host_value`
        out = func(*args, **kwargs)
        if packet is ATTENTION:  # the formulas of the other implementations
            self.flops[self.row] += sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape)
        elif packet is ATTENTION_BACKWARD:
            gradient, query, key, value = (tensor.shape for tensor in args[:4])
            self.flops[self.row] += sdpa_backward_flop_count(gradient, query, key, value)
        elif (formula := flop_registry.get(packet)) is not None:
            self.flops[self.row] += formula(*args, **kwargs, out_val=out)
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._follow(tensor, self.kind)
        return out

    def _follow(self, tensor: Tensor, kind: Kind | None) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            kind, size, _ = self._known.pop(place)
            self.live[kind] -= size

        self._known[place] = (kind or "before", size if kind else 0, weakref.ref(storage, freed))
        if kind:
            self.live[kind] += size
            if sum(self.live.values()) > sum(self.peak.values()):
                self.peak = self.live.copy()

    def _rename(self, tensor: Tensor, kind: Kind) -> None:
        place = tensor.untyped_storage()._cdata
        if place in self._known:
            before, size, reference = self._known[place]
            self.live[before] -= size
            self.live[kind] += size
            self._known[place] = (kind, size, reference)


LOWER = {
    *(torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, F.linear),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.mm),
    *(Tensor.bmm, Tensor.__matmul__, F.scaled_dot_product_attention),
}
"""What autocast computes in bfloat16, of what diptych's networks call (PyTorch, "CUDA ops that can autocast")."""
FLOAT32 = {
    "cpu": {F.mse_loss},
    "cuda": {
        *(F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax),
        *(F.cross_entropy, F.mse_loss, F.l1_loss, F.normalize, F.cosine_similarity, F.softplus, torch.norm),
        *(Tensor.norm, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow, torch.rsqrt, Tensor.rsqrt),
        *(torch.sum, Tensor.sum, torch.prod, Tensor.prod, torch.cumsum, Tensor.cumsum, torch.linalg.vector_norm),
    },
}
"""What it computes in float32, by the device that is planned for."""
READS = {Tensor.tolist, Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__}


class OnMeta(TorchFunctionMode):
    """While active, code that was written for a device runs on the meta device as on that one.

    - `torch.autocast("meta")` casts what it casts there, and keeps the copies of weights as long.
    - Attention is one of the fused implementations.
    - Noise of an example has a shape and no numbers, and what the host reads of a tensor is zero, or true.
    """

    def __init__(self, device: Literal["cuda", "cpu"], meter: Meter, copies: bool = True) -> None:
        """copies: whether autocast has to copy weights; those that were gathered are in bfloat16 already."""
        super().__init__()
        self.kind: Kind | None = "half-precision copies" if copies else None
        self.device, self.meter = device, meter
        self.copies: dict[int, Tensor] = {}
        """Of weights in bfloat16, as autocast keeps them."""

    def __enter__(self) -> OnMeta:
        self._autocast = torch.autocast
        torch.autocast = torch.amp.autocast = autocast_on_meta(self, self._autocast)  # type: ignore[misc, assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.autocast = torch.amp.autocast = self._autocast  # type: ignore[misc]
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS and args[0].is_meta:
            return host_value(args[0])
        if func is torch.randn and kwargs.get("generator") is not None:
            kwargs = {**kwargs, "generator": None, "device": "meta"}
        if torch.is_autocast_enabled("cpu"):  # see `autocast_on_meta`
            if func in LOWER:
                args, kwargs = (
                    self._cast(args, torch.bfloat16),
                    {k: self._cast(v, torch.bfloat16) for k, v in kwargs.items()},
                )
            elif func in FLOAT32[self.device]:
                args = self._cast(args, torch.float32)
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def within(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward pass that also is on this device where it runs in a backward pass: PyTorch leaves modes there."""

        def inside(*inputs: Any, **options: Any) -> Any:
            super(OnMeta, self).__enter__()
            try:
                return forward(*inputs, **options)
            finally:
                super(OnMeta, self).__exit__(None, None, None)

        return inside

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._cast(one, dtype) for one in value)
        wrong = isinstance(value, Tensor) and value.is_meta and value.is_floating_point() and value.dtype != dtype
        if not wrong or value.dtype == torch.float64:
            return value
        if not (dtype == torch.bfloat16 and value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.copies:
            before, self.meter.kind = self.meter.kind, self.kind
            self.copies[id(value)] = value.to(dtype)
            self.meter.kind = before
        return self.copies[id(value)]

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Flash attention; with a mask, or in float32, the memory-efficient one: as PyTorch chooses."""
        if query.ndim != 4:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device="meta")
        aten = torch.ops.aten
        if self.device == "cpu":
            if dropout_p:
                return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
            return ATTENTION(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
        if attn_mask is None and query.dtype == torch.bfloat16 and query.shape[-1] <= 256:
            short = -query.shape[-1] % 8  # it takes heads of multiples of 8
            query, key, value = (F.pad(part, (0, short)) if short else part for part in (query, key, value))
            out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
            return out[..., : out.shape[-1] - short]
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
        efficient = aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


def own_rows(shape: torch.Size, group: int) -> int:
    """Numbers of a tensor that is divided by rows which the first of so many processes has: it has most."""
    return -(-shape[0] // group) * shape[1:].numel()


def host_value(tensor: Tensor) -> Any:
    """What the host reads of a tensor on the meta device: zeros, or true."""
    kind = bool if tensor.dtype == torch.bool else float if tensor.is_floating_point() else int
    return np.full(tuple(tensor.shape), kind(tensor.dtype == torch.bool)).tolist()


def autocast_on_meta(mode: OnMeta, real: type[torch.autocast]) -> type[torch.autocast]:
    """`torch.autocast` that takes the meta device: autocast of the CPU is then on, and `OnMeta` acts by it. So it also
    holds where activations are computed again, as checkpointing restores it there."""

    class Autocast(real):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "meta" else device_type, *args, **kwargs)

        def __exit__(self, *error: Any) -> Any:
            out = super().__exit__(*error)
            if not torch.is_autocast_enabled("cpu"):
                mode.copies.clear()
            return out

    return Autocast


def peak_of(call: Callable[[], Any], network: nn.Module) -> int:
    """Bytes that are alive at the peak of a call, beside the network."""
    meter = Meter([*network.parameters(), *network.buffers()])
    with torch.no_grad(), OnMeta("cuda", meter), meter:
        kept = call()
    del kept
    return meter.peak_bytes
