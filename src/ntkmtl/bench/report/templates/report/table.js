"use strict";
// The table of results: sorted by a click, first columns kept in sight, saved as a file.
const ResultTable = (() => {
  const TYPES = { csv: "text/csv", tex: "application/x-tex" };

  function sorting(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const first = button.hasAttribute("data-descending") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = before === first ? other : first;
        heads.forEach((each) => each.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const text = button.hasAttribute("data-text");
        const value = (row) => {
          const cell = row.cells[column];
          if (text) return cell.textContent;
          return cell.dataset.value === "" ? null : Number(cell.dataset.value);
        };
        const rows = [...body.rows].map((row) => ({
          row,
          place: row.classList.contains("baseline") ? -1 : row.classList.contains("reference") ? 1 : 0,
          value: value(row),
        }));
        rows.sort((a, b) => {
          if (a.place !== b.place) return a.place - b.place;
          if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
          return sign * (text ? a.value.localeCompare(b.value) : a.value - b.value);
        });
        body.append(...rows.map((entry) => entry.row));
      });
    });
  }

  // Columns stay in sight as long as they leave room for others.
  function pin(table) {
    const room = 0.72 * table.parentElement.clientWidth;
    let left = 0;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (!head.classList.contains("pin")) return;
      const width = head.getBoundingClientRect().width;
      const fits = column === 0 || left + width <= room;
      for (const row of table.rows) {
        row.cells[column].style.left = fits ? left + "px" : "auto";
        row.cells[column].classList.toggle("free", !fits);
      }
      if (fits) left += width;
    });
  }

  function attach(article, data) {
    const table = article.querySelector("[data-results]");
    sorting(table);
    for (const button of article.querySelectorAll("[data-save]"))
      button.addEventListener("click", () => {
        const ending = button.dataset.save;
        Export.save(`${data.name}.${ending}`, TYPES[ending], data.files[ending]);
      });
    return () => pin(table);
  }

  return { attach };
})();
