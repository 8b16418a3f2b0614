// Sorts the table by a column: a click on its head cycles through both directions and the original order.
element.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (!button) return;
  const head = button.closest("th");
  const body = head.closest("table").tBodies[0];
  const rows = [...body.rows];
  rows.forEach((row, place) => { row.dataset.place ??= place; });

  const other = { ascending: "descending", descending: "ascending" };
  const first = head.dataset.first;
  const now = head.getAttribute("aria-sort");
  const next = now === "none" ? first : now === first ? other[first] : "none";
  for (const one of head.parentElement.querySelectorAll("[aria-sort]")) one.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", next);

  const sign = next === "descending" ? -1 : 1;
  const key = (row) => row.cells[head.cellIndex].dataset.key;
  rows.sort((a, b) => {
    const inOrder = a.dataset.place - b.dataset.place;
    if (next === "none") return inOrder;
    if (!key(a) || !key(b)) return !key(a) - !key(b) || inOrder; // images without a probability are last
    const difference = head.dataset.kind === "number"
      ? key(a) - key(b)
      : key(a).localeCompare(key(b), undefined, { numeric: true });
    return sign * difference || inOrder;
  });
  body.append(...rows);
});
