// Values at the pointer. The page is complete without it.
for (const svg of document.querySelectorAll("figure > svg")) {
  const plot = svg.querySelector(".plot"), figure = svg.parentNode;
  const [x0, x1] = svg.dataset.x.split(" ").map(Number), [y0, y1] = svg.dataset.y.split(" ").map(Number);
  // The plot's own view begins left of and above its zero, by the edge that it leaves around.
  const view = plot.viewBox.baseVal, edge = -view.x;
  const width = view.width - 2 * edge, height = view.height - 2 * edge;
  const left = plot.x.baseVal.value + edge;
  const lines = [...plot.querySelectorAll(".line")].map((path) => ({
    name: path.dataset.name,
    colour: path.classList[path.classList.length - 1],
    isArea: path.classList.contains("area"),
    points: path.getAttribute("d").slice(1).split("L").map((point) => point.split(" ").map(Number)),
  }));
  const make = (name, into, attributes = {}) => {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return into.appendChild(made);
  };
  let shown = [], tip = null;
  const hide = () => {
    for (const each of shown) each.remove();
    tip?.remove();
    shown = [];
    tip = null;
  };
  const value = (number) => {
    const size = Math.abs(number);
    if (size >= 1e4) return Math.round(number).toLocaleString("en");
    return size && size < 1e-3 ? number.toExponential(2) : String(+number.toPrecision(4));
  };
  const show = (event) => {
    hide();
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x - left;
    if (at < -8 || at > width + 8) return;
    const nearest = lines.map((line) => ({
      ...line,
      // Of a histogram, the beginning of the bin; of a curve, the nearest point.
      point: line.points.reduce((a, b) =>
        (line.isArea ? b[0] <= at && b[0] < width : Math.abs(b[0] - at) < Math.abs(a[0] - at)) ? b : a),
    }));
    const x = nearest.map((line) => line.point[0]).reduce((a, b) => (Math.abs(b - at) < Math.abs(a - at) ? b : a));
    shown.push(make("line", plot, { class: "cursor", x1: x, x2: x, y1: 0, y2: height }));
    tip = figure.appendChild(document.createElement("div"));
    tip.className = "tip";
    const step = x0 + (x / width) * (x1 - x0);
    tip.append(`${svg.dataset.name} ${svg.dataset.name === "step" ? Math.round(step).toLocaleString("en") : `from ${step.toFixed(2)}`}`);
    for (const { name, colour, point } of nearest) {
      if (Math.abs(point[0] - x) > width / 20) continue;
      shown.push(make("circle", plot, { class: `dot ${colour}`, cx: point[0], cy: point[1], r: 4 }));
      const row = tip.appendChild(document.createElement("div"));
      row.appendChild(document.createElement("i")).className = colour;
      row.append(`${name} ${value(y1 - (point[1] / height) * (y1 - y0))}`);
    }
    const frame = figure.getBoundingClientRect(), right = event.clientX - frame.left;
    tip.style.top = `${event.clientY - frame.top + 14}px`;
    tip.style.left = `${Math.max(4, Math.min(right + 14, frame.width - tip.offsetWidth - 4))}px`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
