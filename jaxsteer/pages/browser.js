// The rollout browser: which texts are listed, which two are shown, at which coefficients.

const ROW = 46; // pixels of a line of the list
const SHOWS = {
  all: () => true,
  event: (b) => b.effect > 0,
  newly: (b, a) => b.effect > 0 && !(a?.effect > 0),
  incoherent: (b, a, below) => b.leftOut || (b.coherence !== null && b.coherence < below),
  empty: (b) => !b.text.trim(),
  right: (b) => b.right === true,
  wrong: (b) => b.right === false,
  differs: (b, a) => a && a.text !== b.text,
};
const number = (x, missing) => x === null || x === undefined ? missing : x;
const SORTS = {
  order: (b) => 0,
  effect: (b) => -number(b.effect, -1),
  change: (b, a) => -(number(b.effect, 0) - number(a?.effect, 0)),
  coherence: (b) => number(b.coherence, 2),
  repetition: (b) => -number(b.repetition, -1),
  perplexity: (b) => -number(b.perplexity, -1),
  length: (b) => -(b.n || b.text.length),
};

function browser(data, tip) {
  const $ = (id) => document.getElementById(id);
  const state = { panel: "", series: "", a: 0, b: 0, prompt: 0, sample: 0, show: "all", sort: "order", find: "", tint: "none" };
  let cells = [], items = [], small = null, smallFor = "", shown = { a: null, b: null };
  const marks = []; // other plots on which the two cells are marked
  const leave = []; // called with the fragment of what is seen

  const cellOf = (side) => data.cells[state[side]];
  const textOf = (side, item = state) => data.byKey.get(key(state[side], item.prompt, item.sample)) ?? null;

  // Puts the state in order after a change, then shows it.
  function settle() {
    if (!data.panels.includes(state.panel)) state.panel = data.panels[0];
    const names = seriesIn(data, state.panel);
    if (!names.includes(state.series)) state.series = names[0] ?? "";
    cells = curve(data, state.panel, state.series);
    const has = (id) => cells.some((cell) => cell.id === id);
    if (!has(state.a)) state.a = (cells.find((cell) => cell.series === "") ?? cells[0]).id;
    if (!has(state.b)) state.b = strongest().id;
    list();
    draw();
  }

  // The largest coherent coefficient; of a curve without a positive one, the most negative.
  function strongest() {
    const able = cells.filter((cell) => cell.series && coherent(data, cell));
    return able.findLast((cell) => cell.coeff > 0) ?? able[0] ?? cells.at(-1);
  }

  function list() {
    const words = state.find.toLowerCase();
    const wanted = (a, b) => SHOWS[state.show](b, a, data.incoherent_below) && (!words
      || b.text.toLowerCase().includes(words) || data.prompts[b.prompt].text.toLowerCase().includes(words));
    items = cellOf("b").texts.map((b) => ({ b, a: textOf("a", b) })).filter(({ a, b }) => wanted(a, b));
    const rank = SORTS[state.sort];
    items = items.map((item) => [rank(item.b, item.a), item]).sort((x, y) => x[0] - y[0]).map(([, item]) => item);
    if (items.length && position() < 0) ({ prompt: state.prompt, sample: state.sample } = items[0].b);
  }

  const position = () => items.findIndex(({ b }) => b.prompt === state.prompt && b.sample === state.sample);

  function draw() {
    drawControls();
    drawList();
    for (const side of ["a", "b"]) drawSide(side);
    drawSmall();
    const both = [cellOf("a"), cellOf("b")];
    marks.forEach((mark) => mark(both));
    leave.forEach((tell) => tell(fragment()));
  }

  function drawControls() {
    choices($("panel"), data.panels, state.panel);
    choices($("series"), seriesIn(data, state.panel), state.series);
    for (const side of ["a", "b"]) {
      const range = $(`coeff-${side}`), index = cells.findIndex((cell) => cell.id === state[side]);
      range.max = cells.length - 1;
      range.value = index;
      const told = cellName(cells[index]);
      range.setAttribute("aria-valuetext", told);
      $(`told-${side}`).textContent = signed(cells[index].coeff);
      if ($(`ticks-${side}`).childElementCount !== cells.length || smallFor !== `${state.panel} ${state.series}`) {
        $(`ticks-${side}`).replaceChildren(...cells.map((cell) => element("span", {}, signed(cell.coeff))));
      }
    }
    for (const name of ["show", "sort", "tint"]) $(name).value = state[name];
    if ($("find").value !== state.find) $("find").value = state.find;
    $("count").textContent = `${items.length} of ${cellOf("b").texts.length} texts`;
  }

  function choices(select, names, value) {
    const there = [...select.options].map((option) => option.value);
    if (there.join("\n") !== names.join("\n")) {
      select.replaceChildren(...names.map((name) => element("option", { value: name }, name || "all")));
    }
    select.value = value;
    select.closest("label").hidden = names.length < 2;
  }

  // Only the lines that can be seen are in the document.
  function drawList(scroll = true) {
    const box = $("list"), inner = $("lines"), here = position();
    inner.style.height = `${Math.max(items.length, 1) * ROW}px`;
    if (scroll && here >= 0) {
      if (here * ROW < box.scrollTop) box.scrollTop = here * ROW;
      else if ((here + 1) * ROW > box.scrollTop + box.clientHeight) box.scrollTop = (here + 1) * ROW - box.clientHeight;
    }
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
    const stop = Math.min(items.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 4);
    inner.replaceChildren(...items.slice(first, stop).map((item, i) => line(item, first + i, first + i === here)));
    if (!items.length) inner.replaceChildren(element("p", { class: "none" }, "No text is like this."));
    const active = here >= first && here < stop ? `line-${here}` : null;
    if (active) box.setAttribute("aria-activedescendant", active); else box.removeAttribute("aria-activedescendant");
  }

  function line({ a, b }, index, chosen) {
    const prompt = data.prompts[b.prompt];
    const tags = [];
    if (b.effect > 0) tags.push(element("span", { class: "tag strong" }, eventTag(b)));
    if (SHOWS.empty(b)) tags.push(element("span", { class: "tag" }, "empty"));
    else if (SHOWS.incoherent(b, a, data.incoherent_below)) tags.push(element("span", { class: "tag" }, b.leftOut || "incoherent"));
    if (b.right !== null) tags.push(element("span", { class: "tag" }, b.right ? "right" : "wrong"));
    const samples = b.sample || items.some((item) => item.b.sample) ? ` · sample ${b.sample}` : "";
    const made = element("div", { class: "line", role: "option", id: `line-${index}`, "aria-selected": String(chosen),
      "aria-setsize": items.length, "aria-posinset": index + 1 },
      element("span", { class: "name" }, prompt.name + samples), element("span", { class: "tags", title: tags.map((tag) => tag.textContent).join(", ") }, ...tags),
      element("span", { class: "ask" }, prompt.text));
    made.style.top = `${index * ROW}px`;
    made.addEventListener("click", () => choose(b));
    return made;
  }

  const eventTag = (b) => data.event + (b.effect < 1 ? ` ${plain(b.effect)}` : "");

  function choose({ prompt, sample }) {
    Object.assign(state, { prompt, sample });
    draw();
  }

  function drawSide(side) {
    const cell = cellOf(side), text = textOf(side), other = textOf(side === "a" ? "b" : "a");
    const title = $(`title-${side}`), facts = $(`facts-${side}`), body = $(`text-${side}`);
    title.replaceChildren(element("b", {}, side.toUpperCase()), ` ${cellName(cell)}`);
    $(`python-${side}`).hidden = !cell.python || !text;
    if (!text) {
      facts.textContent = "";
      body.replaceChildren(element("p", { class: "none" }, "This prompt was not run in this cell."));
      shown[side] = null;
      return;
    }
    facts.replaceChildren(...factsOf(text).map((fact) => element("span", {}, fact)));
    shown[side] = { text, pieces: showPassage(data, body, text, other, state.tint) };
    if (!text.text.trim()) body.replaceChildren(element("p", { class: "none" }, "Empty."));
    $("asked").textContent = data.prompts[text.prompt].text;
  }

  const factsOf = (text) => [
    text.n ? `${text.n} tokens, ${text.ended}` : text.ended,
    text.effect === null ? "" : `${data.effect} ${plain(text.effect)}`,
    text.coherence === null ? "" : `coherence ${plain(text.coherence)}`,
    text.repetition === null ? "" : `repetition ${plain(text.repetition)}`,
    text.perplexity === null ? "" : `perplexity ${plain(text.perplexity)}`,
    text.leftOut ? `not counted: ${text.leftOut}` : "",
    text.right === null ? "" : `answer ${text.right ? "right" : "wrong"} (${data.prompts[text.prompt].answer})`,
  ].filter(Boolean);

  async function drawSmall() {
    const name = `${state.panel} ${state.series}`;
    if (smallFor !== name) {
      smallFor = name;
      const options = { against: "coherence", only: state.series, height: 168, ticks: 3 };
      small = await drawEffect(data, $("small"), state.panel, options, open, tip);
      if (smallFor !== name) return; // another one was asked for meanwhile
    }
    small?.mark([cellOf("a"), cellOf("b")]);
  }

  // Shows the texts of a cell, beside the unsteered ones.
  function open(id) {
    const cell = data.cells[id];
    const plainCell = unsteered(data, cell.panel);
    Object.assign(state, { panel: cell.panel, b: id });
    if (cell.series) state.series = cell.series;
    if (plainCell) state.a = plainCell.id;
    settle();
    $("texts").scrollIntoView({ block: "start" });
  }

  function step(side, by) {
    const index = cells.findIndex((cell) => cell.id === state[side]) + by;
    if (index < 0 || index >= cells.length) return;
    state[side] = cells[index].id;
    list();
    draw();
  }

  function move(by) {
    const index = Math.min(items.length - 1, Math.max(0, position() + by));
    if (items.length) choose(items[index].b);
  }

  // The state as a fragment, and back. Names rather than numbers, so that a link outlives a rerun.
  function fragment() {
    const said = new URLSearchParams();
    if (data.panels.length > 1) said.set("model", state.panel);
    said.set("direction", state.series);
    for (const side of ["a", "b"]) said.set(side, cellOf(side).coeff);
    said.set("prompt", data.prompts[state.prompt]?.name ?? "");
    if (state.sample) said.set("sample", state.sample);
    for (const [name, value] of [["show", "all"], ["sort", "order"], ["find", ""], ["tint", $("tint").options[0].value]]) {
      if (state[name] !== value) said.set(name, state[name]);
    }
    return said.toString();
  }

  function read(text) {
    const said = new URLSearchParams(text);
    const one = (name, known, otherwise) => known.includes(said.get(name)) ? said.get(name) : otherwise;
    state.panel = one("model", data.panels, data.panels[0]);
    state.series = one("direction", seriesIn(data, state.panel), state.series);
    for (const side of ["a", "b"]) {
      const coeff = said.has(side) ? Number(said.get(side)) : NaN;
      const found = curve(data, state.panel, state.series).find((cell) => cell.coeff === coeff);
      state[side] = found ? found.id : -1;
    }
    const prompt = data.prompts.findIndex(({ name }) => name === said.get("prompt"));
    state.prompt = Math.max(0, prompt);
    state.sample = Number(said.get("sample")) || 0;
    state.show = one("show", [...$("show").options].map((option) => option.value), "all");
    state.sort = one("sort", Object.keys(SORTS), "order");
    state.tint = one("tint", [...$("tint").options].map((option) => option.value), $("tint").options[0].value);
    state.find = said.get("find") ?? "";
    settle();
  }

  function python(side) {
    const { text } = shown[side];
    return cellOf(side).python
      .replaceAll("$TEXT", () => JSON.stringify(data.prompts[text.prompt].text))
      .replaceAll("$ROW", String(text.row));
  }

  for (const name of ["panel", "series"]) {
    $(name).addEventListener("change", (event) => { state[name] = event.target.value; settle(); });
  }
  for (const name of ["show", "sort"]) {
    $(name).addEventListener("change", (event) => { state[name] = event.target.value; list(); draw(); });
  }
  $("tint").addEventListener("change", (event) => { state.tint = event.target.value; draw(); });
  $("find").addEventListener("input", (event) => { state.find = event.target.value; list(); draw(); });
  $("claim")?.addEventListener("change", (event) => {
    const claim = data.claims.find(({ id }) => id === event.target.value);
    if (claim && claim.cell !== null) open(claim.cell);
  });
  for (const side of ["a", "b"]) {
    $(`coeff-${side}`).addEventListener("input", (event) => {
      state[side] = cells[Number(event.target.value)].id;
      list();
      draw();
    });
    $(`text-${side}`).addEventListener("pointermove", (event) => {
      const piece = shown[side]?.pieces[event.target.dataset?.i];
      if (piece) tip.show(event, tokenLines(data, shown[side].text, piece));
      else tip.hide();
    });
    $(`text-${side}`).addEventListener("pointerleave", () => tip.hide());
  }
  $("list").addEventListener("scroll", () => drawList(false));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, dialog");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inList = event.target === $("list");
    const actions = {
      j: () => move(1), k: () => move(-1),
      ...(inList ? { ArrowDown: () => move(1), ArrowUp: () => move(-1) } : {}),
      ArrowLeft: () => step(event.shiftKey ? "a" : "b", -1),
      ArrowRight: () => step(event.shiftKey ? "a" : "b", 1),
    };
    if (typing || !(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  });
  return { open, read, python, onChange: (tell) => leave.push(tell), alsoMark: (mark) => { marks.push(mark); mark([cellOf("a"), cellOf("b")]); } };
}
