// Runs with their curves, sweeps, and the gallery.

import { $, ask, element, figure, numbers, onPress, say } from "/page/common.js";

const COLOURS = ["#b3431f", "#2b6a8f", "#5b7f2b", "#7a4a8f", "#8a6d1b", "#c06c9c", "#1f8a7d", "#777777"];
const SVG = "http://www.w3.org/2000/svg";
const REFRESH = 3000; // milliseconds

function drawing(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

const short = (value) => Number(value.toPrecision(3)).toString();

// One plot of the series {name: [[x, y], …]}.
export function plot({ title, series }) {
  const points = Object.values(series).flat();
  const made = drawing("svg", { viewBox: "0 0 300 180", role: "img", "aria-label": title });
  made.append(drawing("text", { x: 4, y: 12, "font-weight": 600 }, title));
  if (!points.length) return made;
  const ends = (axis) => points.reduce(([low, high], p) => [Math.min(low, p[axis]), Math.max(high, p[axis])],
    [Infinity, -Infinity]);
  const [left, right] = ends(0), [low, high] = ends(1);
  const x = (value) => 40 + (250 * (value - left)) / (right - left || 1);
  const y = (value) => 150 - (125 * (value - low)) / (high - low || 1);
  made.append(drawing("path", { d: "M40 20V150H292", fill: "none", stroke: "currentColor", opacity: 0.4 }));
  made.append(drawing("text", { x: 2, y: 26 }, short(high)), drawing("text", { x: 2, y: 152 }, short(low)));
  made.append(drawing("text", { x: 292, y: 162, "text-anchor": "end" }, `${short(right)} images`));
  Object.entries(series).forEach(([name, line], number) => {
    const stroke = COLOURS[number % COLOURS.length];
    const path = line.map((point, i) => `${i ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
    const shape = line.length === 1
      ? drawing("circle", { cx: x(line[0][0]), cy: y(line[0][1]), r: 2.5, fill: stroke })
      : drawing("path", { d: path, fill: "none", stroke, "stroke-width": 1.5 });
    const label = drawing("title", {}, name);
    shape.append(label);
    made.append(shape);
    if (Object.keys(series).length > 1 && number < 8) {
      made.append(drawing("text", { x: 4 + 74 * (number % 4), y: 172 + (number > 3 ? 8 : 0), fill: stroke,
        style: `fill:${stroke}` }, name.slice(0, 13)));
    }
  });
  return made;
}

let timer = null;

export async function showRuns() {
  const { runs } = await ask("lists");
  const chosen = $("run").value;
  $("run").replaceChildren(...runs.map((name) => new Option(name)));
  if (runs.includes(chosen)) $("run").value = chosen;
  if (!runs.length) {
    $("run-state").textContent = "There is no training run in the folders of this studio (`--root`); "
      + "`brickwork train my-pictures` starts one.";
    return;
  }
  await showRun();
}

async function showRun() {
  clearTimeout(timer);
  if ($("runs").hidden || document.hidden) return;
  const name = $("run").value;
  const found = await ask("run", { run: name });
  const words = [`${found.images.toLocaleString("en")} images seen`];
  if (!found.plots.length) words.push("nothing is logged yet");
  words.push(found.pipeline ? "its folder can be drawn with" : "no pipeline yet, it comes at the end");
  $("run-state").textContent = words.join(", ") + ".";
  $("curves").replaceChildren(...found.plots.map(plot));
  $("samples").replaceChildren(...found.samples.map((sample) => element("figure", {}, element("img", {
    src: `/samples/${sample}?${new URLSearchParams({ run: name })}`, alt: sample, loading: "lazy" }),
  element("figcaption", { textContent: `${Number(sample.match(/\d+/)[0]).toLocaleString("en")} images` }))));
  timer = setTimeout(() => showRun().catch((error) => say(error.message)), REFRESH);
}
$("run").addEventListener("change", () => showRun().catch((error) => say(error.message)));
document.addEventListener("visibilitychange", () => showRun().catch((error) => say(error.message)));

let settings = async () => ({});
export const setSweeps = (action) => { settings = action; };

export async function showSweep() {
  if ($("sweep-name").value) showState(await ask("sweep/state", { name: $("sweep-name").value.trim() }));
}

function showState(state) {
  $("sweep-log").textContent = state.log;
  $("sheet").hidden = !state.sheet;
  if (state.sheet) $("sheet").src = `/sheets/${state.name}?at=${state.sheet}`;
}

onPress($("go-sweep"), async () => {
  const { model, revision, variant, prompt, steps, seed, count } = await settings();
  const values = { name: $("sweep-name").value.trim(), model, revision, variant, steps, seed, count };
  values.sizes = numbers($("sweep-sizes").value);
  values.ratios = $("sweep-ratios").value.trim().split(/\s+/).filter(Boolean);
  if (prompt) values.prompt = prompt;
  if ($("sweep-adapter").value.trim()) {
    values.adapter = $("sweep-adapter").value.trim();
    values.strengths = numbers($("sweep-strengths").value);
  }
  let state = await ask("sweep", values, "POST");
  while (state.running) {
    showState(state);
    await new Promise((done) => setTimeout(done, 700));
    state = await ask("sweep/state", { name: values.name });
  }
  showState(state);
  const wrong = state.log.match(/^error: .*$/m);
  if (wrong) throw new Error(wrong[0]);
});
onPress($("stop-sweep"), () => ask("sweep/stop", {}, "POST"));

export async function showGallery() {
  const { pictures } = await ask("gallery");
  const place = $("gallery").querySelector(".pictures");
  place.replaceChildren(...pictures.map((picture) => {
    const s = picture.settings;
    const words = [s.model, s.revision, s.variant, s.label, s.prompt, s.schedule !== "saved" && s.schedule, `${s.height} × ${s.width}`,
      s.steps && `${s.steps} steps`, s.guidance !== null && `guidance ${s.guidance}`,
      ...Object.entries(s.adapters).map(([name, strength]) => `${name} at ${strength}`),
      `${picture.seconds.toFixed(2)} s`];
    return figure(picture, words.filter(Boolean).join(", "));
  }));
  if (!pictures.length) place.textContent = "Nothing has been drawn yet.";
}
