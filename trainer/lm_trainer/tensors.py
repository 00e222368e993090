"""The tensors of checkpoints and estimated models: torch's, or numpy's arrays where torch is not installed.

n-grams are estimated, kept and exported without torch; networks need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

try:
    import torch
except ModuleNotFoundError:
    torch = None  # type: ignore[assignment]

HAS_TORCH = torch is not None
TENSORS: tuple[type, ...] = (torch.Tensor,) if HAS_TORCH else (np.ndarray,)
"""The types of tensors here."""


def tensor_of(array: NDArray[Any]) -> Tensor:
    """An array as a tensor, which shares its memory."""
    return torch.from_numpy(array) if HAS_TORCH else cast("Tensor", np.asarray(array))


def array_of(tensor: Tensor) -> NDArray[Any]:
    """A tensor on the CPU as an array, which shares its memory."""
    return tensor.numpy() if HAS_TORCH else cast("NDArray[Any]", tensor)


def thread_count() -> int:
    """The number of torch's threads."""
    return torch.get_num_threads() if HAS_TORCH else 1


def set_thread_count(number: int) -> None:
    """Let torch have this number of threads."""
    if HAS_TORCH:
        torch.set_num_threads(number)
