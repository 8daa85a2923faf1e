"""bfloat16 in numpy, which has no such type: the upper half of a float32, kept as its 16 bits in a uint16.

float32  s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
bfloat16 s eeeeeeee mmmmmmm                      rounded to the nearest, ties to even
"""

from typing import Final

import numpy as np
from jaxtyping import Float32, UInt16

NAME: Final = "bfloat16"
NAN_BITS: Final = 0x7FC0
"""The quiet NaN that torch writes."""


def to_float32(bits: UInt16[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Return the numbers that the bits stand for; exact."""
    wide = bits.astype("<u4")
    wide <<= 16
    return wide.view("<f4")


def from_float32(values: Float32[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Return the bits of the nearest bfloat16 of each number."""
    wide = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    tie = (wide >> 16) & 1
    bits = ((wide + (0x7FFF + tie)) >> 16).astype("<u2")  # a NaN may overflow here, and is set below
    bits[np.isnan(values)] = NAN_BITS
    return bits
