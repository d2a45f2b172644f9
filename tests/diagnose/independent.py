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
        "stable_rank": np.linalg.norm(update) ** 2 / shares[0] ** 2,
        "retention_deviation": _deviation(np.abs(diagonal - values)),
        "adaptation_deviation": _deviation(np.array([np.linalg.norm(update @ v) for v in right])),
    }


def _deviation(profile: np.ndarray) -> float:
    mirrored = np.concatenate([profile[2:0:-1], profile, profile[-2:-4:-1]])
    average = [mirrored[i : i + 5].mean() for i in range(len(profile))]
    return float(np.mean(np.abs(profile - average)))


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
    spans = [np.linalg.svd(a)[2].T for a in centred]

    def distance(largest: int) -> float:
        dimension = min(largest, start.shape[0] - 1, start.shape[1])
        sines = np.sin(subspace_angles(*(span[:, :dimension] for span in spans)))
        return float(np.sqrt(np.mean(sines**2)))

    turn_centred, _ = orthogonal_procrustes(centred[1], centred[0])
    lengths = [np.linalg.norm(a, axis=1) for a in (start, end)]
    return {
        "procrustes": np.linalg.norm(end @ turn - start) / np.linalg.norm(start),
        "gram": np.linalg.norm(other - one) / np.linalg.norm(one),
        "cka": np.sum(grams[0] * grams[1]) / np.linalg.norm(grams[0]) / np.linalg.norm(grams[1]),
        "cosine_drift": 1 - np.mean(np.sum(before * after, axis=1)),
        "norm_drift": np.mean(np.abs(lengths[1] - lengths[0]) / lengths[0]),
        "subspace_distance": distance(dimension),
        "procrustes_centred": np.linalg.norm(centred[1] @ turn_centred - centred[0])
        / np.linalg.norm(centred[0]),
        "log_norm_drift": np.mean(np.abs(np.log(lengths[1] / lengths[0]))),
        "subspace_distance_32": distance(32),
        "subspace_distance_64": distance(64),
    }
