"""How the layers share a point's alpha.

Covered: `uniform`, every layer at alpha. Not covered yet: `safe`, `min`, `depth`, `blocks`,
`modules`.
"""

from __future__ import annotations

from backtrack.errors import PointError

KNOWN = ("uniform",)


def require_known(profile: str) -> None:
    """Refuse a profile that nothing here can follow.

    Raises:
        PointError: With the profiles there are.
    """
    if profile not in KNOWN:
        raise PointError(f"there is no profile {profile!r}. There is: {', '.join(KNOWN)}.")
