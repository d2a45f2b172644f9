"use strict";
// A selection's page: its records, charts, controls and table of candidates.
(() => {
  const page = JSON.parse(document.getElementById("payload").textContent);
  const { candidates, indices, drawing, sweep } = page;
  const ROLES = ["target", "general"];
  const USUAL_CONFIDENCE = 0.95; // As in backtrack/records/selection.py, Constraints.
  const byId = (id) => document.getElementById(id);
  const verdict = byId("headline").textContent;
  const ids = candidates.step.map((_, i) => i);

  // The current choice; at first the selection's own.
  const state = {
    weight: page.weight,
    swept: sweep && sweep.weights.find((swept) => swept.weight === page.weight),
    constraints: page.constraints,
    isFeasible: candidates.is_feasible,
    chosen: indices.chosen,
    top: null,
    isTied: candidates.is_tied,
  };

  const pending = { isRequested: false, marks: false };
  const isAsSelected = () =>
    state.weight === page.weight && JSON.stringify(state.constraints) === JSON.stringify(page.constraints);

  const isTied = (i) => state.isTied[i] && state.isTied.filter(Boolean).length > 1;

  function utility(i) {
    if (!sweep) return candidates.utility[i];
    const [target, general] = ROLES.map((role) => sweep.points[role][i]);
    return state.weight * target + (1 - state.weight) * general;
  }

  // --- Rows of the charts -------------------------------------------------------------------

  function row(id, kind, more = {}) {
    const { alpha, is_whole } = candidates;
    const values = { id, kind, alpha: alpha[id], is_whole: is_whole[id], is_feasible: state.isFeasible[id] };
    for (const role of ROLES) values[role] = candidates[role][id];
    for (const i of drawing.apart_from_role) {
      const score = candidates.scores[i][id];
      values[`score_${i}`] = page.objectives[i].unit === "fraction" ? 100 * score : score;
    }
    return Object.assign(values, more);
  }

  const rows = (groups) => groups.flatMap(([kind, members]) => members.map((i) => row(i, kind)));
  const lines = (paths) =>
    paths.flatMap(([kind, members], path) =>
      members.map((i, order) => row(i, kind, { path, order, ...smoothed(i) })),
    );
  const smoothed = (i) => Object.fromEntries(ROLES.map((role) => [role, candidates.lines[role][i]]));

  // Two lines that cross, each from low to high along one axis in the middle of the other.
  const crossing = ([x, left, right], [y, down, up]) => [
    { target: left, target_end: right, general: y, general_end: y },
    { target: x, target_end: x, general: down, general_end: up },
  ];

  const bands = drawing.curves.flatMap(([kind, members], path) =>
    members
      .filter((i) => drawing.bands[i])
      .map((i) => {
        const [target_low, target_high, general_low, general_high] = drawing.bands[i];
        const ends = { target_low, target_high, general_low, general_high };
        return { kind, path, alpha: candidates.alpha[i], ...ends };
      }),
  );

  const frontBands = drawing.front
    .flatMap(([, members]) => members)
    .filter((i) => drawing.bands[i])
    .flatMap((i) => {
      const [left, right, down, up] = drawing.bands[i];
      const { target, general } = smoothed(i);
      return crossing([target, left, right], [general, down, up]);
    });

  // Estimate and interval of a role's score at a candidate: on the report items if it was measured
  // on them, else on the selection items.
  function roleScore(id, role) {
    if (page.reported[id]) return page.reported[id][role];
    const ends = sweep ? sweep.intervals[role][id] : [NaN, NaN];
    return [candidates[role][id], ...ends];
  }

  function cross(id) {
    if (id == null || (!sweep && !page.reported[id])) return [];
    return crossing(...ROLES.map((role) => roleScore(id, role)));
  }

  // Which items the cross is of, where they are not those of the marks.
  function crossLabel(id) {
    if (id == null || !page.reported[id]) return [];
    const [[target], [general]] = ROLES.map((role) => roleScore(id, role));
    return [{ target, general, text: drawing.kinds.report }];
  }

  function overlay(shown, hasInterval) {
    const { kinds } = drawing;
    const marks = shown.filter(isTied).map((i) => row(i, kinds.tied));
    const { chosen } = state;
    if (chosen == null || !shown.includes(chosen)) return marks;
    if (hasInterval && cross(chosen).length) {
      const [[target], [general]] = ROLES.map((role) => roleScore(chosen, role));
      marks.push(row(chosen, kinds.interval, { target, general }));
    }
    return [...marks, row(chosen, kinds.chosen)];
  }

  // Labels of base and final at the positions computed in Python, and the choice's beside its point.
  function labels(positioned, role) {
    const { chosen } = state;
    if (!sweep || chosen == null) return positioned;
    const { kinds } = drawing;
    const ends = positioned.map((label) =>
      label.id === chosen ? { ...label, text: `${kinds.choice} = ${label.text}` } : label,
    );
    if (positioned.some((label) => label.id === chosen)) return ends;
    const [low, high] = role ? [0, 1] : drawing.target_ends;
    const value = role ? candidates.alpha[chosen] : candidates.target[chosen];
    const isRight = (value - low) / (high - low) > 0.6;
    const side = { align: isRight ? "right" : "left", dx: isRight ? -14 : 14 };
    return [...ends, row(chosen, "", { text: kinds.choice, baseline: "top", dy: 9, ...side })];
  }

  const allMarks = drawing.marks.flatMap(([, members]) => members);

  function dataOf(chart, own) {
    if (chart === "plane") {
      return {
        front: lines(drawing.front),
        lines: lines(drawing.paths),
        marks: rows(drawing.marks),
        front_bands: frontBands,
        cross: cross(state.chosen),
        cross_label: crossLabel(state.chosen),
        overlay: overlay(allMarks, true),
        labels: labels(own.labels, ""),
      };
    }
    if (chart.startsWith("geometry")) return {};
    const labelled = Object.entries(own).filter(([name]) => name.startsWith("labels"));
    return {
      ...(chart === "alpha" ? { bands } : {}),
      lines: lines(drawing.curves),
      marks: rows(drawing.curve_marks),
      choice: state.chosen == null ? [] : [{ alpha: candidates.alpha[state.chosen] }],
      overlay: overlay(
        Array.from(new Set([...drawing.alpha_ids, ...(state.chosen == null ? [] : [state.chosen])])),
        false,
      ),
      ...Object.fromEntries(labelled.map(([name, rows]) => [name, labels(rows, name)])),
    };
  }

  function tooltip(id, kind) {
    const isBase = id === indices.base;
    const lines = [
      ["step", isBase ? "base" : String(candidates.step[id])],
      ["alpha", String(Number(candidates.alpha[id].toPrecision(6)))],
      ["profile", candidates.profile[id]],
    ];
    const isReported = kind === drawing.kinds.interval && page.reported[id];
    for (const role of ROLES) {
      const [estimate, ...ends] = isReported ? page.reported[id][role] : selectionScore(id, role);
      const { unit } = page.axes[role];
      const hasInterval = ends.every(Number.isFinite);
      const text = hasInterval
        ? `${wording.interval(estimate, ends, unit)} ${unit}`
        : wording.withUnit(estimate, unit);
      lines.push([role, text]);
    }
    page.objectives.forEach((objective, i) => {
      lines.push([objective.name, wording.withUnit(candidates.scores[i][id], objective.unit)]);
    });
    lines.push(["utility", wording.withUnit(utility(id), "points")]);
    lines.push(["origin", candidates.origin[id]]);
    const marks = marksOf(id);
    if (marks.length) lines.push(["marks", marks.join(", ")]);
    return lines;
  }

  function selectionScore(id, role) {
    return [candidates[role][id], ...(sweep ? sweep.intervals[role][id] : [NaN, NaN])];
  }

  // As in backtrack/formatting.py, point_marks.
  function marksOf(id) {
    const marks = {
      chosen: id === state.chosen,
      base: id === indices.base,
      final: id === indices.final,
      front: candidates.is_on_front[id],
      tied: isTied(id),
      "misses a bound": !state.isFeasible[id],
    };
    return Object.keys(marks).filter((mark) => marks[mark]);
  }

  const views = charts.make(page, dataOf, tooltip);

  // --- The table of candidates --------------------------------------------------------------

  const table = byId("all");
  const heads = Array.from(table.tHead.rows[0].cells);
  const live = Object.fromEntries(
    heads.map((head, i) => [head.dataset.live, i]).filter(([name]) => name),
  );
  const selectedChance = new Map(
    Array.from(table.tBodies[0].rows, (row) => [row, row.cells[live.chance].textContent]),
  );
  tables.makeSortable(table, live.smoothed);

  function setText(cell, text) {
    if (cell.textContent !== text) cell.textContent = text;
  }

  function updateTable() {
    const isSelected = isAsSelected();
    for (const row of table.tBodies[0].rows) {
      const id = Number(row.dataset.id);
      row.classList.toggle("chosen", id === state.chosen);
      row.classList.toggle("infeasible", !state.isFeasible[id]);
      const marks = marksOf(id).map((mark) => {
        const span = document.createElement("span");
        span.className = `mark ${mark.replaceAll(" ", "-")}`;
        span.textContent = mark;
        return span;
      });
      row.cells[1].replaceChildren(...marks.flatMap((span) => [span, " "]));
      setText(row.cells[live.utility], wording.number(utility(id), "points"));
      setText(row.cells[live.smoothed], wording.number(state.swept.smoothed[id], "points"));
      setText(row.cells[live.chance], isSelected ? selectedChance.get(row) : wording.NO_NUMBER);
    }
    tables.resort(table);
  }

  // --- The choice in words and numbers ------------------------------------------------------

  function figure(name, value, note) {
    const box = document.createElement("div");
    for (const [tag, text, type] of [["dt", name, ""], ["dd", value, "value"], ["dd", note, "note"]]) {
      const part = document.createElement(tag);
      part.textContent = text;
      part.className = type;
      box.append(part);
    }
    return box;
  }

  // Utility minus an end's: on the report items for the selection's own choice.
  function against(end) {
    const { chosen, swept } = state;
    const isReported = isAsSelected() && chosen === indices.chosen && end in page.differences;
    const column = sweep.choosable.indexOf(chosen);
    const [change, ...ends] = isReported
      ? page.differences[end]
      : [utility(chosen) - utility(sweep[end]), ...swept[`to_${end}`][column]];
    const name = `Against the ${end}`;
    if (chosen === sweep[end]) return figure(name, wording.NO_NUMBER, "the choice itself");
    const items = isReported ? "report" : "selection";
    const note = `points of utility, ${wording.comparison(ends)}, on ${items} items`;
    return figure(name, wording.interval(change, ends, "points", true), note);
  }

  function updateFigures() {
    const { chosen } = state;
    const boxes = [];
    if (chosen != null) {
      const numTied = state.isTied.filter(Boolean).length;
      const note =
        numTied > 1 ? `${numTied} points cannot be told apart from the best` : "no other is tied";
      boxes.push(figure("Choice", candidates.name[chosen], note));
      for (const role of ROLES) {
        const [estimate, ...ends] = roleScore(chosen, role);
        const { unit } = page.axes[role];
        const items = page.reported[chosen] ? "report" : "selection";
        const text = wording.interval(estimate, ends, unit);
        boxes.push(
          figure(`${role[0].toUpperCase()}${role.slice(1)} (${unit})`, text, `on ${items} items`),
        );
      }
      boxes.push(against("base"), against("final"));
    }
    byId("choice-figures").replaceChildren(...boxes);
  }

  // What the choice brings and costs, on the same items at the base and at the choice.
  function fromBase(chosen) {
    if (chosen === indices.base) return "";
    const isReported = Boolean(page.reported[indices.base] && page.reported[chosen]);
    const score = isReported ? (id, role) => page.reported[id][role] : selectionScore;
    const changes = ROLES.map((role) => {
      const [before, after] = [indices.base, chosen].map((id) =>
        wording.number(score(id, role)[0], page.axes[role].unit),
      );
      return `${role} ${before} \u2192 ${after}`;
    });
    return `: ${changes.join(", ")} on ${isReported ? "report" : "selection"} items`;
  }

  // Which part of the rule took another point than the top; as in backtrack/formatting.py, how_chosen.
  function rulesUsed() {
    const { chosen, top, swept } = state;
    if (page.is_cautious || chosen === top) return "";
    const lead = (swept.smoothed[top] - swept.smoothed[chosen]).toFixed(2);
    const leads = `${candidates.name[top]} has ${lead} points more smoothed utility`;
    return chosen === indices.base
      ? ` The base rule decided: ${leads}, hardly more than luck.`
      : ` The quarter-point rule decided: ${leads}, and the choice is nearer to the base.`;
  }

  function answer() {
    const { chosen, isFeasible } = state;
    const weight = String(Number(state.weight.toPrecision(6)));
    if (chosen != null) {
      return `At weight ${weight} the choice is ${candidates.name[chosen]}${fromBase(chosen)}.${rulesUsed()}`;
    }
    if (!sweep.is_whole && isFeasible.some(Boolean)) {
      return "Too many points for an answer here: the command below gives it.";
    }
    return "No measured point meets these bounds. Loosen one of them, or search more points.";
  }

  // The command that makes this choice, measures it on the report items and exports it.
  function command() {
    const parts = [`backtrack select ${page.run} --weight ${state.weight}`];
    if (page.is_cautious) parts.push("--cautious");
    const { objectives = {}, ...roles } = state.constraints;
    for (const [name, value] of Object.entries(roles)) {
      if (name === "bound_confidence" && value === USUAL_CONFIDENCE) continue;
      parts.push(`--${name.replaceAll("_", "-")} ${value}`);
    }
    for (const [name, bounds] of Object.entries(objectives)) {
      for (const [kind, value] of Object.entries(bounds)) {
        parts.push(`--${kind.replaceAll("_", "-")} ${quoted(`${name}=${value}`)}`);
      }
    }
    return `${parts.join(" ")} --export DIR`;
  }

  const quoted = (text) =>
    /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;

  // --- The controls -------------------------------------------------------------------------

  function select() {
    state.swept = sweep.weights[Number(byId("weight").value)];
    state.weight = state.swept.weight;
    const isFeasible = rule.feasible(page, state.constraints);
    const hasMoved = isFeasible.some((isMet, i) => isMet !== state.isFeasible[i]);
    state.isFeasible = isFeasible;
    const choice = rule.choose(page, state.swept, isFeasible);
    state.chosen = choice ? choice.chosen : null;
    state.top = choice ? choice.top : null;
    state.isTied = choice ? choice.isTied : ids.map(() => false);
    show(hasMoved);
  }

  // Marks change only with the bounds, everything else also with the weight.
  function show(hasMoved) {
    const slider = byId("weight");
    slider.setAttribute("aria-valuetext", `weight ${state.weight}, ${answer()}`);
    if (document.activeElement !== byId("weight-number")) byId("weight-number").value = state.weight;
    byId("answer").textContent = answer();
    byId("headline").textContent = isAsSelected() ? verdict : answer();
    byId("command").textContent = command();
    updateFigures();
    updateTable();
    const moving = (rows) => ["overlay", "cross", "cross_label", "choice"].filter((name) => name in rows);
    const labelled = (rows) => Object.keys(rows).filter((name) => name.startsWith("labels"));
    // Once per frame, however many steps the slider took; the text above is updated at once.
    pending.marks ||= hasMoved;
    if (pending.isRequested) return;
    pending.isRequested = true;
    requestAnimationFrame(() => {
      const changed = (rows) => [
        ...(pending.marks && "marks" in rows ? ["marks"] : []),
        ...moving(rows),
        ...labelled(rows),
      ];
      views.update(changed);
      pending.isRequested = pending.marks = false;
    });
  }

  // The bounds as typed; anything but a number is no bound.
  function readConstraints() {
    const constraints = {};
    const objectives = {};
    for (const input of document.querySelectorAll("input[data-bound]")) {
      const { bound, objective } = input.dataset;
      if (input.value.trim() === "" || !input.checkValidity()) continue;
      if (objective) (objectives[objective] ??= {})[bound] = Number(input.value);
      else constraints[bound] = Number(input.value);
    }
    // In the order of the record's keys, so that the two can be compared as JSON.
    return { bound_confidence: page.constraints.bound_confidence, ...constraints, objectives };
  }

  function fill() {
    const { weight, constraints } = page;
    byId("weight").value = sweep.weights.findIndex((swept) => swept.weight === weight);
    for (const input of document.querySelectorAll("input[data-bound]")) {
      const { bound, objective } = input.dataset;
      const from = objective ? (constraints.objectives || {})[objective] || {} : constraints;
      input.value = from[bound] ?? "";
    }
  }

  function nearest(weight) {
    const gaps = sweep.weights.map((swept) => Math.abs(swept.weight - weight));
    return gaps.indexOf(Math.min(...gaps));
  }

  function reselect() {
    state.constraints = readConstraints();
    select();
  }

  if (sweep) {
    const slider = byId("weight");
    slider.max = sweep.weights.length - 1;
    fill();
    slider.addEventListener("input", reselect);
    byId("weight-number").addEventListener("input", (event) => {
      if (!event.target.checkValidity() || event.target.value === "") return;
      slider.value = nearest(Number(event.target.value));
      reselect();
    });
    for (const input of document.querySelectorAll("input[data-bound]")) {
      input.addEventListener("input", reselect);
    }
    byId("as-selected").addEventListener("click", () => {
      fill();
      byId("weight-number").value = page.weight;
      reselect();
    });
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["controls", "choice-figures", "choice-command"]) byId(id).hidden = false;
    byId("selected").hidden = true; // The figures of the current choice replace it.
    reselect();
  }
})();
