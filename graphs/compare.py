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
