// A click, or Enter, on a column's heading sorts its table; without this script tables stand in their
// order. A row is a <tbody>, so that its details move with it; a cell's `data-value` is what counts,
// and cells without one come last either way.
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  const valueOf = (body, column) => body.rows[0].cells[column].dataset.value ?? "";
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const sort = (column) => {
    const head = heads[column];
    const first = head.dataset.first;
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const each of heads) each.setAttribute("aria-sort", each === head ? order : "none");
    const sign = order === "ascending" ? 1 : -1;
    const bodies = [...table.tBodies].map((body) => [valueOf(body, column), body]);
    bodies.sort(([a], [b]) => (a === "") - (b === "") || sign * compare(a, b));
    table.append(...bodies.map(([, body]) => body));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(column));
  });
}
