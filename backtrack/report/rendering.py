"""Render a page from its template: one file with style, scripts and the data they read."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

SHARED = ("wording.js", "tables.js", "charts.js", "copying.js")
"""Scripts of every page."""


def render(template: str, context: dict[str, Any], scripts: Sequence[str], vega: str) -> bytes:
    """The page as bytes. The template escapes text from records.

    Args:
        template: File name in the package's assets.
        context: Variables of the template.
        scripts: File names of the page's own scripts, which follow the shared ones.
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
    """Mark the package's own code, or Vega's, as not to be escaped in its element."""
    from markupsafe import Markup

    return Markup(code.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _asset(name: str) -> str:
    return (resources.files("backtrack") / "assets" / "report" / name).read_text("utf-8")
