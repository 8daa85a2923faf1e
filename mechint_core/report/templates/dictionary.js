"use strict";
const table = document.querySelector("#latents tbody"), cards = document.querySelector("#cards");
const rows = [...table.rows].map((row) => {
  const card = cards.querySelector(`[data-latent="${row.dataset.latent}"]`);
  return { row, card, text: (row.textContent + " " + (card ? card.textContent : "")).toLowerCase().replace(/\s+/g, " ") };
});
const search = document.querySelector("#search"), only = document.querySelector("#only"), count = document.querySelector("#count");
document.querySelector(".bar").hidden = false;

/* A number is found as a whole, a word anywhere. */
function finder(word) {
  const whole = /^\d+$/.test(word) && new RegExp(`(?<![\\w.])${word}(?![\\w.])`);
  return (text) => (whole ? whole.test(text) : text.includes(word));
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean).map(finder);
  let shown = 0;
  for (const { row, card, text } of rows) {
    const seen = words.every((found) => found(text)) && (!only.value || row.classList.contains(only.value));
    row.hidden = !seen;
    if (card) card.hidden = !seen;
    shown += seen;
  }
  count.textContent = `${shown} of ${rows.length}`;
}

function sort(header) {
  const column = header.cellIndex, down = header.getAttribute("aria-sort") !== "descending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = ({ row }) => row.cells[column].dataset.key ?? row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -order : order;
  };
  for (const { row, card } of rows.sort(compare)) {
    table.append(row);
    if (card) cards.append(card);
  }
}

search.addEventListener("input", filter);
only.addEventListener("change", filter);
for (const header of document.querySelectorAll("#latents thead th")) {
  header.tabIndex = 0;
  header.addEventListener("click", () => sort(header));
  header.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(header); });
}
filter();
