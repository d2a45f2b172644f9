"""Why a method forgets: where its update acts, who feels it, and what the representation keeps.

After PEFT-Arena (arXiv 2605.28819). W0 is a module's base weight, W its weight at a point,
dW = W - W0 and W0 = U S V^T; h0 are the base's inputs of the module, one row a token.

    spectrum     retention |u_i^T W v_i - s_i| / sum(s), adaptation ||dW v_i|| / max(s), effective
                 rank of dW, fluctuation of both profiles
    drift        E||dW h0||^2: absolute, over E||W0 h0||^2, and over ||dW||_F^2 E||h0||^2
    activations  outputs of a module in the base against those at the point: Procrustes, Gram,
                 CKA, cosine and norm drift, principal subspaces

FLUCTUATION is ours to define, since the paper shows profiles and no formula: the mean over
neighbouring directions of |log10 y(i + 1) - log10 y(i)|, in decades, with y floored at 1e-12 of
its largest value. It is 0 for a constant profile, about 0.5 for independent normal numbers without
sign, and knows no scale.
"""
