"""Show why a method forgets: directions of its update, drift of outputs, change of activations.

Follows PEFT-Arena (arXiv 2605.28819). W0 is a module's base weight, W its weight at a point,
dW = W - W0 and W0 = U S V^T; h0 are the module's inputs in the base, one row for each token.

    spectrum     retention |u_i^T W v_i - s_i| / sum(s), adaptation ||dW v_i|| / max(s), effective
                 rank of dW, fluctuation of both profiles
    drift        E||dW h0||^2: absolute, over E||W0 h0||^2, and over ||dW||_F^2 E||h0||^2
    activations  a module's outputs in the base against those at a point: Procrustes, Gram, CKA,
                 cosine and norm drift, principal subspaces

CKA and principal subspaces use centred outputs, the other metrics outputs as they are. The paper's
release subtracts column means for Procrustes too, so its residuals differ from these.

FLUCTUATION is defined here, since the paper shows profiles without a formula: the mean over
neighbouring directions of |log10 y(i + 1) - log10 y(i)|, in decades, with y floored at 1e-12 of
its largest value. It is 0 for a constant profile, about 0.5 for absolute values of independent
normal numbers, and independent of scale.
"""
