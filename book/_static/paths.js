// Reading paths: an address that ends in ?path=… shows the stations of that path in place of the book's own order.
(() => {
  const taken = new URLSearchParams(location.search).get("path");
  const stations = [...document.querySelectorAll("[data-path]")].filter((e) => e.dataset.path === taken);
  stations.forEach((e) => { e.hidden = false; });
  if (stations.length) document.querySelectorAll(".prev-next-footer").forEach((e) => { e.hidden = true; });
})();
