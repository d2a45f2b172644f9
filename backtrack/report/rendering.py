"""A page from its template: one file, with its style, its scripts and what they read in it."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

SHARED = ("wording.js", "tables.js", "drawings.js", "copying.js")
"""Scripts every page has."""


def render(template: str, context: dict[str, Any], scripts: Sequence[str], vega: str) -> bytes:
    """The page's bytes. Text from records is escaped where it stands.

    Args:
        template: Name of its file in the package's assets.
        context: What the template takes.
        scripts: Names of the page's own scripts, which come after the shared ones.
        vega: Vega, Vega-Lite and Vega-Embed in one script.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_asset),
    )
    code = {
        "style": _trusted(_asset("page.css")),
        "scripts": [_trusted(_asset(name)) for name in (*SHARED, *scripts)],
        "vega": _trusted(vega),
    }
    return environment.get_template(template).render(context | code).encode()


def _trusted(code: str) -> Markup:
    """Code of the package's own or of Vega, to stand unescaped in its element."""
    from markupsafe import Markup

    return Markup(code.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _asset(name: str) -> str:
    return (resources.files("backtrack") / "assets" / "report" / name).read_text("utf-8")
