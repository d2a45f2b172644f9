"""Independent implementation of the paper's formulas on whole matrices in NumPy and SciPy."""

from __future__ import annotations

import numpy as np
from scipy.linalg import orthogonal_procrustes, subspace_angles, svd
from scipy.stats import entropy

EPS = 1e-12


def spectrum(base: np.ndarray, tuned: np.ndarray) -> dict[str, np.ndarray]:
    """Profiles along all singular directions, and the effective rank of the update."""
    left, values, right = svd(base.astype(np.float64), full_matrices=False)
    update = tuned.astype(np.float64) - base
    wide = tuned.astype(np.float64)
    diagonal = np.array([left[:, i] @ wide @ right[i] for i in range(len(values))])
    shares = svd(update, compute_uv=False)
    return {
        "retention": np.abs(diagonal - values) / values.sum(),
        "adaptation": np.array([np.linalg.norm(update @ v) for v in right]) / values.max(),
        "effective_rank": np.exp(entropy(shares / shares.sum())),
    }


def drift(base: np.ndarray, tuned: np.ndarray, inputs: np.ndarray) -> dict[str, float]:
    base, tuned, inputs = (a.astype(np.float64) for a in (base, tuned, inputs))
    update = tuned - base
    absolute = np.mean([np.linalg.norm(update @ h) ** 2 for h in inputs])
    energy = np.mean([np.linalg.norm(base @ h) ** 2 for h in inputs])
    size = np.mean([np.linalg.norm(h) ** 2 for h in inputs])
    return {
        "absolute": absolute,
        "relative": absolute / (energy + EPS),
        "update_normed": absolute / ((np.linalg.norm(update) ** 2 + EPS) * (size + EPS)),
    }


def geometry(start: np.ndarray, end: np.ndarray, dimension: int = 16) -> dict[str, float]:
    start, end = start.astype(np.float64), end.astype(np.float64)
    turn, _ = orthogonal_procrustes(end, start)
    before, after = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (start, end))
    one, other = before @ before.T, after @ after.T
    centred = [a - a.mean(axis=0) for a in (start, end)]
    grams = [a @ a.T for a in centred]
    spans = [np.linalg.svd(a)[2][:dimension].T for a in centred]
    sines = np.sin(subspace_angles(*spans))
    lengths = [np.linalg.norm(a, axis=1) for a in (start, end)]
    return {
        "procrustes": np.linalg.norm(end @ turn - start) / np.linalg.norm(start),
        "gram": np.linalg.norm(other - one) / np.linalg.norm(one),
        "cka": np.sum(grams[0] * grams[1]) / np.linalg.norm(grams[0]) / np.linalg.norm(grams[1]),
        "cosine_drift": 1 - np.mean(np.sum(before * after, axis=1)),
        "norm_drift": np.mean(np.abs(lengths[1] - lengths[0]) / lengths[0]),
        "subspace_distance": np.sqrt(np.mean(sines**2)),
    }
