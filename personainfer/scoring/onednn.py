"""Linear layers in float32 by oneDNN, which torch has but uses for lower precisions only.

torch multiplies float32 matrices with MKL, whose fastest kernels are for Intel's processors; oneDNN has
some for all. It is the same product: summed in another order, not rounded more. What the
layers belong to is not known here. `benchmarks/likelihood.py --ways packing` shows what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["pack_linear_layers"]

_ROUNDING = (
    5e-4  # of the largest number; float32 is off by a tenth of it, bfloat16 by ten times as much
)
_ROWS = 128  # for which oneDNN lays out the weights; other numbers work too


def pack_linear_layers(model: Any, outcome: Callable[[], Any]) -> bool:
    """Replace the linear layers of a float32 model on a CPU; says whether it did.

    `outcome` computes something with the model. Where torch has no such operation, or the outcome
    is no longer the same within rounding, the model stays as it was.
    """
    import torch

    packed = _packed_layer()
    if packed is None:
        return False
    before = outcome()
    layers = [
        (parent, name, layer)
        for parent in list(model.modules())
        for name, layer in parent.named_children()
        if type(layer) is torch.nn.Linear and layer.weight.dtype == torch.float32
    ]
    for parent, name, layer in layers:
        setattr(parent, name, packed(layer))
    if _same(before, outcome):
        return True
    for parent, name, layer in layers:
        setattr(parent, name, layer)
    return False


def _same(before: Any, outcome: Callable[[], Any]) -> bool:
    """Whether the outcome is what it was. Some models read the weights of a layer themselves."""
    try:
        return bool((outcome() - before).abs().max() <= _ROUNDING * before.abs().max())
    except (AttributeError, RuntimeError):
        return False


def _packed_layer() -> Any:
    """The class of layers, or None: what it calls is made for torch's compiler, and may go."""
    import torch

    try:
        reorder = torch.ops.mkldnn._reorder_linear_weight
        multiply = torch.ops.mkldnn._linear_pointwise
    except (AttributeError, RuntimeError):
        return None
    if not torch.backends.mkldnn.is_available():
        return None

    class PackedLinear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, layer: torch.nn.Linear) -> None:
            super().__init__()
            self.out_features = layer.out_features
            self._weight = reorder(layer.weight.detach(), _ROWS)
            self._bias = None if layer.bias is None else layer.bias.detach()

        def forward(self, states: torch.Tensor) -> Any:
            return multiply(states, self._weight, self._bias, "none", [], "")

    return PackedLinear
