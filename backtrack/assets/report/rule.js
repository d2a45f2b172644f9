"use strict";
// The rest of the rule of `select`, whose answers at each weight are recorded (see
// backtrack/records/sweep.py): the points that meet the bounds, the first top among them, and the
// first preferred point.
const rule = (() => {
  const TOLERANCE = 1e-6;

  // One test per bound, as in backtrack/selection/stats/bounds.py.
  function boundsOf(page, constraints) {
    const { base, final, margin, bounded_roles, bounded_objectives } = page.sweep;
    const { target, general } = bounded_roles;
    const gaps = ({ values }) => values.map((value) => value - values[base]);
    const holds = (values, errors, least) => (i) =>
      values[i] - margin * errors[i] >= least - TOLERANCE;
    const drops = (score, most) => holds(gaps(score), score.gap_errors, -most);
    const bounds = [];
    if (constraints.max_general_drop != null) bounds.push(drops(general, constraints.max_general_drop));
    if (constraints.min_target != null) {
      bounds.push(holds(target.values, target.errors, constraints.min_target));
    }
    if (constraints.keep_gain != null) bounds.push(keeps(target, gaps(target), constraints.keep_gain));
    page.objectives.forEach(({ name, direction }) => {
      const { max_drop, worst } = (constraints.objectives || {})[name] || {};
      const score = bounded_objectives[name];
      const sign = direction === "maximize" ? 1 : -1;
      if (max_drop != null) bounds.push(drops(score, max_drop));
      if (worst != null) bounds.push(holds(score.values, score.errors, sign * worst));
    });
    return bounds;

    function keeps({ gap_errors, gap_covariances }, gains, asked) {
      const gain = Math.max(gains[final], 0);
      const share = gain > 0 ? asked : 0;
      const errors = gap_errors.map((error, i) => {
        const variance = error ** 2 + (share * gap_errors[final]) ** 2 - 2 * share * gap_covariances[i];
        return Math.sqrt(Math.max(variance, 0));
      });
      return holds(gains, errors, share * gain);
    }
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
