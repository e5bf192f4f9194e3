/* Heat maps: drawn from the data beside them; pointing, or the arrow keys, reads a cell. */
for (const heat of document.querySelectorAll(".heat")) {
  const find = (name) => heat.querySelector(name);
  const data = JSON.parse(find(".heat-data").textContent);
  const groups = [];
  for (const map of data.maps) {
    const last = groups[groups.length - 1];
    if (last && last[0].axis === map.axis && last[0].model === map.model) last.push(map);
    else groups.push([map]);
  }
  const canvas = find("canvas"), [axis, member, order] = [find(".heat-axis"), find(".heat-member"), find(".heat-order")];
  let map = null, levels = null, at = null, turn = 0;

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  function colours() {
    const style = getComputedStyle(heat);
    const parse = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
    return ["--heat-0", "--heat-1", "--heat-2"].map((name) => parse(style.getPropertyValue(name).trim()));
  }
  /* Square cells of whole pixels, as large as fit; the canvas is scaled by the style sheet. */
  function paint() {
    if (!levels) return;
    const [rows, columns] = map.cells, stops = colours();
    const cell = Math.max(2, Math.floor(768 / Math.max(rows, columns)));
    canvas.width = columns * cell;
    canvas.height = rows * cell;
    const pen = canvas.getContext("2d");
    for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
      const share = Math.sqrt(levels[i * columns + j] / 255) * 2, from = Math.min(1, Math.floor(share));
      const [a, b] = [stops[from], stops[from + 1]], t = share - from;
      pen.fillStyle = `rgb(${a.map((v, k) => Math.round(v + (b[k] - v) * t)).join(" ")})`;
      pen.fillRect(j * cell, i * cell, cell, cell);
    }
    if (at) {
      pen.strokeStyle = getComputedStyle(heat).getPropertyValue("--mark");
      pen.lineWidth = Math.max(2, cell / 6);
      pen.strokeRect(at[1] * cell, at[0] * cell, cell, cell);
    }
  }
  const run = (k, count, size) => {
    const first = Math.ceil((k * size) / count), last = Math.ceil(((k + 1) * size) / count) - 1;
    return first === last ? `${first}` : `${first}–${last}`;
  };
  const value = (i, j) => (levels[i * map.cells[1] + j] / 255) * map.top;
  function read() {
    if (!at) { find(".heat-read").textContent = "Point at a cell, or use the arrow keys, to read it."; return; }
    const [i, j] = at, own = order.value === "own" || map.sizes[1] === 1;
    const [a, b] = [run(i, map.cells[0], map.sizes[0]), run(j, map.cells[1], map.sizes[1])];
    const place = own ? "units" : "places";
    find(".heat-read").textContent =
      `${data.target} units ${a} ← model ${map.model} ${place} ${b}: ${value(i, j).toFixed(3)}`;
  }
  async function show() {
    const mine = ++turn;
    map = groups[axis.value][member.value || 0];
    const found = await unpacked(map[order.value]);
    if (mine !== turn) return;
    levels = found;
    at = null;
    const binned = map.cells[0] < map.sizes[0] || map.cells[1] < map.sizes[1];
    find(".heat-about").textContent =
      `A ${map.kind}${map.member ? " for " + map.member : ""}, ${map.sizes.join(" × ")}` +
      (binned ? `, drawn as ${map.cells.join(" × ")}` : "") +
      `. The largest share of a unit is ${map.peak.toFixed(2)} on average` + (map.peak > 0.995 ? ": one to one." : ".");
    find(".heat-down").textContent = `${data.target}`;
    find(".heat-across").textContent = `model ${map.model}`;
    find(".heat-top").textContent = map.top.toPrecision(2);
    canvas.setAttribute("aria-label", `Heat map of ${map.axis}: ${find(".heat-about").textContent} Arrow keys read cells.`);
    heat.dataset.shown = `${map.axis} ${member.value || 0} ${order.value}`;
    paint();
    read();
  }
  function members() {
    const group = groups[axis.value];
    member.replaceChildren(...group.map((one, i) => new Option(one.member, i)));
    if (group.length < group[0].total) {
      const rest = new Option(`… ${group[0].total - group.length} more are not shown`);
      rest.disabled = true;
      member.append(rest);
    }
    find(".heat-family").hidden = group.length === 1;
    show();
  }
  function mark(cell) { at = cell; paint(); read(); }
  canvas.addEventListener("pointermove", (event) => {
    if (!levels) return;
    const box = canvas.getBoundingClientRect(), [rows, columns] = map.cells;
    const place = (part, count) => Math.min(count - 1, Math.max(0, Math.floor(part * count)));
    mark([place((event.clientY - box.top) / box.height, rows), place((event.clientX - box.left) / box.width, columns)]);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Escape" && at) mark(null);
    else if (step && levels) {
      const move = (k) => Math.min(map.cells[k] - 1, Math.max(0, at[k] + step[k]));
      mark(at ? [move(0), move(1)] : [0, 0]);
    } else return;
    event.preventDefault();
  });
  axis.addEventListener("change", members);
  member.addEventListener("change", show);
  order.addEventListener("change", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  members();
}
