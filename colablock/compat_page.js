// The page is whole without this: it only adds filters, and a panel below the row whose cell is chosen.
"use strict";
(() => {
  const find = (selector, from = document) => [...from.querySelectorAll(selector)];
  const named = (id) => document.getElementById(id);
  const grid = named("grid"), cards = named("cards"), filters = named("filters");
  const { q, on, is } = filters.elements;
  const links = find("a", grid);
  const target = (link) => named(decodeURIComponent(link.hash.slice(1)));
  const isOn = (part) => !on.value || part.dataset.on.split(" ").includes(on.value);
  let opened = null;

  // A long reason is written once for each matrix; where it is only referred to, it is said here in full.
  for (const short of find("[data-as]")) short.replaceChildren(...named(short.dataset.as).cloneNode(true).childNodes);

  function close() {
    find(".panel", grid).forEach((panel) => panel.remove());
    opened?.setAttribute("aria-expanded", "false");
    opened = null;
  }

  function remember(link) {
    const hash = link ? link.hash + (on.value && "/" + encodeURIComponent(on.value)) : " ";
    history.replaceState(null, "", hash.trim() || location.pathname + location.search);
  }

  function show(link) {
    close();
    const details = target(link);
    const say = details.querySelector(".say").cloneNode(true);
    find("[id]", say).forEach((part) => part.removeAttribute("id"));
    const head = document.createElement("h3");
    head.tabIndex = -1;
    head.textContent = details.closest("article").querySelector("h3").textContent + ": " + details.querySelector("summary > span").textContent;
    const button = document.createElement("button");
    button.textContent = "Close";
    button.addEventListener("click", () => leave());
    say.prepend(head, button);
    const row = link.closest("tr").cloneNode(false);
    row.className = "panel";
    row.append(document.createElement("td"));
    row.firstChild.colSpan = 1000;
    row.firstChild.append(say);
    link.closest("tr").after(row);
    link.setAttribute("aria-expanded", "true");
    opened = link;
    filter();
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
    const parts = decodeURIComponent(location.hash.slice(1)).split("/");
    if (parts.length === 3) {
      on.value = parts.pop();
      if (on.selectedIndex < 0) on.value = "";
      filter();
    }
    const id = parts.join("/");
    const link = links.find((one) => target(one)?.id === id);
    if (!link) return named(id)?.scrollIntoView();
    if (grid.offsetParent) return show(link);
    target(link).open = true;
    target(link).scrollIntoView();
  }

  function filter() {
    const words = q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (text) => words.every((word) => text.toLowerCase().includes(word));
    let matches = 0, cells = 0;
    document.body.classList.toggle("on", on.value !== "");
    for (const part of find("[data-on]")) part.hidden = !isOn(part);
    for (const article of find("article", cards)) {
      const about = article.querySelector("h3").textContent + article.querySelector("p").textContent;
      let left = 0;
      for (const details of find("details.cell", article)) {
        const groups = find(".group", details).filter(isOn);
        const said = [about, details.querySelector("summary").textContent, details.querySelector(".facts").textContent];
        const fits = groups.some((one) => (!is.value || one.dataset.is === is.value) && has([...said, one.textContent].join(" ")));
        const cell = links.find((link) => target(link) === details).parentNode;
        cell.classList.toggle("gap", !groups.length);
        cell.classList.toggle("off", !fits);
        details.hidden = !fits;
        cells += groups.length > 0;
        left += fits;
      }
      article.hidden = !left;
      find(`tr[data-matrix="${CSS.escape(article.id)}"]`, grid).forEach((row) => { row.hidden = !left; });
      matches += left;
    }
    hideColumns();
    named("nothing").hidden = matches > 0;
    filters.querySelector("output").textContent = matches < cells ? `${matches} of ${cells} cells match` : `${cells} cells`;
  }

  // A column without a result for the accelerator is no answer to the question.
  function hideColumns() {
    const rows = find("tr:not(.panel)", grid);
    for (let column = 1; column < rows[0].cells.length; column++) {
      const all = rows.map((row) => row.cells[column]);
      const isEmpty = on.value !== "" && all.slice(1).every((cell) => !cell.firstElementChild?.matches("a") || cell.matches(".gap"));
      all.forEach((cell) => { cell.hidden = isEmpty; });
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
    while (next?.hidden) next = row.cells[next.cellIndex + right];
    const link = next?.querySelector("a");
    if (link?.closest("td")) {
      event.preventDefault();
      link.focus();
    }
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
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && opened) leave(); });
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", () => {
    filter();
    if (opened) remember(opened);
  });
  addEventListener("hashchange", follow);

  document.documentElement.classList.add("js");
  links.forEach((link) => link.setAttribute("aria-expanded", "false"));
  filters.hidden = false;
  filter();
  follow();
})();
