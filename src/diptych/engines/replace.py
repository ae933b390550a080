"""Another way to run a method of one module: put in its place on the instance, and taken away again."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Part:
    """A method of a network, tensors in, one tensor out, the first axis of each being the batch.

    name: as a message calls it: `U-Net`, `decoder`.
    """

    def __init__(self, module: nn.Module, method: str, name: str, *, held: bool = True) -> None:
        """held: whether it keeps the network alive, which what the network itself holds should not: such circles stay
        in memory until Python looks for them."""
        self.method, self.name = method, name
        self._held, self._module = module if held else None, weakref.ref(module)

    @property
    def module(self) -> nn.Module:
        module = self._module()
        assert module is not None, "a part is used after its network"
        return module

    def loose(self) -> Part:
        """The same, which does not keep its network alive."""
        return Part(self.module, self.method, self.name, held=False)

    def __reduce__(self) -> Any:
        return _part, (self.module, self.method, self.name, self._held is not None)

    def eager(self, *args: Any, **kwargs: Any) -> Tensor:
        """The method itself, as its class has it."""
        return getattr(type(self.module), self.method)(self.module, *args, **kwargs)


def _part(module: nn.Module, method: str, name: str, held: bool) -> Part:
    return Part(module, method, name, held=held)


class Runner:
    """Stands in the place of a part's method, for calls whose result is all that is asked.

    Gradients, training, autocast and what follows the operations of PyTorch (`observed`) are left to the method itself.
    Subclasses define `run`; `Unfit` raised there leaves a call to the method too.
    """

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        module = self.part.module
        eager = module.training or torch.is_grad_enabled() or any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
        if not eager and not observed():
            try:
                return self.run(*args, **kwargs)
            except Unfit:
                pass
        return self.part.eager(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def again(self, part: Part) -> Runner:
        """The same for another part: a copy of the module has a runner of its own."""
        return type(self)(part)

    def __deepcopy__(self, memo: dict[int, Any]) -> Runner:
        return self.again(Part(copy.deepcopy(self.part.module, memo), self.part.method, self.part.name).loose())


def observed() -> bool:
    """Whether something follows the operations of PyTorch that a call makes: a trace, a compiler, a count of them (any
    dispatch mode), a transform such as `torch.func.vmap`."""
    inside: Any = torch._C  # whose stubs do not have all
    modes, transforms = inside._len_torch_dispatch_stack(), inside._functorch.peek_interpreter_stack()
    return modes > 0 or transforms is not None or inside._is_tracing() or torch.compiler.is_compiling()


TOKENS = 16


def pad_context(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a network, a `context` with a mask padded to a multiple of `TOKENS` tokens, which are not attended
    to: so that prompts of many lengths have few shapes."""
    if "context" not in named or "context_mask" not in named:
        return named
    behind = -named["context"].shape[1] % TOKENS
    context = nn.functional.pad(named["context"], (0, 0, 0, behind))
    return {**named, "context": context, "context_mask": nn.functional.pad(named["context_mask"], (0, behind))}


class Unfit(Exception):
    """Inputs that a runner is not for."""


def replace(part: Part, runner: Callable[..., Tensor]) -> None:
    """Have a runner answer in the place of a part's method."""
    if isinstance(runner, Runner):
        runner.part = runner.part.loose()
    vars(part.module)[part.method] = runner


def restore(part: Part) -> None:
    """Have the method answer itself again."""
    vars(part.module).pop(part.method, None)
