// Gallery: buttons narrow it down. What is chosen stands in the address after #, so that it can be linked.
(() => {
  const filters = document.querySelector(".book-filters");
  if (!filters) return;
  const cards = [...document.querySelectorAll(".book-card[data-part]")];
  const buttons = [...filters.querySelectorAll("[data-facet]")];
  const pressed = (b) => b.getAttribute("aria-pressed") === "true";
  const fits = (card) => {
    const chosen = buttons.filter(pressed);
    const held = (b) => card.dataset[b.dataset.facet].split(" ").includes(b.value);
    return chosen.every((b) => chosen.some((other) => other.dataset.facet === b.dataset.facet && held(other)));
  };

  const show = () => {
    cards.forEach((card) => { card.hidden = !fits(card); });
    filters.querySelector("[role=status]").textContent = `${cards.filter((c) => !c.hidden).length} of ${cards.length} chapters`;
  };
  const read = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    buttons.forEach((b) => b.setAttribute("aria-pressed", wanted.getAll(b.dataset.facet).includes(b.value)));
    show();
  };
  filters.addEventListener("click", ({ target }) => {
    if (target.matches("[data-facet]")) target.setAttribute("aria-pressed", !pressed(target));
    else if (target.matches("[data-all]")) buttons.forEach((b) => b.setAttribute("aria-pressed", false));
    else return;
    history.replaceState(null, "", `#${new URLSearchParams(buttons.filter(pressed).map((b) => [b.dataset.facet, b.value]))}`);
    show();
  });
  addEventListener("hashchange", read);
  filters.hidden = false;
  read();
})();
