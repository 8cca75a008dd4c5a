// The plots, as Vega-Lite. Colours are custom properties, so that a theme or a printer changes them.

const NO_EVAL = { ast: true, actions: false, renderer: "svg", defaultStyle: false };

const CONFIG = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--line)",
    domain: false, tickColor: "var(--line)", titleFontWeight: "normal", titleFontSize: 12,
    labelFontSize: 11, labelPadding: 4, titlePadding: 6, titleLimit: 320,
  },
};

// What is drawn: a row a cell, and the unsteered one once more at the foot of each curve.
function plotRows(data, panel, against, only) {
  const cells = data.cells.filter((cell) => cell.panel === panel && cell.effect && at(cell, against));
  const rows = [];
  for (const name of seriesIn(data, panel)) {
    if (only && name !== only) continue;
    const one = data.seriesByName.get(name);
    for (const cell of cells) {
      if (cell.series === name) rows.push(plotRow(data, cell, one, against));
      else if (cell.series === "" && one.main) {
        rows.push({ ...plotRow(data, cell, one, against), plain: true });
      }
    }
  }
  return rows;
}

function at(cell, against) {
  if (against === "coherence") return cell.coherence;
  const x = cell.strength ?? cell.coeff;
  return { mean: x, low: x, high: x };
}

function plotRow(data, cell, one, against) {
  const x = at(cell, against);
  return {
    cell: cell.id, series: one.name, main: one.main, coeff: cell.coeff, name: signed(cell.coeff),
    x: x.mean, xl: x.low, xh: x.high, y: cell.effect.mean, yl: cell.effect.low,
    yh: cell.effect.high, plain: false, fits: coherent(data, cell),
  };
}

function coherent(data, cell) {
  const floor = data.floors.get(cell.panel);
  return floor === null || !cell.coherence || cell.coherence.mean >= floor;
}

// Ends of the axes, the same for every panel.
function domains(data, against) {
  const cells = data.cells.filter((cell) => cell.effect && at(cell, against));
  // Means and what is `more`, and of the intervals as much again: a few prompts may have wide ones.
  const ends = (bands, more) => {
    const means = [...bands.map((band) => band.mean), ...more];
    const low = Math.min(...means), high = Math.max(...means), range = high - low || 0.1;
    const lowest = Math.max(low - range, Math.min(low, ...bands.map((band) => band.low)));
    const highest = Math.min(high + range, Math.max(high, ...bands.map((band) => band.high)));
    return [lowest - 0.06 * range, highest + 0.06 * range];
  };
  const floors = against === "coherence" ? [...data.floors.values()].filter((x) => x !== null) : [];
  return {
    x: ends(cells.map((cell) => at(cell, against)), floors),
    y: ends(cells.map((cell) => cell.effect), [0]),
  };
}

function effectSpec(data, panel, { against, only = null, height, first = true, ticks = 5 }) {
  const rows = plotRows(data, panel, against, only);
  const { x, y } = domains(data, against);
  const names = data.series.map((one) => one.name);
  const floor = data.floors.get(panel);
  const X = (field, more = {}) => ({ field, type: "quantitative", scale: { domain: x, zero: false, nice: false }, ...more });
  const Y = (field, more = {}) => ({ field, type: "quantitative", scale: { domain: y, zero: false, nice: false }, ...more });
  const color = {
    field: "series", type: "nominal", legend: null,
    scale: { domain: names, range: data.series.map((one) => `var(--${one.colour})`) },
  };
  const shape = {
    field: "series", type: "nominal", legend: null,
    scale: { domain: names, range: data.series.map((one) => one.shape) },
  };
  const title = against === "coherence" ? data.coherence : `added, in ${data.unit}`;
  const axes = {
    x: X("x", { axis: { title, tickCount: ticks } }),
    y: Y("y", { axis: { title: first && !only ? data.effect : null, labels: first, ticks: first, tickCount: 5 } }),
  };
  const bars = { strokeWidth: 1, opacity: 0.45, clip: true };
  const steered = "!datum.plain";
  const layer = [
    { mark: { type: "line", strokeWidth: 1.8 }, transform: [{ filter: "datum.main" }],
      encoding: { ...axes, color, order: { field: "coeff", type: "quantitative" } } },
    { mark: { type: "rule", ...bars }, encoding: { x: X("x"), y: Y("yl"), y2: { field: "yh" }, color } },
    { mark: { type: "rule", ...bars }, encoding: { x: X("xl"), x2: { field: "xh" }, y: Y("y"), color } },
    { mark: { type: "point", filled: true, opacity: 1, size: 62 }, transform: [{ filter: steered }],
      encoding: { x: X("x"), y: Y("y"), fill: color, stroke: color, shape, fillOpacity: { condition: { test: "datum.fits", value: 1 }, value: 0 },
        strokeWidth: { value: 1.6 } } },
    { mark: { type: "point", filled: true, size: 62, fill: "var(--paper)", stroke: "var(--ink)", strokeWidth: 1.6, opacity: 1 },
      transform: [{ filter: "datum.plain" }], encoding: { x: X("x"), y: Y("y") } },
  ];
  if (first) {
    layer.push({ mark: { type: "text", dx: 9, dy: -8, fontSize: 11, align: "left" },
      transform: [{ filter: `${steered} && datum.main` }],
      encoding: { x: X("x"), y: Y("y"), text: { field: "name" }, color } });
  }
  layer.push(
    { data: { name: "dots", values: [] }, mark: { type: "point", size: 260, filled: false, strokeWidth: 2.2, opacity: 1, stroke: "var(--ink)" },
      encoding: { x: X("x"), y: Y("y"), strokeDash: { condition: { test: "datum.side === 'A'", value: [3, 3] }, value: [1, 0] } } },
    { mark: { type: "point", size: 420, opacity: 0, filled: true, cursor: "pointer", tooltip: { content: "data" } },
      encoding: { x: X("x"), y: Y("y") } },
  );
  if (against === "coherence" && floor !== null) {
    const zone = { values: [{ floor, end: x[1] }] };
    layer.unshift(
      { data: zone, mark: { type: "rect", fill: "var(--zone)" }, encoding: { x: X("floor"), x2: { field: "end" } } },
      { data: zone, mark: { type: "rule", stroke: "var(--zone-edge)", strokeDash: [4, 3] }, encoding: { x: X("floor") } },
    );
  }
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json", config: CONFIG,
    width: "container", height, autosize: { type: "fit", contains: "padding" },
    data: { name: "rows", values: rows }, layer,
  };
}

// A plot in an element; `open` is called with the cell that was clicked.
async function drawEffect(data, where, panel, options, open, tip) {
  const label = where.getAttribute("aria-label");
  const { view } = await vegaEmbed(where, effectSpec(data, panel, options), {
    ...NO_EVAL,
    tooltip: (handler, event, item, value) => {
      if (!value || item?.datum?.cell === undefined) tip.hide();
      else tip.show(event, cellLines(data, data.cells[item.datum.cell]));
    },
  });
  // One image to a screen reader, which says what it is; the table below has the numbers.
  where.querySelector("svg").setAttribute("aria-hidden", "true");
  where.removeAttribute("aria-roledescription");
  where.setAttribute("role", "img");
  where.setAttribute("aria-label", label);
  view.addEventListener("click", (event, item) => {
    if (item?.datum?.cell !== undefined) open(item.datum.cell);
  });
  return {
    view,
    // Rings around two cells: where the two texts are from.
    mark: (cells) => {
      const dots = cells
        .filter((cell) => cell.panel === panel && cell.effect && at(cell, options.against))
        .map((cell, i) => ({ x: at(cell, options.against).mean, y: cell.effect.mean, side: "AB"[i], is: cell.id }));
      view.data("dots", dots).runAsync();
    },
  };
}

const cellLines = (data, cell) => [
  [cell.panel, cellName(cell)].filter(Boolean).join(": "),
  ...(cell.strength === null || !cell.series ? [] : [`added: ${signed(Number(cell.strength.toFixed(3)))} residual norms`]),
  `${data.effect}: ${between(cell.effect)}`,
  `${data.coherence}: ${between(cell.coherence)}`,
  `${cell.effect ? cell.effect.n : 0} prompts; ${cell.texts.length} texts here`,
];
