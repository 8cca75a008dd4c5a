// One text: tokens tinted, sentences labelled, keywords marked.

// Shows a text in an element; returns the pieces, in the order of the spans' numbers.
function showPassage(data, where, text, other, tint) {
  const pieces = tokensOf(data, text);
  const differs = other ? firstDifference(pieces, tokensOf(data, other)) : -1;
  const panel = data.cells[text.cell].panel;
  const spread = tint === "projection" ? spreadOf(data, panel) : null;
  const starts = text.sentences.map(([start]) => start);
  const body = document.createDocumentFragment();
  let row = sentenceRow(text.sentences.length ? text.sentences[0][2] : null);
  let sentence = 0, from = 0, mark = 0;
  body.append(row.row);
  pieces.forEach((piece, i) => {
    const stop = from + piece.text.length;
    const visible = from + piece.text.length - piece.text.trimStart().length;
    while (sentence + 1 < starts.length && visible >= starts[sentence + 1]) {
      sentence++;
      row = sentenceRow(text.sentences[sentence][2]);
      body.append(row.row);
    }
    while (mark < text.marks.length && text.marks[mark][1] <= visible) mark++;
    const marked = mark < text.marks.length && text.marks[mark][0] < stop && piece.text.trim();
    const span = element("span", { "data-i": i });
    span.textContent = piece.text;
    if (marked) span.classList.add("keyword");
    if (i === differs) span.classList.add("differs");
    colour(span, piece, tint, spread);
    row.text.append(span);
    from = stop;
  });
  if (differs === pieces.length) row.text.append(element("span", { class: "differs", title: "ends here" }, " "));
  where.replaceChildren(body);
  where.classList.toggle("labelled", text.sentences.length > 0);
  return pieces;
}

function sentenceRow(label) {
  const text = element("span", { class: "sentence" });
  const chip = label ? [element("span", { class: label === "backtracking" ? "chip strong" : "chip" }, label)] : [];
  return { text, row: element("div", { class: "row" }, element("span", { class: "gutter" }, ...chip), text) };
}

// The number of the first token that differs, -1 if none does.
function firstDifference(pieces, others) {
  const count = Math.max(pieces.length, others.length);
  for (let i = 0; i < count; i++) if (pieces[i]?.text !== others[i]?.text) return Math.min(i, pieces.length);
  return -1;
}

// Tints: projections from the unsteered mean, full at 3 standard deviations; surprise, full at 6.
function colour(span, piece, tint, spread) {
  if (tint === "projection" && piece.projection !== undefined) {
    const z = (piece.projection - spread.mean) / spread.sd;
    span.classList.add(z > 0 ? "hi" : "lo");
    span.style.setProperty("--t", share(Math.abs(z) / 3));
  } else if (tint === "logprob" && piece.logprob !== undefined) {
    span.classList.add("lo");
    span.style.setProperty("--t", share(-piece.logprob / 6));
  }
}

const share = (x) => (0.5 * Math.min(1, x)).toFixed(2);

// What a token tells when a pointer is over it.
function tokenLines(data, text, piece) {
  const cell = data.cells[text.cell];
  const lines = [JSON.stringify(piece.text)];
  if (piece.projection !== undefined) {
    const { mean, sd } = spreadOf(data, cell.panel);
    const z = plain((piece.projection - mean) / sd, 1);
    lines.push(`projection ${plain(piece.projection, 3)} residual norms, ${z} sd from the unsteered mean`);
  }
  if (piece.logprob !== undefined) lines.push(`log-probability ${plain(piece.logprob, 1)}`);
  lines.push(cell.series ? `steered: ${cellName(cell)}` : "not steered");
  return lines;
}
