"use strict";
// Search, filter, and the file of ticked rows for `raft train --exclude`.
const rows = [...document.querySelectorAll("article")];
const [search, kind, count, save] = ["search", "kind", "count", "save"].map((id) =>
  document.getElementById(id));

function show() {
  const words = search.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const fits = (!kind.value || row.dataset.kinds.split("\n").includes(kind.value)) &&
      row.textContent.toLowerCase().includes(words);
    row.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
}

// Lines are percent-encoded, because the page shows characters that hide or reverse text otherwise.
function ticked() {
  return rows.filter((row) => row.querySelector("input")?.checked)
    .map((row) => decodeURIComponent(row.dataset.line));
}

search.value = decodeURIComponent(location.hash.slice(1));
search.addEventListener("input", show);
kind.addEventListener("change", show);
document.addEventListener("change", () => {
  save.textContent = `Save ${ticked().length} ticked as exclude.txt`;
});
save.addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(ticked().map((line) => line + "\n")));
  link.download = "exclude.txt";
  link.click();
});
show();
