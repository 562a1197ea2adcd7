// What all pages share: asking the studio, messages, jobs, pictures.

export const $ = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

export function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

export async function ask(name, values = {}, method = "GET") {
  const url = method === "GET" ? `/api/${name}?${new URLSearchParams(values)}` : `/api/${name}`;
  const body = method === "GET" ? undefined : JSON.stringify(values);
  let response;
  try {
    response = await fetch(url, { method, body, headers: body ? { "Content-Type": "application/json" } : {} });
  } catch {
    throw new Error("The studio does not answer; is `brickwork app` still running?");
  }
  const text = await response.text();
  let result;
  try {
    result = JSON.parse(text);
  } catch {
    throw new Error(text.slice(0, 300) || `The studio answered ${response.status}.`);
  }
  if (!response.ok) throw new Error(result.error || `The studio answered ${response.status}.`);
  return result;
}

// Runs `action` when a button is pressed, once at a time; whatever goes wrong becomes the message.
export function onPress(button, action) {
  button.addEventListener("click", async (event) => {
    event.preventDefault();
    say("");
    button.disabled = true;
    try {
      await action();
    } catch (error) {
      say(error.message);
    }
    button.disabled = false;
  });
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// Starts a job and follows it to its end; `place` is a section with .progress and .preview.
export async function follow(name, values, place, whileWorking = () => {}) {
  let job = await ask(name, values, "POST");
  const bar = place?.querySelector(".progress"), preview = place?.querySelector(".preview");
  if (bar) {
    bar.hidden = false;
    bar.querySelector(".stop").onclick = () => ask("stop", { job: job.number }, "POST").catch((e) => say(e.message));
  }
  try {
    while (job.state === "waiting" || job.state === "working") {
      if (bar) {
        const meter = bar.querySelector("progress");
        if (job.steps) Object.assign(meter, { max: job.steps, value: job.step });
        else meter.removeAttribute("value");
        const words = job.steps ? `step ${job.step} of ${job.steps}` : job.state === "waiting" ? "waiting" : "working";
        bar.querySelector("span").textContent = words;
        if (job.preview) Object.assign(preview, { src: job.preview, hidden: false });
      }
      whileWorking(job.result);
      await pause(250);
      job = await ask("job", { job: job.number });
    }
  } finally {
    if (bar) bar.hidden = preview.hidden = true;
  }
  if (job.state === "failed") throw new Error(job.message);
  if (job.state === "stopped") say(job.message);
  return job.result;
}

export function cost({ seconds, operations, subnets }, pictures) {
  const each = pictures > 1 ? " a picture" : "";
  const parts = [`${seconds.toFixed(2)} s`, `${(operations / 1e9 / pictures).toFixed(1)} GFLOP${each}`];
  return [...parts, ...(subnets ? [`evaluations: ${subnets}`] : [])].join(" · ");
}

let redraw = () => {};
export const whenRedrawn = (action) => { redraw = action; };

// Small pictures are enlarged by whole numbers.
export function figure({ picture, settings }, caption) {
  const image = element("img", { src: `/pictures/${picture}`, alt: caption || picture, loading: "lazy" });
  image.onload = () => { image.width = image.naturalWidth * Math.max(1, Math.floor(192 / image.naturalWidth)); };
  const again = element("button", { type: "button", textContent: "draw again" });
  onPress(again, () => redraw(settings));
  const link = element("a", { href: image.src, download: picture, textContent: "save" });
  return element("figure", {}, image, element("figcaption", {}, `seed ${settings.seed} `, again, " ", link,
    ...(caption ? [element("div", { textContent: caption })] : [])));
}

export const numbers = (text) => text.trim().split(/[\s,]+/).filter(Boolean).map(Number);
