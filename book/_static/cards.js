// Hover cards: beside a link to a term, a work or an equation stands what it leads to. By mouse, by keyboard, and by a
// first tap (the second follows the link). Escape closes a card; it stays while the pointer is on it.
document.addEventListener("DOMContentLoaded", () => {
  const store = document.getElementById("book-cards")?.content;
  const card = document.createElement("div");
  card.id = "book-card";
  card.role = "tooltip";
  card.popover = "manual";
  let shown = null, timer = 0, kind = "mouse";

  const content = (link) => {
    const href = link.getAttribute("href");
    if (!href.startsWith("#equation-")) return store?.querySelector(`[data-for="${CSS.escape(href)}"]`)?.childNodes;
    return document.getElementById(decodeURIComponent(href.slice(1)))?.querySelectorAll(".katex-display");
  };

  const hide = () => {
    clearTimeout(timer);
    shown?.removeAttribute("aria-describedby");
    shown = null;
    if (card.isConnected) card.hidePopover();
  };

  const show = (link, found) => {
    clearTimeout(timer);
    if (link === shown) return;
    hide();
    card.replaceChildren(...[...found].map((node) => node.cloneNode(true)));
    if (!card.isConnected) document.body.append(card);
    link.setAttribute("aria-describedby", card.id);
    card.showPopover();
    shown = link;
    const at = link.getClientRects()[0], { width, height } = card.getBoundingClientRect();
    const edge = document.documentElement.clientWidth - width - 8;
    const above = at.bottom + height + 8 > innerHeight && at.top > height + 8;
    card.style.left = `${scrollX + Math.max(8, Math.min(at.left, edge))}px`;
    card.style.top = `${scrollY + (above ? at.top - height - 4 : at.bottom + 4)}px`;
  };

  const later = (action, delay) => {
    clearTimeout(timer);
    timer = setTimeout(action, delay);
  };
  const linkOf = (event) => event.target.closest?.("article a.reference.internal[href*='#']");

  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const link = linkOf(event), found = link && content(link);
    if (found?.length) later(() => show(link, found), 120);
    else if (card.contains(event.target)) clearTimeout(timer);
    else if (shown !== document.activeElement) later(hide, 250);
  });
  document.addEventListener("pointerdown", (event) => {
    kind = event.pointerType;
    if (shown && linkOf(event) !== shown && !card.contains(event.target)) hide();
  });
  document.addEventListener("click", (event) => {
    const link = kind === "touch" && event.detail && linkOf(event), found = link && content(link);
    if (!found?.length || link === shown) return;
    event.preventDefault();
    show(link, found);
  });
  document.addEventListener("focusin", (event) => {
    const link = linkOf(event), found = link?.matches(":focus-visible") && content(link);
    if (found?.length) show(link, found);
  });
  document.addEventListener("focusout", (event) => { if (event.target === shown) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
});
