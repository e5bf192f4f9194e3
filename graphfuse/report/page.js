"use strict";
document.documentElement.classList.add("script");

/* Tips: what an element says when it is pointed at or focused. */
(function tips() {
  const tip = document.getElementById("tip");
  function show(target, x, y) {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
    const top = y + box.height + 22 > innerHeight ? y - box.height - 12 : y + 16;
    tip.style.left = left + "px";
    tip.style.top = Math.max(8, top) + "px";
  }
  document.addEventListener("pointermove", (event) => {
    const target = event.buttons ? null : event.target.closest("[data-tip]");
    if (target) show(target, event.clientX, event.clientY);
    else tip.hidden = true;
  });
  document.addEventListener("focusin", (event) => {
    const target = event.target.closest("[data-tip]");
    if (!target) return;
    const box = target.getBoundingClientRect();
    show(target, box.right, box.bottom);
  });
  document.addEventListener("focusout", () => { tip.hidden = true; });
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);
})();

/* Charts: one stop for the Tab key in each, arrow keys from point to point. */
for (const chart of document.querySelectorAll(".chart")) {
  const marks = [...chart.querySelectorAll(".mark")];
  for (const [i, mark] of marks.entries()) {
    mark.setAttribute("tabindex", i ? "-1" : "0");
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = marks[(i + step + marks.length) % marks.length];
      mark.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }
}

/* Tabs: one panel at a time, arrow keys between them. */
for (const group of document.querySelectorAll(".tabs")) {
  const tabs = [...group.querySelectorAll(":scope > [role=tablist] > [role=tab]")];
  const choose = (chosen) => {
    for (const tab of tabs) {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !on;
    }
    group.dispatchEvent(new CustomEvent("shown"));
  };
  for (const [i, tab] of tabs.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(i + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  }
  const linked = tabs.find((tab) => "#" + tab.getAttribute("aria-controls") === location.hash);
  choose(linked || tabs[0]);
}

/* Moving and zooming a picture by its viewBox; `view` is [left, top, width, height] in the picture's own units. */
function movable(canvas, svg) {
  const whole = svg.viewBox.baseVal;
  const home = [whole.x, whole.y, whole.width, whole.height];
  let view = home.slice();
  const pointers = new Map();
  const apply = () => svg.setAttribute("viewBox", view.join(" "));
  const scale = () => Math.max(view[2] / (canvas.clientWidth || 1), view[3] / (canvas.clientHeight || 1));
  const place = (x, y) => {
    const box = canvas.getBoundingClientRect(), s = scale();
    return [view[0] + view[2] / 2 + (x - box.left - box.width / 2) * s, view[1] + view[3] / 2 + (y - box.top - box.height / 2) * s];
  };
  function zoom(factor, x, y) {
    const limited = Math.min(Math.max(view[2] * factor, 160), home[2] * 1.6) / view[2];
    view = [x + (view[0] - x) * limited, y + (view[1] - y) * limited, view[2] * limited, view[3] * limited];
    apply();
  }
  const middle = () => [view[0] + view[2] / 2, view[1] + view[3] / 2];
  const move = (dx, dy) => { view[0] += dx; view[1] += dy; apply(); };
  /* The whole picture; at first only its beginning where the whole would be too small to read. */
  function fit(readable) {
    view = home.slice();
    const most = canvas.clientWidth < 600 ? 1.3 : 1.75, least = 0.85, s = scale();
    if (s < least) {
      const wide = canvas.clientWidth * least, high = canvas.clientHeight * least;
      view = [home[0] + (home[2] - wide) / 2, home[1] + (home[3] - high) / 2, wide, high];
    }
    if (readable && s > most) {
      view[2] = Math.min(home[2], canvas.clientWidth * most);
      view[3] = Math.min(home[3], canvas.clientHeight * most);
    }
    apply();
  }
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(Math.exp(event.deltaY * 0.004), ...place(event.clientX, event.clientY));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { pointers.set(event.pointerId, [event.clientX, event.clientY]); });
  addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    pointers.set(event.pointerId, now);
    canvas.classList.add("moving");
    const s = scale();
    move((before[0] - now[0]) * s / pointers.size, (before[1] - now[1]) * s / pointers.size);
    if (other) {
      const far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
      zoom(far(before) / far(now), ...place((now[0] + other[0]) / 2, (now[1] + other[1]) / 2));
    }
  });
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    canvas.classList.remove("moving");
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-60, 0], ArrowRight: [60, 0], ArrowUp: [0, -60], ArrowDown: [0, 60] }[event.key];
    if (step) move(step[0] * scale(), step[1] * scale());
    else if (event.key === "+" || event.key === "=") zoom(0.8, ...middle());
    else if (event.key === "-") zoom(1.25, ...middle());
    else if (event.key === "0") fit(false);
    else return;
    event.preventDefault();
  });
  /* Brings an element into view, at a size at which it can be read; where it is in view already, nothing moves. */
  function reveal(element) {
    const box = element.getBoundingClientRect(), frame = canvas.getBoundingClientRect();
    const inside = box.left >= frame.left && box.right <= frame.right && box.top >= frame.top && box.bottom <= frame.bottom;
    if (inside && scale() < 3) return;
    const [x, y] = place((box.left + box.right) / 2, (box.top + box.bottom) / 2);
    if (scale() > 1.75) { view[2] = canvas.clientWidth * 1.3; view[3] = canvas.clientHeight * 1.3; }
    view[0] = x - view[2] / 2;
    view[1] = y - view[3] / 2;
    apply();
  }
  return { zoom: (factor) => zoom(factor, ...middle()), fit, reveal };
}

/* Explorers: picking an axis lights up all that it touches; a click on a card steps through the card's axes. */
for (const explorer of document.querySelectorAll(".explorer")) {
  const svg = explorer.querySelector(".graph");
  const rows = [...explorer.querySelectorAll(".axis-list > li")];
  let picked = null, view = null;
  const lit = (axis) => (svg ? svg.querySelectorAll(`[data-axes~="${axis}"]`) : []);
  function show(axis) {
    if (svg) {
      for (const element of svg.querySelectorAll(".on")) element.classList.remove("on");
      svg.classList.toggle("picking", axis !== null);
      if (axis !== null) for (const element of lit(axis)) element.classList.add("on");
    }
  }
  function pick(axis, move) {
    picked = axis === picked ? null : axis;
    for (const row of rows) {
      const on = row.dataset.axis === picked;
      row.querySelector("button").setAttribute("aria-pressed", String(on));
      row.querySelector(".touches").hidden = !on;
      if (on) row.scrollIntoView({ block: "nearest" });
    }
    show(picked);
    const first = move && picked !== null && view && svg.querySelector(".card.on");
    if (first && ![...svg.querySelectorAll(".card.on")].some(inView)) view.reveal(first);
  }
  function inView(element) {
    const box = element.getBoundingClientRect(), frame = svg.getBoundingClientRect();
    return box.right > frame.left && box.left < frame.right && box.bottom > frame.top && box.top < frame.bottom;
  }
  for (const row of rows) {
    const button = row.querySelector("button");
    button.addEventListener("click", () => pick(row.dataset.axis, true));
    button.addEventListener("pointerenter", () => { if (picked === null) show(row.dataset.axis); });
    button.addEventListener("pointerleave", () => show(picked));
  }
  explorer.addEventListener("keydown", (event) => { if (event.key === "Escape" && picked !== null) pick(picked); });
  if (!svg) continue;

  const canvas = explorer.querySelector(".canvas");
  view = movable(canvas, svg);
  for (const button of explorer.querySelectorAll("[data-zoom]")) {
    const kind = button.dataset.zoom;
    button.addEventListener("click", () => (kind === "fit" ? view.fit(false) : view.zoom(kind === "in" ? 0.75 : 1.33)));
  }
  const first = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    first.disconnect();
    view.fit(true);
  });
  first.observe(canvas);

  const known = new Set(rows.map((row) => row.dataset.axis));
  let pressed = null;
  canvas.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; });
  canvas.addEventListener("click", (event) => {
    if (pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 5) return;
    const own = event.target.closest("[data-axes]");
    const axes = own ? own.dataset.axes.split(" ").filter((axis) => known.has(axis)) : [];
    if (axes.length) pick(axes[(axes.indexOf(picked) + 1) % axes.length]);
    else if (picked !== null) pick(picked);
  });
  const input = explorer.querySelector("input[type=search]"), told = explorer.querySelector(".matches");
  const cards = [...svg.querySelectorAll(".card")];
  let matches = [], at = 0;
  function go(step) {
    if (matches.length) {
      at = (at + step + matches.length) % matches.length;
      view.reveal(matches[at]);
    }
    for (const card of svg.querySelectorAll(".card.here")) card.classList.remove("here");
    if (matches.length) matches[at].classList.add("here");
    told.textContent = input.value.trim() === "" ? "" : matches.length ? `${at + 1} of ${matches.length}` : "none";
  }
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); go(event.shiftKey ? -1 : 1); }
  });
  input.addEventListener("input", () => {
    const words = input.value.trim().toLowerCase();
    svg.classList.toggle("searching", words !== "");
    matches = words === "" ? [] : cards.filter((card) => card.dataset.find.includes(words));
    for (const card of svg.querySelectorAll(".card.found")) card.classList.remove("found");
    for (const card of matches) card.classList.add("found");
    at = 0;
    go(0);
    for (const row of rows) row.hidden = words !== "" && !row.textContent.toLowerCase().includes(words);
  });
}
