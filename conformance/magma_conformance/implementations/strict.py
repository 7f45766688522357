"""array-api-strict as a namespace of the core: proves that the core stays within the standard.

The standard has no half precision, so parameters are float32 here.
"""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from magma_core.optional import require

_strict = require("array_api_strict", extra="strict")

_STANDARD = (
    "abs add arange asarray astype bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor "
    "divide equal float32 full int32 int64 less logical_not max clip multiply negative "
    "permute_dims round sqrt squeeze stack subtract sum where zeros_like"
)
globals().update({name: getattr(_strict, name) for name in _STANDARD.split()})

float16 = bfloat16 = None


def bitcast(x: Any, dtype: Any, /) -> Any:
    """Reinterpret the bits as ``dtype``, the one operation that the standard lacks."""
    return _strict.asarray(np.asarray(x).view(dtype._np_dtype))


def fused(x: Any, /) -> bool:
    """False: operations run one at a time."""
    return False


def device(x: Any, /) -> Any:
    """The array's device."""
    return x.device


def scope() -> AbstractContextManager[Any]:
    """Silence NumPy's warnings: infinities and NaNs are ordinary values here."""
    return np.errstate(all="ignore")
