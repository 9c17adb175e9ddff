// The page is whole without this: it only adds filters, and a panel below the row whose cell is chosen.
"use strict";
(() => {
  const find = (selector, from = document) => [...from.querySelectorAll(selector)];
  const named = (id) => document.getElementById(id);
  const textOf = (selector, from) => from.querySelector(selector).textContent;
  const grid = named("grid"), cards = named("cards"), filters = named("filters");
  const { q, on, is } = filters.elements;
  const links = find("a", grid);
  const target = (link) => named(meant(link.hash));
  const places = new Map(links.map((link) => [target(link), link]));
  const isOn = (part) => !on.value || part.dataset.on.split(" ").includes(on.value);
  let opened = null;

  // What a fragment names; nothing, where it is malformed.
  function meant(hash) {
    try {
      return decodeURIComponent(hash.slice(1));
    } catch {
      return "";
    }
  }

  // A long reason is written once for each matrix; where it is only referred to, it is said here in full.
  for (const short of find("[data-as]")) {
    short.replaceChildren(...named(short.dataset.as).cloneNode(true).childNodes);
  }

  function close() {
    find(".panel", grid).forEach((panel) => panel.remove());
    if (opened) {
      opened.setAttribute("aria-expanded", "false");
      target(opened).open = false;
    }
    opened = null;
  }

  function remember(link) {
    const hash = link ? link.hash + (on.value && "/" + encodeURIComponent(on.value)) : "";
    history.replaceState(null, "", location.pathname + location.search + hash);
  }

  function show(link) {
    close();
    const details = target(link);
    const say = details.querySelector(".say").cloneNode(true);
    find("[id]", say).forEach((part) => part.removeAttribute("id"));
    const head = document.createElement("h3");
    head.tabIndex = -1;
    head.textContent = `${textOf("h3", details.closest("article"))}: ${textOf("summary > span", details)}`;
    const button = document.createElement("button");
    button.textContent = "Close";
    button.addEventListener("click", () => leave());
    say.prepend(head, button);
    const above = link.closest("tr");
    const row = above.cloneNode(false); // it hides with the row above
    row.className = "panel";
    row.insertCell().colSpan = above.cells.length;
    row.cells[0].append(say);
    above.after(row);
    link.setAttribute("aria-expanded", "true");
    details.open = true; // for a narrower window, and for paper
    opened = link;
    filter();
    link.scrollIntoView({ block: "nearest", inline: "nearest" });
    head.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  function leave() {
    const link = opened;
    close();
    remember(null);
    link.focus();
  }

  // "#qlora-2026/colab-2026.08-gpu/T4": a matrix, a runtime and an accelerator, as far as they are given.
  function follow() {
    const parts = meant(location.hash).split("/");
    if (parts.length === 3) {
      on.value = parts.pop();
      if (on.selectedIndex < 0) on.value = "";
      filter();
    }
    const place = named(parts.join("/"));
    const link = places.get(place);
    if (link && grid.offsetParent) return show(link);
    if (link) place.open = true;
    place?.scrollIntoView();
  }

  function filter() {
    const words = q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (text) => words.every((word) => text.toLowerCase().includes(word));
    let matches = 0, cells = 0;
    document.body.classList.toggle("on", on.value !== "");
    for (const part of find("[data-on]")) part.hidden = !isOn(part);
    for (const article of find("article", cards)) {
      const about = textOf("h3", article) + " " + textOf("p", article);
      let left = 0;
      for (const details of find("details.cell", article)) {
        const groups = find(".group", details).filter(isOn);
        const said = [about, textOf("summary", details), textOf(".facts", details)].join(" ");
        const asked = groups.filter((group) => !is.value || group.dataset.is === is.value);
        const fits = asked.some((group) => has(said + " " + group.textContent));
        const cell = places.get(details).parentNode;
        cell.classList.toggle("gap", !groups.length);
        cell.classList.toggle("off", !fits);
        details.hidden = !fits;
        cells += groups.length > 0;
        left += fits;
      }
      article.hidden = !left;
      for (const row of find(`tr[data-matrix="${CSS.escape(article.id)}"]`, grid)) row.hidden = !left;
      matches += left;
    }
    hideColumns();
    if (opened?.closest(".gap")) close();
    named("nothing").hidden = matches > 0;
    const counted = matches < cells ? `${matches} of ${cells} cells match` : `${cells} cells`;
    filters.querySelector("output").textContent = counted;
  }

  // A column without a result for the accelerator is no answer to the question.
  function hideColumns() {
    const rows = find("tr:not(.panel)", grid);
    for (let column = 1; column < rows[0].cells.length; column++) {
      const all = rows.map((row) => row.cells[column]);
      const isEmpty = all.slice(1).every((cell) => cell.matches(".gap") || !cell.querySelector("a"));
      for (const cell of all) cell.hidden = on.value !== "" && isEmpty;
    }
  }

  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  function step(event) {
    const cell = event.target.closest("td");
    if (!(event.key in steps) || !cell || cell.closest(".panel")) return;
    const rows = find("tbody tr:not(.panel):not([hidden])", grid);
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
    if (link === opened) return leave();
    show(link);
    remember(link);
  });
  grid.addEventListener("keydown", step);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && opened && !filters.contains(event.target)) leave();
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", () => {
    const was = opened;
    filter();
    if (was) remember(opened);
  });
  addEventListener("hashchange", follow);

  document.documentElement.classList.add("js");
  links.forEach((link) => link.setAttribute("aria-expanded", "false"));
  filters.hidden = false;
  filter();
  follow();
})();
