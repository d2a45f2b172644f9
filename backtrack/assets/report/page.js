"use strict";
// Wires the page: the records in it, the drawings, the controls and the table of candidates.
(() => {
  const page = JSON.parse(document.getElementById("payload").textContent);
  const { candidates, places, drawn, sweep } = page;
  const ROLES = ["target", "general"];
  const byId = (id) => document.getElementById(id);
  const ids = candidates.step.map((_, i) => i);

  // What is chosen now; at first what the selection says.
  const state = {
    weight: page.weight,
    swept: sweep && sweep.weights.find((each) => each.weight === page.weight),
    asked: page.constraints,
    isFeasible: candidates.is_feasible,
    chosen: places.chosen,
    isTied: candidates.is_tied,
  };

  const pending = { isAsked: false, marks: false };
  const isAsSelected = () =>
    state.weight === page.weight && JSON.stringify(state.asked) === JSON.stringify(page.constraints);

  function utility(i) {
    if (!sweep) return candidates.utility[i];
    const [target, general] = ROLES.map((role) => sweep.points[role][i]);
    return state.weight * target + (1 - state.weight) * general;
  }

  // --- What the drawings show ---------------------------------------------------------------

  function row(id, kind, more = {}) {
    const found = { id, kind, alpha: candidates.alpha[id], is_feasible: state.isFeasible[id] };
    for (const role of ROLES) found[role] = candidates[role][id];
    for (const i of drawn.several) {
      const score = candidates.scores[i][id];
      found[`score_${i}`] = page.objectives[i].unit === "fraction" ? 100 * score : score;
    }
    return Object.assign(found, more);
  }

  const rows = (groups) => groups.flatMap(([kind, members]) => members.map((i) => row(i, kind)));
  const lines = (paths) =>
    paths.flatMap(([kind, members], path) =>
      members.map((i, place) => row(i, kind, { path, place })),
    );

  const bands = drawn.curves.flatMap(([kind, members], path) =>
    members
      .filter((i) => drawn.bands[i])
      .map((i) => {
        const [target_low, target_high, general_low, general_high] = drawn.bands[i];
        const ends = { target_low, target_high, general_low, general_high };
        return { kind, path, alpha: candidates.alpha[i], ...ends };
      }),
  );

  // Estimate and interval of a role at a candidate: on the report items where it was measured
  // there, else on the items the choice was made on.
  function reading(id, role) {
    if (page.reported[id]) return page.reported[id][role];
    const ends = sweep ? sweep.intervals[role][id] : [NaN, NaN];
    return [candidates[role][id], ...ends];
  }

  function cross(id) {
    if (id == null || (!sweep && !page.reported[id])) return [];
    const [[x, left, right], [y, down, up]] = ROLES.map((role) => reading(id, role));
    return [
      { target: left, target_end: right, general: y, general_end: y },
      { target: x, target_end: x, general: down, general_end: up },
    ];
  }

  function overlay(shown, hasReading) {
    const { kinds } = drawn;
    const found = shown.filter((i) => state.isTied[i]).map((i) => row(i, kinds.tied));
    const { chosen } = state;
    if (chosen == null || !shown.includes(chosen)) return found;
    if (hasReading && cross(chosen).length) {
      const [[target], [general]] = ROLES.map((role) => reading(chosen, role));
      found.push(row(chosen, kinds.reading, { target, general }));
    }
    return [...found, row(chosen, kinds.chosen)];
  }

  // Names of the ends where Python placed them, and that of the choice beside its point.
  function names(placed, role) {
    const { chosen } = state;
    if (!sweep || chosen == null) return placed;
    const { kinds } = drawn;
    const ends = placed.map((each) =>
      each.id === chosen ? { ...each, text: `${kinds.chosen} = ${each.text}` } : each,
    );
    if (placed.some((each) => each.id === chosen)) return ends;
    const [low, high] = role ? [0, 1] : drawn.ends.target;
    const value = role ? candidates.alpha[chosen] : candidates.target[chosen];
    const isRight = (value - low) / (high - low) > 0.6;
    const side = { align: isRight ? "right" : "left", dx: isRight ? -14 : 14 };
    return [...ends, row(chosen, "", { text: kinds.chosen, baseline: "top", dy: 9, ...side })];
  }

  const everything = drawn.marks.flatMap(([, members]) => members);

  function filled(chart, own) {
    if (chart === "plane") {
      return {
        front: lines(drawn.front),
        lines: lines(drawn.paths),
        marks: rows(drawn.marks),
        cross: cross(state.chosen),
        overlay: overlay(everything, true),
        names: names(own.names, ""),
      };
    }
    if (chart.startsWith("geometry")) return {};
    const named = Object.entries(own).filter(([name]) => name.startsWith("names"));
    return {
      ...(chart === "alpha" ? { bands } : {}),
      lines: lines(drawn.curves),
      marks: rows(drawn.curve_marks),
      choice: state.chosen == null ? [] : [{ alpha: candidates.alpha[state.chosen] }],
      overlay: overlay(
        Array.from(new Set([...drawn.along_alpha, ...(state.chosen == null ? [] : [state.chosen])])),
        false,
      ),
      ...Object.fromEntries(named.map(([name, placed]) => [name, names(placed, name)])),
    };
  }

  function tooltip(id, kind) {
    const isBase = id === places.base;
    const found = [
      ["step", isBase ? "base" : String(candidates.step[id])],
      ["alpha", String(Number(candidates.alpha[id].toPrecision(6)))],
      ["profile", candidates.profile[id]],
    ];
    const isReading = kind === drawn.kinds.reading && page.reported[id];
    for (const role of ROLES) {
      const [estimate, ...ends] = isReading ? page.reported[id][role] : roleOnSelection(id, role);
      const { unit } = page.axes[role];
      const hasInterval = ends.every(Number.isFinite);
      const text = hasInterval
        ? `${wording.interval(estimate, ends, unit)} ${unit}`
        : wording.withUnit(estimate, unit);
      found.push([role, text]);
    }
    page.objectives.forEach((objective, i) => {
      found.push([objective.name, wording.withUnit(candidates.scores[i][id], objective.unit)]);
    });
    found.push(["utility", wording.withUnit(utility(id), "points")]);
    found.push(["origin", candidates.origin[id]]);
    const marks = marksOf(id);
    if (marks.length) found.push(["marks", marks.join(", ")]);
    return found;
  }

  function roleOnSelection(id, role) {
    return [candidates[role][id], ...(sweep ? sweep.intervals[role][id] : [NaN, NaN])];
  }

  function marksOf(id) {
    const said = {
      chosen: id === state.chosen,
      base: id === places.base,
      final: id === places.final,
      front: candidates.is_on_front[id],
      tied: state.isTied[id],
      "misses a constraint": !state.isFeasible[id],
    };
    return Object.keys(said).filter((word) => said[word]);
  }

  const charts = drawings.make(page, filled, tooltip);

  // --- The table of candidates --------------------------------------------------------------

  const table = byId("all");
  const heads = Array.from(table.tHead.rows[0].cells);
  const live = Object.fromEntries(
    heads.map((head, i) => [head.dataset.live, i]).filter(([name]) => name),
  );
  const ofSelection = new Map(
    Array.from(table.tBodies[0].rows, (each) => [each, each.cells[live.chance].textContent]),
  );
  tables.makeSortable(table, live.utility);

  function say(cell, text) {
    if (cell.textContent !== text) cell.textContent = text;
  }

  function updateTable() {
    const isSelected = isAsSelected();
    for (const each of table.tBodies[0].rows) {
      const id = Number(each.dataset.id);
      each.classList.toggle("chosen", id === state.chosen);
      each.classList.toggle("infeasible", !state.isFeasible[id]);
      const marks = marksOf(id).map((word) => {
        const mark = document.createElement("span");
        mark.className = `mark ${word.replaceAll(" ", "-")}`;
        mark.textContent = word;
        return mark;
      });
      each.cells[1].replaceChildren(...marks.flatMap((mark) => [mark, " "]));
      say(each.cells[live.utility], wording.number(utility(id), "points"));
      if (live.smoothed != null) {
        say(each.cells[live.smoothed], wording.number(state.swept.smoothed[id], "points"));
      }
      say(each.cells[live.chance], isSelected ? ofSelection.get(each) : wording.NO_NUMBER);
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

  // Utility against an end: on the report items where they are the selection's own choice.
  function against(end) {
    const { chosen, swept } = state;
    const isReported = isAsSelected() && chosen === places.chosen && end in page.differences;
    const place = sweep.choosable.indexOf(chosen);
    const [change, ...ends] = isReported
      ? page.differences[end]
      : [utility(chosen) - utility(sweep[end]), ...swept[`to_${end}`][place]];
    const name = `Against the ${end}`;
    if (chosen === sweep[end]) return figure(name, wording.NO_NUMBER, "the choice itself");
    const items = isReported ? "report" : "selection";
    const note = `points of utility, ${wording.comparison(ends)}, on ${items} items`;
    return figure(name, wording.interval(change, ends, "points", true), note);
  }

  function updateReadings() {
    const { chosen } = state;
    const boxes = [];
    if (chosen != null) {
      const numTied = state.isTied.filter(Boolean).length;
      const note =
        numTied > 1 ? `${numTied} points cannot be told apart from the best` : "no other is tied";
      boxes.push(figure("Choice", candidates.name[chosen], note));
      for (const role of ROLES) {
        const [estimate, ...ends] = reading(chosen, role);
        const { unit } = page.axes[role];
        const items = page.reported[chosen] ? "report" : "selection";
        const text = wording.interval(estimate, ends, unit);
        boxes.push(
          figure(`${role[0].toUpperCase()}${role.slice(1)} (${unit})`, text, `on ${items} items`),
        );
      }
      boxes.push(against("base"), against("final"));
    }
    byId("readings").replaceChildren(...boxes);
  }

  function answer() {
    const { chosen, isFeasible } = state;
    const weight = String(Number(state.weight.toPrecision(6)));
    if (chosen != null) {
      return `At weight ${weight} the choice is ${candidates.name[chosen]}.`;
    }
    if (!sweep.is_whole && isFeasible.some(Boolean)) {
      return "Too many points for an answer here: the command below gives it.";
    }
    return "No measured point meets these bounds. Loosen one of them, or search more points.";
  }

  // The command that makes this choice, measures it on the report items and writes it.
  function command() {
    const parts = [`backtrack select ${page.run} --weight ${state.weight}`];
    const { objectives = {}, ...roles } = state.asked;
    for (const [name, value] of Object.entries(roles)) {
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
    const isFeasible = rule.feasible(page, state.asked);
    const hasMoved = isFeasible.some((isMet, i) => isMet !== state.isFeasible[i]);
    state.isFeasible = isFeasible;
    const found = rule.choose(page, state.swept, isFeasible);
    state.chosen = found ? found.chosen : null;
    state.isTied = found ? found.isTied : ids.map(() => false);
    show(hasMoved);
  }

  // Marks change with the bounds alone; all else with the weight too.
  function show(hasMoved) {
    const slider = byId("weight");
    slider.setAttribute("aria-valuetext", `weight ${state.weight}, ${answer()}`);
    if (document.activeElement !== byId("weight-number")) byId("weight-number").value = state.weight;
    byId("answer").textContent = answer();
    byId("command").textContent = command();
    updateReadings();
    updateTable();
    const moving = (rows) => ["overlay", "cross", "choice"].filter((name) => name in rows);
    const named = (rows) => Object.keys(rows).filter((name) => name.startsWith("names"));
    // Once a frame, however many steps the slider took in it; the words above do not wait.
    pending.marks ||= hasMoved;
    if (pending.isAsked) return;
    pending.isAsked = true;
    requestAnimationFrame(() => {
      const rows = (found) => [
        ...(pending.marks && "marks" in found ? ["marks"] : []),
        ...moving(found),
        ...named(found),
      ];
      charts.update(rows);
      pending.isAsked = pending.marks = false;
    });
  }

  // What is typed in the bounds; what is no number is no bound.
  function askedFor() {
    const asked = {};
    const objectives = {};
    for (const input of document.querySelectorAll("input[data-bound]")) {
      const { bound, objective } = input.dataset;
      if (input.value.trim() === "" || !input.checkValidity()) continue;
      if (objective) (objectives[objective] ??= {})[bound] = Number(input.value);
      else asked[bound] = Number(input.value);
    }
    // As the record spells them, so that the two can be compared.
    return { ...asked, objectives };
  }

  function fill() {
    const { weight, constraints } = page;
    byId("weight").value = sweep.weights.findIndex((each) => each.weight === weight);
    for (const input of document.querySelectorAll("input[data-bound]")) {
      const { bound, objective } = input.dataset;
      const from = objective ? (constraints.objectives || {})[objective] || {} : constraints;
      input.value = from[bound] ?? "";
    }
  }

  function nearest(weight) {
    const gaps = sweep.weights.map((each) => Math.abs(each.weight - weight));
    return gaps.indexOf(Math.min(...gaps));
  }

  function reselect() {
    state.asked = askedFor();
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
    for (const id of ["controls", "readings", "taking"]) byId(id).hidden = false;
    byId("selected").hidden = true; // The readings say as much, and go with the slider.
    reselect();
  }
})();
