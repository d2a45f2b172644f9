"""Show why a method forgets: directions of its update, drift of outputs, change of activations.

Follows PEFT-Arena (arXiv 2605.28819). W0 is a module's base weight, W its weight at a point,
dW = W - W0 and W0 = U S V^T; h0 are the module's inputs in the base, one row for each token.

    spectrum     retention |u_i^T W v_i - s_i| / sum(s), adaptation ||dW v_i|| / max(s), effective
                 and stable rank of dW, fluctuation and deviation of both profiles
    drift        E||dW h0||^2: absolute, over E||W0 h0||^2, and over ||dW||_F^2 E||h0||^2
    activations  a module's outputs in the base against those at a point: Procrustes, Gram, CKA,
                 cosine and norm drift, principal subspaces

CKA and principal subspaces use centred outputs, the other metrics outputs as they are.

Where the paper's release (e982d19) defines a metric otherwise, its own is beside ours:

    effective_rank           exponential of the entropy of the singular values' shares
    stable_rank              the release's effective rank: ||dW||_F^2 / largest squared
    *_fluctuation            mean over neighbouring directions of |log10 y(i + 1) - log10 y(i)|, in
                             decades, y floored at 1e-12 of its largest value: 0 for a constant
                             profile, about 0.5 for absolute normal numbers, whatever their scale
    *_deviation              the release's fluctuation: mean |y - moving average of five|, of the
                             profiles before they are divided, so it grows with the update
    procrustes               of outputs as they are; procrustes_centred of centred ones
    norm_drift               mean |n1 - n0| / n0; log_norm_drift mean |log(n1 / n0)|
    subspace_distance        of 16 dimensions; subspace_distance_32 and _64 as in the release
"""
