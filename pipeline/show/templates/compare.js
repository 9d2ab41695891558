"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;

  // Light or dark; the system's choice until it is changed.
  const theme = $("theme");
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `${theme.textContent} colors`); };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  // Utterances: search, order, some at a time.
  const AT_ONCE = 15;
  const list = $("list");
  if (list) {
    const all = [...list.children].map((element) => ({
      element,
      text: element.dataset.search.toLowerCase(),
      errors: +element.dataset.errors, spread: +element.dataset.spread, rate: +element.dataset.rate,
    }));
    const find = $("find"), order = $("order"), differ = $("differ"), found = $("found"), more = $("more"), nothing = $("nothing");
    let most = AT_ONCE;
    const show = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const phrase = words.join(" ");
      const fits = all.filter((each) => (each.text.includes(phrase) || words.every((word) => each.text.includes(word))) && (!differ.checked || each.spread > 0));
      fits.sort((one, other) => other[order.value] - one[order.value]);
      const shown = new Set(fits.slice(0, most));
      for (const each of all) each.element.hidden = !shown.has(each);
      list.append(...fits.map((each) => each.element));
      found.textContent = fits.length === 1 ? "1 utterance" : `${fits.length} utterances`;
      more.hidden = fits.length <= most;
      more.textContent = `Show ${Math.min(AT_ONCE, fits.length - most)} more`;
      nothing.hidden = fits.length > 0;
    };
    const anew = () => { most = AT_ONCE; show(); };
    find.addEventListener("input", anew);
    order.addEventListener("change", anew);
    differ.addEventListener("change", anew);
    more.addEventListener("click", () => { most += AT_ONCE; show(); });
    $("tools").addEventListener("submit", (event) => event.preventDefault());
    $("tools").hidden = false;
    show();
  }

  // A line at a step of a chart, with the value of every system there; by pointer or by arrow keys.
  for (const svg of document.querySelectorAll(".chart svg")) {
    const lines = JSON.parse(svg.dataset.lines), names = JSON.parse(svg.dataset.names);
    const cursor = svg.querySelector(".cursor"), readout = svg.parentElement.querySelector(".readout");
    const places = [...new Map(lines.flat().map((point) => [point[2], point[0]])).entries()].sort((one, other) => one[0] - other[0]);
    const format = (value) => svg.dataset.percent === "1" ? `${(100 * value).toFixed(2)} %` : value.toPrecision(4);
    let at = -1;
    const show = (index) => {
      at = Math.max(0, Math.min(places.length - 1, index));
      const [step, x] = places[at];
      cursor.setAttribute("d", `M${x} 12 V${svg.viewBox.baseVal.height - 34}`);
      readout.replaceChildren(`step ${step.toLocaleString("en")}: `);
      let first = true;
      lines.forEach((points, number) => {
        const near = points.reduce((best, point) => Math.abs(point[2] - step) < Math.abs(best[2] - step) ? point : best);
        if (step < points[0][2] || step > points[points.length - 1][2]) return;
        const value = document.createElement("b");
        value.textContent = format(near[3]);
        readout.append(first ? "" : ", ", `${names[number]} `, value);
        first = false;
      });
    };
    const clear = () => { at = -1; cursor.setAttribute("d", ""); readout.textContent = "\u00a0"; };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      let best = 0;
      places.forEach((place, number) => { if (Math.abs(place[1] - x) < Math.abs(places[best][1] - x)) best = number; });
      show(best);
    });
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("blur", clear);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      show(at < 0 ? (step > 0 ? 0 : places.length - 1) : at + step);
    });
  }

  // Columns that sort.
  for (const table of document.querySelectorAll(".sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const down = cell.getAttribute("aria-sort") === (column ? "descending" : "ascending") ? (column ? 1 : -1) : (column ? -1 : 1);
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
        const value = (row) => { const of = row.cells[column]; return of.dataset.value === undefined ? of.textContent : +of.dataset.value; };
        const rows = [...body.rows].sort((one, other) => {
          const a = value(one), b = value(other);
          return down * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
        });
        body.append(...rows);
      });
    });
  }
})();
