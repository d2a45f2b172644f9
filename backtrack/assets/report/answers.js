"use strict";
// Items won and lost: one outcome of an objective at a time, and keys that go from item to item.
(() => {
  for (const section of document.querySelectorAll("[data-answers]")) {
    const filter = section.querySelector("fieldset");
    const outcomes = [...filter.querySelectorAll("input")];
    const items = [...section.querySelectorAll("article")];
    const shown = () => items.filter((item) => !item.hidden);

    // Of the items that are shown, the one that was focused last is a stop of the tab key.
    function stopAt(item) {
      for (const other of items) other.tabIndex = other === item ? 0 : -1;
    }

    function show() {
      const outcome = outcomes.find((input) => input.checked).value;
      for (const item of items) item.hidden = item.dataset.outcome !== outcome;
      for (const note of section.querySelectorAll("[data-sample]")) note.hidden = note.dataset.sample !== outcome;
      stopAt(shown()[0]);
    }

    function go(steps) {
      const at = shown().indexOf(document.activeElement);
      const next = shown()[at < 0 ? 0 : at + steps];
      if (!next) return;
      stopAt(next);
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "nearest" });
    }

    section.addEventListener("focusin", (event) => {
      if (items.includes(event.target)) stopAt(event.target);
    });
    section.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const key = event.key.toLowerCase();
      const chosen = outcomes[Number(key) - 1];
      if (key === "j") go(1);
      else if (key === "k") go(-1);
      else if (chosen) {
        chosen.checked = true;
        show();
        chosen.focus();
      } else return;
      event.preventDefault();
    });
    filter.addEventListener("change", show);
    filter.hidden = false;
    show();
  }
})();
