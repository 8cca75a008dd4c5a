// The page: plots, dialogs, figures, the fragment of the address.

const byId = (id) => document.getElementById(id);

function tooltip() {
  const box = byId("tip");
  return {
    hide: () => { box.hidden = true; },
    show: (event, lines) => {
      box.replaceChildren(...lines.map((line) => element("div", {}, line)));
      box.hidden = false;
      const x = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
      const y = event.clientY + 18 + box.offsetHeight > innerHeight ? event.clientY - box.offsetHeight - 10 : event.clientY + 18;
      box.style.left = `${Math.max(4, x)}px`;
      box.style.top = `${Math.max(4, y)}px`;
    },
  };
}

function openDialog(title, ...children) {
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(...children);
  if (!byId("dialog").open) byId("dialog").showModal();
}

function showPython(lines) {
  const copy = element("button", { type: "button" }, "Copy");
  const put = () => navigator.clipboard.writeText(lines).then(
    () => { copy.textContent = "Copied"; }, () => { copy.textContent = "Select and copy by hand"; });
  copy.addEventListener("click", put);
  put();
  openDialog("These lines write the text again", element("pre", { tabindex: "0" }, lines), copy);
}

async function figures(tip) {
  const found = await unpackJson("figures");
  const address = (text, kind) => URL.createObjectURL(new Blob([text], { type: kind }));
  for (const [name, figure] of Object.entries(found)) {
    const box = byId(`figure-${name}`), image = box.querySelector("img");
    figure.url = address(figure.svg, "image/svg+xml");
    image.src = figure.url;
    for (const [kind, type] of [["svg", "image/svg+xml"], ["csv", "text/csv"]]) {
      const link = box.querySelector(`a[data-kind=${kind}]`);
      if (link) link.href = kind === "svg" ? figure.url : address(figure[kind], type);
    }
    box.querySelector("button").addEventListener("click", () => show(name));
  }
  function show(name) {
    const figure = found[name];
    const links = [...byId(`figure-${name}`).querySelectorAll("a[data-kind]")].map((link) => link.cloneNode(true));
    openDialog(figure.title, element("img", { src: figure.url, alt: figure.caption }),
      element("p", {}, figure.caption), element("p", { class: "links" }, ...links));
  }
  for (const button of document.querySelectorAll("button[data-figure]")) {
    button.addEventListener("click", () => show(button.dataset.figure));
  }
}

async function drawPanels(data, look, tip) {
  const against = document.querySelector("input[name=against]:checked").value;
  // Panels side by side share the first one's axis and labels; those below each other cannot.
  const alone = data.panels.length === 1 || matchMedia("(max-width: 1100px)").matches;
  const drawn = await Promise.all(data.panels.map((panel, i) => drawEffect(
    data, byId(`plot-${i}`), panel,
    { against, height: 330, first: i === 0 || alone, ticks: i === 0 || alone ? 6 : 3 }, look.open, tip)));
  return (cells) => drawn.forEach((plot) => plot.mark(cells));
}

async function main() {
  const data = await readData();
  const tip = tooltip();
  const look = browser(data, tip);
  let written = "";
  look.onChange((text) => {
    written = `#${text}`;
    if (location.hash !== written && (location.hash.includes("=") || look.used)) history.replaceState(null, "", written);
  });
  const follow = () => { if (location.hash.includes("=") && location.hash !== written) look.read(location.hash.slice(1)); };
  look.read(location.hash.includes("=") ? location.hash.slice(1) : "");
  for (const kind of ["click", "keydown", "input", "change"]) {
    document.addEventListener(kind, () => { look.used = true; }, { capture: true });
  }
  addEventListener("hashchange", follow);
  let mark = await drawPanels(data, look, tip);
  look.alsoMark((cells) => mark(cells));
  for (const choice of document.querySelectorAll("input[name=against]")) {
    choice.addEventListener("change", async () => {
      mark = await drawPanels(data, look, tip);
      look.alsoMark((cells) => mark(cells));
    });
  }
  for (const button of document.querySelectorAll("button[data-cell]")) {
    button.addEventListener("click", () => look.open(Number(button.dataset.cell)));
  }
  for (const side of ["a", "b"]) {
    byId(`python-${side}`).addEventListener("click", () => showPython(look.python(side)));
  }
  byId("close").addEventListener("click", () => byId("dialog").close());
  byId("dialog").addEventListener("click", (event) => { if (event.target === byId("dialog")) byId("dialog").close(); });
  await figures(tip);
  if (location.hash.includes("=")) byId("texts").scrollIntoView(); // a link to a view of the texts
  document.documentElement.dataset.ready = "true";
}

main().catch((error) => {
  const box = byId("failed");
  box.hidden = false;
  box.textContent = `The texts and plots cannot be shown: ${error.message}. A browser of 2023 or later is needed.`;
});
