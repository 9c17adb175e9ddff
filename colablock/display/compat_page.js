// The page is complete without this script.  It adds filters, and a panel below the row of the selected cell.
"use strict";
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const textOf = (selector, from) => from.querySelector(selector).textContent;
  const grid = byId("grid"), cards = byId("cards"), filters = byId("filters");
  const { q, on, is } = filters.elements;
  const links = all("a", grid);
  const detailsOf = (link) => byId(idOf(link.hash));
  const linkOf = new Map(links.map((link) => [detailsOf(link), link]));
  const isOn = (part) => !on.value || part.dataset.on.split(" ").includes(on.value);
  let opened = null;

  // Return the id in a fragment, or "" if it is malformed.
  function idOf(hash) {
    try {
      return decodeURIComponent(hash.slice(1));
    } catch {
      return "";
    }
  }

  // A long reason is written in full once per matrix.  Replace each shortened one by a copy of the full one.
  for (const short of all("[data-as]")) {
    short.replaceChildren(...byId(short.dataset.as).cloneNode(true).childNodes);
  }

  function close() {
    all(".panel", grid).forEach((panel) => panel.remove());
    if (opened) {
      opened.setAttribute("aria-expanded", "false");
      detailsOf(opened).open = false;
    }
    opened = null;
  }

  function setFragment(link) {
    const hash = link ? link.hash + (on.value && "/" + encodeURIComponent(on.value)) : "";
    history.replaceState(null, "", location.pathname + location.search + hash);
  }

  function show(link) {
    close();
    const details = detailsOf(link);
    const body = details.querySelector(".body").cloneNode(true);
    all("[id]", body).forEach((part) => part.removeAttribute("id"));
    const head = document.createElement("h3");
    head.tabIndex = -1;
    head.textContent = `${textOf("h3", details.closest("article"))}: ${textOf("summary > span", details)}`;
    const button = document.createElement("button");
    button.textContent = "Close";
    button.addEventListener("click", () => dismiss());
    body.prepend(head, button);
    const above = link.closest("tr");
    const row = above.cloneNode(false); // it is hidden with the row above
    row.className = "panel";
    row.insertCell().colSpan = above.cells.length;
    row.cells[0].append(body);
    above.after(row);
    link.setAttribute("aria-expanded", "true");
    details.open = true; // for a narrow window and for print
    opened = link;
    filter();
    link.scrollIntoView({ block: "nearest", inline: "nearest" });
    head.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  function dismiss() {
    const link = opened;
    close();
    setFragment(null);
    link.focus();
  }

  // Open "#qlora-2026/colab-2026.08-gpu/T4": a matrix, optionally with a runtime and an accelerator.
  function openFragment() {
    const parts = idOf(location.hash).split("/");
    if (parts.length === 3) {
      on.value = parts.pop();
      if (on.selectedIndex < 0) on.value = "";
      filter();
    }
    const element = byId(parts.join("/"));
    const link = linkOf.get(element);
    if (link && grid.offsetParent) return show(link);
    if (link) element.open = true;
    element?.scrollIntoView();
  }

  function filter() {
    const words = q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (text) => words.every((word) => text.toLowerCase().includes(word));
    let matches = 0, cells = 0;
    document.body.classList.toggle("on", on.value !== "");
    for (const part of all("[data-on]")) part.hidden = !isOn(part);
    for (const article of all("article", cards)) {
      const about = textOf("h3", article) + " " + textOf("p", article);
      let left = 0;
      for (const details of all("details.cell", article)) {
        const groups = all(".group", details).filter(isOn);
        const text = [about, textOf("summary", details), textOf(".facts", details)].join(" ");
        const wanted = groups.filter((group) => !is.value || group.dataset.is === is.value);
        const fits = wanted.some((group) => has(text + " " + group.textContent));
        const cell = linkOf.get(details).parentNode;
        cell.classList.toggle("gap", !groups.length);
        cell.classList.toggle("off", !fits);
        details.hidden = !fits;
        cells += groups.length > 0;
        left += fits;
      }
      article.hidden = !left;
      for (const row of all(`tr[data-matrix="${CSS.escape(article.id)}"]`, grid)) row.hidden = !left;
      matches += left;
    }
    hideColumns();
    if (opened?.closest(".gap")) close();
    byId("nothing").hidden = matches > 0;
    const counted = matches < cells ? `${matches} of ${cells} cells match` : `${cells} cells`;
    filters.querySelector("output").textContent = counted;
  }

  // Hide the columns that have no result for the selected accelerator.
  function hideColumns() {
    const rows = all("tr:not(.panel)", grid);
    for (let column = 1; column < rows[0].cells.length; column++) {
      const [head, ...cells] = rows.map((row) => row.cells[column]);
      const isEmpty = cells.every((cell) => cell.matches(".gap") || !cell.querySelector("a"));
      for (const cell of [head, ...cells]) cell.hidden = on.value !== "" && isEmpty;
    }
  }

  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  function moveFocus(event) {
    const cell = event.target.closest("td");
    if (!(event.key in steps) || !cell || cell.closest(".panel")) return;
    const rows = all("tbody tr:not(.panel):not([hidden])", grid);
    const [down, right] = steps[event.key];
    const row = rows[rows.indexOf(cell.parentNode) + down];
    let next = row?.cells[cell.cellIndex + right];
    while (right && next?.hidden) next = row.cells[next.cellIndex + right];
    const link = next?.querySelector("a");
    if (!link || next.matches("th")) return;
    event.preventDefault();
    link.focus();
  }

  grid.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!links.includes(link)) return;
    event.preventDefault();
    if (link === opened) return dismiss();
    show(link);
    setFragment(link);
  });
  grid.addEventListener("keydown", moveFocus);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && opened && !filters.contains(event.target)) dismiss();
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", () => {
    const was = opened;
    filter();
    if (was) setFragment(opened);
  });
  addEventListener("hashchange", openFragment);

  document.documentElement.classList.add("js");
  links.forEach((link) => link.setAttribute("aria-expanded", "false"));
  filters.hidden = false;
  filter();
  openFragment();
})();
