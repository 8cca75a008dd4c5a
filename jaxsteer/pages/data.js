// The page's data: blocks unpacked, and what is looked up in them.

async function unpack(id) {
  const letters = atob(document.getElementById(`block-${id}`).textContent.trim());
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const unpackJson = async (id) => JSON.parse(new TextDecoder().decode(await unpack(id)));

const FIELDS = [
  "cell", "prompt", "sample", "row", "text", "ended", "sentences", "marks", "effect", "coherence",
  "repetition", "perplexity", "leftOut", "right", "n", "hasLogprobs", "hasProjections",
];

async function readData() {
  const [data, bytes] = await Promise.all([unpackJson("data"), unpack("tokens")]);
  let at = 0;
  data.texts = data.texts.map((row) => {
    const text = Object.fromEntries(FIELDS.map((name, i) => [name, row[i]]));
    text.start = at;
    for (let left = text.n; left > 0; at++) if (bytes[at] !== 255) left--;
    text.values = at;
    at += text.n * (text.hasLogprobs + text.hasProjections);
    return text;
  });
  data.bytes = bytes;
  data.cells.forEach((cell, i) => { cell.id = i; cell.texts = []; });
  data.texts.forEach((text) => data.cells[text.cell].texts.push(text));
  data.byKey = new Map(data.texts.map((text) => [key(text.cell, text.prompt, text.sample), text]));
  data.panels = [...new Set(data.cells.map((cell) => cell.panel))];
  data.seriesByName = new Map(data.series.map((one) => [one.name, one]));
  data.floors = new Map(data.panels.map((panel) => [panel, floorOf(data, panel)]));
  data.spreads = new Map();
  return data;
}

const key = (cell, prompt, sample) => `${cell} ${prompt} ${sample}`;

const unsteered = (data, panel) =>
  data.cells.find((cell) => cell.panel === panel && cell.series === "");

function floorOf(data, panel) {
  const plain = unsteered(data, panel);
  return plain?.coherence ? plain.coherence.mean - data.margin : null;
}

// Names of the series that a panel has, and the cells of one by coefficient, unsteered included.
const seriesIn = (data, panel) => data.series.map((one) => one.name).filter((name) =>
  data.cells.some((cell) => cell.panel === panel && cell.series === name));

const curve = (data, panel, series) => data.cells
  .filter((cell) => cell.panel === panel && (cell.series === series || cell.series === ""))
  .sort((a, b) => a.coeff - b.coeff);

// The tokens of a text: pieces that are the text together, with what is known of each.
function tokensOf(data, text) {
  const pieces = [];
  if (!text.n) {
    for (const match of text.text.matchAll(/\s*\S+\s*$|\s*\S+/g)) pieces.push({ text: match[0] });
    return pieces;
  }
  let at = text.start, from = 0;
  for (let i = 0; i < text.n; i++) {
    let length = 0;
    while (data.bytes[at] === 255) { length += 255; at++; }
    length += data.bytes[at++];
    pieces.push({ text: text.text.slice(from, from + length) });
    from += length;
  }
  if (text.hasLogprobs) {
    pieces.forEach((piece, i) => { piece.logprob = logprob(data.bytes[at + i]); });
    at += text.n;
  }
  if (text.hasProjections) {
    pieces.forEach((piece, i) => { piece.projection = projection(data, data.bytes[at + i]); });
  }
  if (from < text.text.length) pieces.push({ text: text.text.slice(from) });
  return pieces;
}

const logprob = (byte) => byte === 255 ? undefined : -byte / 10;
const projection = (data, byte) => byte === 255 ? undefined : (byte / 127 - 1) * data.scale;

// Mean and standard deviation of the projections in a panel's unsteered texts.
function spreadOf(data, panel) {
  if (!data.spreads.has(panel)) {
    const found = [];
    const texts = unsteered(data, panel)?.texts ?? data.texts;
    for (const text of texts.slice(0, 200)) {
      if (!text.hasProjections) continue;
      const at = text.values + text.n * text.hasLogprobs;
      for (let i = at; i < at + text.n; i++) if (data.bytes[i] !== 255) found.push(projection(data, data.bytes[i]));
    }
    const mean = found.reduce((sum, x) => sum + x, 0) / found.length;
    const square = found.reduce((sum, x) => sum + (x - mean) ** 2, 0) / found.length;
    data.spreads.set(panel, { mean, sd: Math.sqrt(square) || 1 });
  }
  return data.spreads.get(panel);
}

// Numbers as people read them: a real minus, a sign where it means something.
const signed = (x) => x === 0 ? "0" : (x > 0 ? "+" : "−") + String(Math.abs(x));
const plain = (x, digits = 2) => x === null || x === undefined ? "–" : x.toFixed(digits).replace("-", "−");
const between = (band, digits = 3) => !band ? "–" : band.low === null ? plain(band.mean, digits)
  : `${plain(band.mean, digits)} [${plain(band.low, digits)}, ${plain(band.high, digits)}]`;
const cellName = (cell) => cell.series ? `${cell.series}, ${signed(cell.coeff)}` : "unsteered";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}
