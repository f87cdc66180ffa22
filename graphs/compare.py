"""How far outputs are from a reference: the three figures that every check and table here uses."""
from __future__ import annotations

import numpy as np


def max_abs_err(output: np.ndarray, reference: np.ndarray) -> float:
    """max |output - reference|; NaN if either holds a NaN."""
    return float(np.max(np.abs(output.astype(np.float64) - reference.astype(np.float64))))


def median_rel_err(output: np.ndarray, reference: np.ndarray) -> float:
    """Median over all elements of |output - reference| / |reference| (elements where the reference is 0 left out)."""
    output, reference = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    nonzero = reference != 0
    return float(np.median(np.abs(output - reference)[nonzero] / np.abs(reference[nonzero])))


def top1_agreement(output: np.ndarray, reference: np.ndarray) -> float:
    """Share of rows, 0 to 1, whose largest logit is the same class in both. A row with a NaN never agrees."""
    same = output.argmax(axis=-1) == reference.argmax(axis=-1)
    return float(np.mean(same & np.isfinite(output).all(axis=-1)))


FP32_SHARE = 1e-3  # of the largest logit: FP32 sums in another order differ by some 1e-6


def what_is_wrong(output: np.ndarray, reference: np.ndarray, precision: str) -> str:
    """Why the time of a run does not count, in words: NaN or infinity in its output, or FP32 that is not; else ""."""
    if not np.isfinite(output).all():
        return "gives NaN or infinity"
    error, largest = max_abs_err(output, reference), float(np.abs(reference).max())
    if precision == "fp32" and not error <= FP32_SHARE * largest:
        return f"computes in FP32 and is off by {error:.2g} of {largest:.2g}"
    return ""
