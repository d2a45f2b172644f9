"use strict";
// The rest of the rule of `select`, whose answers at each weight are recorded (see
// backtrack/records/sweep.py): the points that meet the bounds, the first top among them, and the
// first preferred point.
const rule = (() => {
  const TOLERANCE = 1e-9;

  const holds = (values, least) => (i) => values[i] >= least - TOLERANCE;

  // One test per bound, in the order of backtrack/selection/stats/bounds.py.
  function boundsOf(page, constraints) {
    const { base, final, points } = page.sweep;
    const { target, general } = points;
    const less = (values) => values.map((value) => value - values[base]);
    const bounds = [];
    if (constraints.max_general_drop != null) bounds.push(holds(less(general), -constraints.max_general_drop));
    if (constraints.min_target != null) bounds.push(holds(target, constraints.min_target));
    if (constraints.keep_gain != null) {
      const gain = Math.max(target[final] - target[base], 0);
      bounds.push(holds(less(target), constraints.keep_gain * gain));
    }
    page.objectives.forEach((objective, i) => {
      const { max_drop, limit } = (constraints.objectives || {})[objective.name] || {};
      const sign = objective.direction === "maximize" ? 1 : -1;
      const scale = objective.unit === "fraction" ? 100 : 1;
      const values = page.candidates.scores[i].map((score) => sign * score * scale);
      if (max_drop != null) bounds.push(holds(less(values), -max_drop));
      if (limit != null) bounds.push(holds(values, sign * limit));
    });
    return bounds;
  }

  function bits(text) {
    const bytes = atob(text);
    return (i) => ((bytes.charCodeAt(i >> 3) >> (i & 7)) & 1) === 1;
  }

  // Flags of the candidates that meet every bound.
  function feasible(page, constraints) {
    const bounds = boundsOf(page, constraints);
    return page.candidates.step.map((_, i) => bounds.every((isMet) => isMet(i)));
  }

  // The top, the choice and the points tied with the top; null if no recorded top meets the bounds.
  function choose(page, swept, isFeasible) {
    const index = swept.tops.findIndex((top) => isFeasible[top]);
    if (index < 0) return null;
    const isOpen = bits(swept.open[index]);
    const isTied = bits(swept.tied[index]);
    return {
      top: swept.tops[index],
      chosen: page.sweep.preferred.find((i) => isFeasible[i] && isOpen(i)),
      isTied: isFeasible.map((isMet, i) => isMet && isTied(i)),
    };
  }

  return { feasible, choose };
})();
