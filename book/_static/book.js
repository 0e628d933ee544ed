// Sliders: a range input shows one frame of a stack. Frames are drawn beforehand; nothing is computed here.
document.addEventListener("input", ({ target }) => {
  const stack = document.getElementById(target.dataset?.stack);
  if (!stack) return;
  const step = (target.value - target.min) / (target.step || 1);
  [...stack.children].forEach((frame, i) => { frame.hidden = i !== step; });
  target.setAttribute("aria-valuetext", stack.children[step].querySelector("p")?.textContent ?? target.value);
});

// A page opened from disk may not read other pages, so search results come without their excerpts there.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
