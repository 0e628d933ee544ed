// What scrolls on its own (wide tables, long formulas and lines of code) can be reached by keyboard, while it does.
const reach = () => {
  for (const box of document.querySelectorAll(".pst-scrollable-table-container, .book-wide, .sslref-scroll, div.math, .highlight pre, .output pre, div:has(> table.table)")) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
addEventListener("load", reach);
addEventListener("resize", reach);
document.addEventListener("toggle", reach, true);

// On paper: the light colours, and what is folded open, except code whose result is shown.
let mode = "";
addEventListener("beforeprint", () => {
  mode = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
  document.querySelectorAll("article details:not(.hide)").forEach((fold) => { fold.open = true; });
});
addEventListener("afterprint", () => { document.documentElement.dataset.theme = mode; });
