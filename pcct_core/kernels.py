"""Covariance kernels, evaluated 32 pairs at a time.

Codes follow `spec.KERNELS`. With the scaled distance r = |(x - y) / lengthscale| the correlations are
exp(-r²/2) (RBF), exp(-r), (1 + √3 r) exp(-√3 r), (1 + √5 r + 5 r²/3) exp(-√5 r) (Matérn 1/2, 3/2, 5/2).
Source: Rasmussen & Williams 2006, section 4.2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.jit import inner
from pcct_core.simd import LANES

RBF, MATERN12, MATERN32, MATERN52 = 0, 1, 2, 3

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01  # its low 32 bits are zero: k * _LN2_HIGH is exact for |k| < 2^20
_LN2_LOW = 1.90821492927058770002e-10
_ROUND = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to an integer, which then stands in the low bits
_LOWEST = -708.0  # exp of it is the smallest that is still a normal number; correlations below it are 0
_ROOT3, _ROOT5 = 1.7320508075688772, 2.23606797749979

# By code: correlations as (1 + g a + h a²) exp(-(u s + a)), a = c sqrt(s), s the squared distance: u, c, g, h.
_SHAPES = ((0.5, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, _ROOT3, 1.0, 0.0), (0.0, _ROOT5, 1.0, 1.0 / 3.0))


class Scratch(NamedTuple):
    """Room for `correlate`: float64 (LANES) each; powers and bits are the same memory."""

    exponents: Any
    factors: Any
    powers: Any
    bits: Any


def kernel_shape(code: int) -> NDArray[np.float32]:
    """Return a kernel as `simd.screen_bucket` takes it, float32 (4,)."""
    return np.array(_SHAPES[code], np.float32)


@inner
def make_scratch():
    """Return scratch for `correlate`."""
    bits = np.empty(LANES, np.int64)
    return Scratch(np.empty(LANES, np.float64), np.empty(LANES, np.float64), bits.view(np.float64), bits)


@inner
def correlate(code, squared, scratch, out):
    """Write the correlations of 32 pairs from their squared scaled distances; squared, out: float64 (LANES).

    They are 0 where their exponential is below 3e-308: it is clamped there, and the factor before it grows without end.
    """
    exponents, factors = scratch.exponents, scratch.factors
    if code == RBF:
        for j in range(LANES):
            exponents[j] = -0.5 * squared[j]
            factors[j] = 1.0
    elif code == MATERN12:
        for j in range(LANES):
            exponents[j] = -np.sqrt(squared[j])
            factors[j] = 1.0
    elif code == MATERN32:
        for j in range(LANES):
            a = _ROOT3 * np.sqrt(squared[j])
            exponents[j] = -a
            factors[j] = 1.0 + a
    else:
        for j in range(LANES):
            a = _ROOT5 * np.sqrt(squared[j])
            exponents[j] = -a
            factors[j] = 1.0 + a + a * a / 3.0
    exponentiate(scratch, out)
    for j in range(LANES):
        out[j] = out[j] * factors[j] if exponents[j] >= _LOWEST else 0.0


@inner
def exponentiate(scratch, out):
    """Write exp of scratch.exponents, all ≤ 0, to out; within 1.1 units in the last place, below -708 as at -708.

    x = k ln 2 + r with |r| ≤ ln 2 / 2; exp(r) by its Taylor polynomial of degree 13, whose next term is below 2^-53
    relatively; 2^k by its bits. Written so that it vectorises, which the library's exp does not.
    """
    exponents, powers, bits = scratch.exponents, scratch.powers, scratch.bits
    for j in range(LANES):
        x = max(exponents[j], _LOWEST)
        shifted = x * _LOG2_E + _ROUND
        powers[j] = shifted
        k = shifted - _ROUND
        r = (x - k * _LN2_HIGH) - k * _LN2_LOW
        p = 1.0 / 6227020800.0
        p = p * r + 1.0 / 479001600.0
        p = p * r + 1.0 / 39916800.0
        p = p * r + 1.0 / 3628800.0
        p = p * r + 1.0 / 362880.0
        p = p * r + 1.0 / 40320.0
        p = p * r + 1.0 / 5040.0
        p = p * r + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
        p = p * r + 1.0 / 24.0
        p = p * r + 1.0 / 6.0
        p = p * r + 0.5
        out[j] = p * r * r + r + 1.0
    for j in range(LANES):
        bits[j] = (bits[j] + 1023) << 52
    for j in range(LANES):
        out[j] *= powers[j]
