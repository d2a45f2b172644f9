"use strict";
// Draws each figure from its specification, at the width the page gives it, and again when that
// width changes. Colours need no redrawing: the ink is the page's own, `currentColor`.
const drawings = (() => {
  const NARROW = 560;
  const MARGIN = 92; // A vertical axis with its two-line title, and the right edge.
  const PANEL = 250; // Least width of a panel of several, its axis included.
  const MANY = 500; // Marks beyond which a bitmap is drawn faster than so many elements.

  // `filled` gives a chart's rows by name, in place of those that stand in it; `tooltip` what to
  // say of a candidate, as pairs. A drawing whose tooltips hold names and values says those.
  function make(page, filled, tooltip) {
    const isMany = page.candidates?.step.length > MANY;
    const options = {
      actions: false,
      renderer: isMany ? "canvas" : "svg",
      logLevel: 1, // Errors alone.
      defaultStyle: false,
      tooltip: pointer(tooltip),
    };
    const views = new Map();
    let edition = 0; // Of what is shown: a drawing under way may be behind when it is done.

    // The specification at a width; what stands in it are the names that Python placed.
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

    // A bitmap knows no `currentColor`: it takes the ink the page has now.
    function inked(spec, chart) {
      if (!isMany) return spec;
      const ink = getComputedStyle(chart).color;
      return JSON.parse(JSON.stringify(spec).replaceAll('"currentColor"', JSON.stringify(ink)));
    }

    async function draw(id, chart, width) {
      const begun = edition;
      const spec = fitted(id, width);
      const own = spec.datasets || {};
      spec.datasets = { ...own, ...filled(id, own) };
      const { view } = await window.vegaEmbed(chart, inked(spec, chart), options);
      views.get(id)?.view.finalize();
      views.set(id, { view, own });
      if (begun !== edition) show(id, (rows) => Object.keys(rows));
    }

    function show(id, names) {
      const { view, own } = views.get(id);
      const rows = filled(id, own);
      const moved = names(rows);
      for (const name of moved) view.data(name, rows[name]);
      if (moved.length) view.run();
    }

    // `names` picks, of a drawing's rows by name, those that have changed.
    function update(names) {
      edition += 1;
      for (const id of views.keys()) show(id, names);
    }

    for (const figure of document.querySelectorAll("figure[data-chart]")) {
      const chart = figure.querySelector(".chart");
      const id = figure.dataset.chart;
      let drawn = 0;
      new ResizeObserver(() => {
        const width = chart.clientWidth;
        if (width === 0 || width === drawn) return;
        drawn = width;
        draw(id, chart, width);
      }).observe(chart);
    }
    return { update };
  }

  // A tooltip next to the pointer, filled with text alone.
  function pointer(tooltip) {
    const box = document.createElement("div");
    box.id = "tooltip";
    box.hidden = true;
    document.body.append(box);
    return (_, event, item, value) => {
      box.hidden = value == null || value === "";
      if (box.hidden) return;
      const isOwn = typeof value === "object";
      const said = isOwn ? Object.entries(value) : tooltip(Number(value), item.datum.kind);
      const lines = said.map(([name, text]) => {
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
