"use strict";
// An arena's page: sortable tables, and entrants switched on and off in charts and table.
(() => {
  const page = JSON.parse(document.getElementById("payload").textContent);
  const boxes = Array.from(document.querySelectorAll("#entrants input"));
  const button = document.getElementById("all-or-none");
  const shown = () => new Set(boxes.filter((box) => box.checked).map((box) => box.value));

  // Rows without an entrant, such as those of forgetting, stay.
  function dataOf(_, own) {
    const names = shown();
    const isShown = (row) => !("entrant" in row) || names.has(row.entrant);
    return Object.fromEntries(
      Object.entries(own).map(([name, rows]) => [name, rows.filter(isShown)]),
    );
  }

  const views = charts.make(page, dataOf, () => []);

  function update() {
    const names = shown();
    for (const row of document.querySelectorAll("tr[data-entrant]")) {
      row.classList.toggle("infeasible", !names.has(row.dataset.entrant));
    }
    button.textContent = names.size ? "None" : "All";
    views.update((rows) => Object.keys(rows));
  }

  for (const box of boxes) box.addEventListener("change", update);
  button.addEventListener("click", () => {
    const isOn = shown().size === 0;
    for (const box of boxes) box.checked = isOn;
    update();
  });
  document.getElementById("entrants").hidden = false;
  for (const table of document.querySelectorAll("table")) tables.makeSortable(table);
})();
