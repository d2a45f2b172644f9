"use strict";
// Draws each figure from the specifications in it, at the width the page gives it, and again
// when that width changes. Colours need no redrawing: the ink is the page's own, `currentColor`.
(() => {
  const NARROW = 560;
  const MARGIN = 92; // A vertical axis with its two-line title, and the right edge.
  const OPTIONS = {
    actions: false,
    renderer: "svg",
    logLevel: 1, // Errors alone.
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  };

  // The wide layout stands first, the narrow one second.
  function fitted(texts, width) {
    const spec = JSON.parse(texts[width < NARROW ? 1 : 0]);
    for (const view of spec.vconcat || [spec]) view.width = Math.max(width - MARGIN, 160);
    return spec;
  }

  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const chart = figure.querySelector(".chart");
    const texts = Array.from(figure.querySelectorAll("script"), (script) => script.textContent);
    let drawn = 0;
    const draw = () => {
      const width = chart.clientWidth;
      if (width === 0 || width === drawn) return;
      drawn = width;
      window.vegaEmbed(chart, fitted(texts, width), OPTIONS);
    };
    new ResizeObserver(draw).observe(chart);
  }
})();
