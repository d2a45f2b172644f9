"use strict";
// Tables that sort by a click on a column heading. Cells are compared by `data-value`, else by the
// first number in their text, else as text; first numbers from the highest down, texts from A.
const tables = (() => {
  function valueOf(cell) {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = parseFloat(text.replace("\u2212", "-").replace(/[,<]/g, ""));
    return Number.isFinite(number) ? number : text;
  }

  function compare(a, b) {
    const numbers = [typeof a === "number", typeof b === "number"];
    if (numbers[0] && numbers[1]) return a - b;
    if (numbers[0] || numbers[1]) return numbers[0] ? 1 : -1;
    return b.localeCompare(a);
  }

  function sort(table, column, isDescending) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => [valueOf(row.cells[column]), row]);
    rows.sort((a, b) => (isDescending ? compare(b[0], a[0]) : compare(a[0], b[0])));
    body.append(...rows.map(([, row]) => row));
  }

  function resort(table) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const column = heads.findIndex((head) => head.hasAttribute("aria-sort"));
    if (column >= 0) sort(table, column, heads[column].getAttribute("aria-sort") === "descending");
  }

  function makeSortable(table, first) {
    const heads = Array.from(table.tHead.rows[0].cells);
    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const isDescending = head.getAttribute("aria-sort") !== "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
        resort(table);
      });
    }
    heads[first]?.setAttribute("aria-sort", "descending");
  }

  return { makeSortable, resort };
})();
