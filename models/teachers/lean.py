"""Classes of transformers, imported without what no teacher uses.

A model's module brings ``torch.distributed.tensor`` for models that are cut over several devices, FlexAttention, and
the tracer of ``torch.compile`` with sympy and Triton for decorators and for one kind of attention mask: most of the
time until a worker is at work. They are left out here. The tracer is imported in the moment in which somebody uses it;
transformers' own sharding and its FlexAttention are not to be had in a process that imports its models in this way
first. Where they have been imported before, nothing is left out.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_TRACER = "torch._dynamo"
_MASKS = "torch._dynamo._trace_wrapped_higher_order_op"


def transformers_class(module: str, name: str) -> Any:
    """A class of ``transformers.<module>``."""
    with _lean():
        return getattr(import_module(f"transformers.{module}"), name)


@contextmanager
def meta_norms() -> Iterator[None]:
    """Let `weight_norm` be put on a module on the meta device without torch's Python reference of a norm, which imports
    the tracer: there is nothing to compute but the norm's shape."""

    def norm_except_dim(v: Tensor, _: int, dim: int) -> Tensor:
        return v.new_empty([size if index == dim % v.ndim else 1 for index, size in enumerate(v.shape)])

    with _set(torch, "norm_except_dim", norm_except_dim):
        yield


class _Later(ModuleType):
    """Stands for a module until something of it is used that is not among the few things it can do without it."""

    def __getattr__(self, name: str) -> Any:
        # Python asks every module for its file and the like; a package has a path, by which its modules are found.
        if name.startswith("__") and (self.__name__, name) != (_TRACER, "__path__"):
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(import_module(self.__name__), name)


@contextmanager
def _lean() -> Iterator[None]:
    if "transformers.modeling_utils" in sys.modules or _TRACER in sys.modules:
        yield
        return
    questions = import_module("transformers.utils.import_utils")
    with _set(torch.distributed, "is_available", lambda: False):
        _ask_once(questions, "is_torch_distributed_available")
    with _set(questions, "get_torch_version", lambda: "2.0"):
        _ask_once(questions, "is_torch_flex_attn_available")
    tracer, masks = _Later(_TRACER), _Later(_MASKS)
    for decorator in ("assume_constant_result", "allow_in_graph", "disable"):
        setattr(tracer, decorator, _unmarked)
    masks.TransformGetItemToIndex = lambda: import_module(_MASKS).TransformGetItemToIndex()  # type: ignore[attr-defined]
    sys.modules |= {_TRACER: tracer, _MASKS: masks}
    try:
        yield
    finally:
        _remove_stand_ins()


def _remove_stand_ins() -> None:
    for name in (_TRACER, _MASKS):
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """For decorators that tell the tracer what to do with a function: of 8-bit weights and of text generation on GPUs,
    which no teacher has."""
    return _unmarked if function is None else function


@contextmanager
def _set(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _ask_once(questions: ModuleType, name: str) -> None:
    """transformers remembers the answers to its questions about what is installed."""
    getattr(questions, name)()
