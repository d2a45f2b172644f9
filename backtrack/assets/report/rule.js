"use strict";
// What is left of the rule of `select` once its answers at each weight are on record (see
// `backtrack.records.Sweep`): which points meet the bounds, and the first of them, twice.
const rule = (() => {
  const TOLERANCE = 1e-9;

  const holds = (values, least) => (i) => values[i] >= least - TOLERANCE;

  // One test a bound, in the order of backtrack/selection/front.py.
  function boundsOf(page, asked) {
    const { base, final, points } = page.sweep;
    const { target, general } = points;
    const less = (values) => values.map((value) => value - values[base]);
    const found = [];
    if (asked.max_general_drop != null) found.push(holds(less(general), -asked.max_general_drop));
    if (asked.min_target != null) found.push(holds(target, asked.min_target));
    if (asked.keep_gain != null) {
      const gain = Math.max(target[final] - target[base], 0);
      found.push(holds(less(target), asked.keep_gain * gain));
    }
    page.objectives.forEach((objective, i) => {
      const { max_drop, limit } = (asked.objectives || {})[objective.name] || {};
      const sign = objective.direction === "maximize" ? 1 : -1;
      const scale = objective.unit === "fraction" ? 100 : 1;
      const values = page.candidates.scores[i].map((score) => sign * score * scale);
      if (max_drop != null) found.push(holds(less(values), -max_drop));
      if (limit != null) found.push(holds(values, sign * limit));
    });
    return found;
  }

  function bits(text) {
    const bytes = atob(text);
    return (i) => ((bytes.charCodeAt(i >> 3) >> (i & 7)) & 1) === 1;
  }

  // Flags of the candidates that meet every bound.
  function feasible(page, asked) {
    const bounds = boundsOf(page, asked);
    return page.candidates.step.map((_, i) => bounds.every((isMet) => isMet(i)));
  }

  // The choice and what is tied with the top; null where no candidate kept for it meets the bounds.
  function choose(page, swept, isFeasible) {
    const place = swept.tops.findIndex((top) => isFeasible[top]);
    if (place < 0) return null;
    const isOpen = bits(swept.open[place]);
    const isTied = bits(swept.tied[place]);
    return {
      top: swept.tops[place],
      chosen: page.sweep.preferred.find((i) => isFeasible[i] && isOpen(i)),
      isTied: isFeasible.map((isMet, i) => isMet && isTied(i)),
    };
  }

  return { feasible, choose };
})();
