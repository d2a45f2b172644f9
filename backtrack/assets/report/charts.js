"use strict";
// Draws each figure from its specification at the width it has on the page, and again when that
// width changes. Colours need no redrawing: the ink is the page's own, `currentColor`.
const charts = (() => {
  const NARROW = 560;
  const MARGIN = 92; // Width of a vertical axis with its two-line title, and of the right edge.
  const PANEL = 250; // Smallest width of one of several panels, its axis included.
  const MANY = 500; // With more marks a bitmap is drawn faster than as many elements.

  // `dataOf` gives a chart's rows by dataset, replacing the chart's own; `tooltip` the lines of a
  // candidate's tooltip, as pairs. A chart whose tooltips hold names and values shows those.
  function make(page, dataOf, tooltip) {
    const isMany = page.candidates?.step.length > MANY;
    const options = {
      actions: false,
      renderer: isMany ? "canvas" : "svg",
      logLevel: 1, // Only errors.
      defaultStyle: false,
      tooltip: pointer(tooltip),
    };
    const views = new Map();
    let edition = 0; // Of the data: it may have changed while a chart was being drawn.

    // The specification at a width; its only own data are labels positioned in Python.
    function fitted(id, width) {
      const [wide, narrow] = page.charts[id];
      const spec = structuredClone(narrow && width < NARROW ? narrow : wide);
      if (spec.facet) {
        spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(width / PANEL)));
        spec.spec.width = Math.max(width / spec.columns - MARGIN, 120);
      } else {
        for (const view of spec.vconcat || [spec]) view.width = Math.max(width - MARGIN, 160);
      }
      return spec;
    }

    // A canvas does not know `currentColor`: it takes the page's present ink.
    function inked(spec, chart) {
      if (!isMany) return spec;
      const ink = getComputedStyle(chart).color;
      return JSON.parse(JSON.stringify(spec).replaceAll('"currentColor"', JSON.stringify(ink)));
    }

    async function draw(id, chart, width) {
      const editionAtStart = edition;
      const spec = fitted(id, width);
      const own = spec.datasets || {};
      spec.datasets = { ...own, ...dataOf(id, own) };
      const { view } = await window.vegaEmbed(chart, inked(spec, chart), options);
      views.get(id)?.view.finalize();
      views.set(id, { view, own });
      if (editionAtStart !== edition) show(id, (rows) => Object.keys(rows));
    }

    function show(id, names) {
      const { view, own } = views.get(id);
      const rows = dataOf(id, own);
      const changed = names(rows);
      for (const name of changed) view.data(name, rows[name]);
      if (changed.length) view.run();
    }

    // `names` picks the changed datasets among a chart's rows.
    function update(names) {
      edition += 1;
      for (const id of views.keys()) show(id, names);
    }

    for (const figure of document.querySelectorAll("figure[data-chart]")) {
      const chart = figure.querySelector(".chart");
      const id = figure.dataset.chart;
      let drawnWidth = 0;
      new ResizeObserver(() => {
        const width = chart.clientWidth;
        if (width === 0 || width === drawnWidth) return;
        drawnWidth = width;
        draw(id, chart, width);
      }).observe(chart);
    }
    return { update };
  }

  // A tooltip next to the pointer, filled only with text.
  function pointer(tooltip) {
    const box = document.createElement("div");
    box.id = "tooltip";
    box.hidden = true;
    document.body.append(box);
    return (_, event, item, value) => {
      box.hidden = value == null || value === "";
      if (box.hidden) return;
      const isOwn = typeof value === "object";
      const pairs = isOwn ? Object.entries(value) : tooltip(Number(value), item.datum.kind);
      const lines = pairs.map(([name, text]) => {
        const line = document.createElement("div");
        const key = document.createElement("span");
        key.textContent = name;
        line.append(key, ` ${text}`);
        return line;
      });
      box.replaceChildren(...lines);
      const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
      const top = Math.min(event.clientY + 14, window.innerHeight - box.offsetHeight - 8);
      box.style.left = `${Math.max(left, 8)}px`;
      box.style.top = `${Math.max(top, 8)}px`;
    };
  }

  return { make };
})();
