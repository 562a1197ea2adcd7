// The settings of a pipeline, drawing with it, and which page is shown.

import { $, ask, cost, element, figure, follow, numbers, onPress, say, whenRedrawn } from "/page/common.js";
import { showGallery, showRuns, showSweep, setSweeps } from "/page/watching.js";

const SOURCE = ["model", "revision", "variant"];
let facts = null; // what the studio says of the loaded pipeline
const strengths = {}; // of adapters by name
const shows = { runs: showRuns, gallery: showGallery, sweep: showSweep };

function show(tab) {
  for (const button of document.querySelectorAll("nav button")) {
    button.ariaSelected = String(button.dataset.tab === tab);
    $(button.dataset.tab).hidden = button.dataset.tab !== tab;
  }
  $("settings").hidden = tab === "runs" || tab === "gallery";
  shows[tab]?.().catch((error) => say(error.message));
}

function outputs() {
  for (const output of document.querySelectorAll("output")) output.value = $(output.htmlFor.value)?.value ?? "";
  $("fast-row").hidden = !facts || $("schedule").value !== "fast";
}

function range(id, low, high, step, value) {
  Object.assign($(id), { min: low, max: high, step });
  $(id).value = value;
}

// Puts the settings' controls in line with a pipeline that was loaded.
function apply(found) {
  const other = SOURCE.some((name) => facts?.[name] !== found[name]);
  facts = found;
  $("kind").textContent = `${found.kind}, trained at ${found.native} pixels`;
  $("prompt-row").hidden = !found.prompt;
  $("label-row").hidden = !found.classes.length;
  $("schedule-row").hidden = found.schedules.length < 2;
  $("steps-row").hidden = found.steps === null;
  $("guidance-row").hidden = found.guidance === null;
  if (other) {
    const step = found.multiple === 1 ? Math.max(1, found.smallest) : found.multiple;
    for (const side of ["height", "width"]) {
      range(side, Math.max(8, found.smallest), Math.max(4 * found.native, 256), step, found.native);
    }
    range("steps", 1, Math.max(60, found.steps ?? 1), 1, found.steps ?? 1);
    if (found.guidance !== null) $("guidance").value = found.guidance;
    $("label").replaceChildren(...found.classes.map((name) => new Option(name)), new Option("no class", ""));
    $("schedule").replaceChildren(...found.schedules.map((name) => new Option(name)));
    $("compare-schedules").replaceChildren(...found.schedules.map((name) => element("label", {},
      element("input", { type: "checkbox", value: name, checked: name === "full" || name === "fast" }), ` ${name}`)));
  }
  for (const name of Object.keys(strengths)) if (!found.adapters.includes(name)) delete strengths[name];
  for (const name of found.adapters) strengths[name] ??= 1;
  $("adapters").replaceChildren(...found.adapters.map(adapterRow));
  $("compare-adapter").replaceChildren(new Option("none", ""), ...found.adapters.map((name) => new Option(name)));
  outputs();
}

function adapterRow(name) {
  const shown = element("output", { value: strengths[name] });
  const slider = element("input", { type: "range", min: 0, max: 1.5, step: 0.05, ariaLabel: `strength of ${name}` });
  slider.value = strengths[name];
  slider.oninput = () => { shown.value = strengths[name] = Number(slider.value); };
  const off = element("button", { type: "button", textContent: "Take off" });
  onPress(off, async () => apply(await follow("adapter", { ...source(facts), adapter: name, unload: true })));
  return element("div", {}, element("label", {}, shown, name, slider), off);
}

// Which pipeline is asked for; what is left empty, the studio fills in.
const source = (found) => Object.fromEntries(SOURCE.map((name) => [name, found[name] || null]));
const wanted = () => source(Object.fromEntries(SOURCE.map((name) => [name, $(name).value.trim()])));

function setSource(found) {
  for (const name of SOURCE) $(name).value = found[name] ?? "";
  $("hub").open = Boolean(found.revision || found.variant);
}

async function load() {
  if (facts && SOURCE.every((name) => (facts[name] ?? "") === $(name).value.trim())) return;
  $("kind").textContent = "loading …";
  try {
    apply(await follow("load", wanted()));
    setSource(facts);
  } catch (error) {
    $("kind").textContent = "";
    facts = null;
    throw error;
  }
}

function settings() {
  const found = { ...source(facts), seed: Number($("seed").value), count: Number($("count").value) };
  for (const side of ["height", "width"]) found[side] = Number($(side).value);
  if (facts.steps !== null) found.steps = Number($("steps").value);
  if (facts.guidance !== null) found.guidance = Number($("guidance").value);
  if (facts.prompt) found.prompt = $("prompt").value;
  if (facts.classes.length) found.label = $("label").value || null;
  if (facts.schedules.length) {
    found.schedule = $("schedule").value;
    found.fast_share = Number($("fast_share").value);
  }
  if (facts.adapters.length) found.adapters = { ...strengths };
  return found;
}

function drawn(result) {
  if (!result.pictures) return;
  $("draw").querySelector(".cost").textContent = cost(result, result.pictures.length);
  $("draw").querySelector(".pictures").replaceChildren(...result.pictures.map((picture) => figure(picture)));
}

async function compare() {
  await load();
  const schedules = [...$("compare-schedules").querySelectorAll(":checked")].map((box) => box.value);
  const adapter = $("compare-adapter").value || null;
  const values = { settings: settings(), schedules, adapter, strengths: [] };
  if (adapter) values.strengths = numbers($("compare-strengths").value);
  const rows = (result) => $("rows").replaceChildren(...(result.rows ?? []).map((row) => element("div",
    { className: "row" }, element("b", { textContent: row.caption }),
    element("p", { className: "note", textContent: cost(row, row.pictures.length) }),
    element("div", { className: "pictures" }, ...row.pictures.map((picture) => figure(picture))))));
  rows(await follow("compare", values, $("compare"), rows));
}

// Every control shows what was drawn, and it is drawn again from the very same settings.
async function redraw(wanted) {
  show("draw");
  setSource(wanted);
  await load();
  for (const name of Object.keys(wanted.adapters)) {
    if (!facts.adapters.includes(name)) apply(await follow("adapter", { ...source(facts), adapter: name }));
  }
  Object.assign(strengths, Object.fromEntries(facts.adapters.map((name) => [name, wanted.adapters[name] ?? 0])));
  apply(facts);
  for (const name of ["height", "width", "steps", "guidance", "seed", "count", "prompt", "schedule", "fast_share"]) {
    if (wanted[name] !== null) $(name).value = wanted[name];
  }
  $("label").value = wanted.label ?? "";
  outputs();
  drawn(await follow("draw", wanted, $("draw")));
}

async function start() {
  document.addEventListener("input", outputs);
  $("settings").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("nav button")) button.onclick = () => { say(""); show(button.dataset.tab); };
  whenRedrawn(redraw);
  setSweeps(async () => { await load(); return settings(); });
  $("model").addEventListener("change", () => setSource({ model: $("model").value.trim() }));
  onPress($("load"), load);
  onPress($("load-adapter"), async () => {
    await load();
    apply(await follow("adapter", { ...source(facts), adapter: $("adapter").value.trim() }));
  });
  onPress($("go-draw"), async () => { await load(); drawn(await follow("draw", settings(), $("draw"))); });
  onPress($("go-compare"), compare);
  outputs();
  try {
    const lists = await ask("lists");
    $("models").replaceChildren(...lists.models.map((name) => new Option(name, name)));
    $("adapter-names").replaceChildren(...lists.adapters.map((name) => new Option(name, name)));
    await load();
  } catch (error) {
    say(error.message);
  }
}

start();
