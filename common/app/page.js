// The page asks its own server only; answers are lines of JSON, shown as they come.
const $ = (name) => document.getElementById(name);
const form = $("wish"), TABS = ["sample", "between", "invert"];
let running = null, frames = [], times = [], names = [], chosen = 0, most = 0, dragging = false, again = false;

function tell(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

function wish(more = {}) {
  const words = Object.fromEntries(new FormData(form));
  for (const key of ["cfg", "n_steps", "n_samples", "seed"]) words[key] = Number(words[key]);
  words.label = words.label ? Number(words.label) : null;
  return { ...words, cfg: form.cfg.disabled ? 1 : words.cfg, other: Number($("other").value), ...more };
}

// Each question ends the one before it. Returns whether it was answered.
async function ask(what, body, line) {
  if (what !== "about" && !form.reportValidity()) return false;
  running?.abort();
  const mine = (running = new AbortController());
  try {
    const response = await fetch(what, { method: "POST", body, signal: mine.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", part;
    while (!(part = await reader.read()).done) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const text of lines.filter(Boolean)) {
        const said = JSON.parse(text);
        if (said.error) throw new Error(said.error);
        line(said);
      }
    }
    return true;
  } catch (error) {
    const away = "the server does not answer: is it still running in its terminal?";
    if (!mine.signal.aborted) tell(error instanceof TypeError ? away : error.message, true);
    return false;
  } finally {
    if (running === mine) running = null;
  }
}

const cost = ({ nfe, seconds, solver, grid }) =>
  `${+nfe.toFixed(2)} network evaluations (NFE) for each image, ${seconds.toFixed(2)} s, solver ${solver}` +
  (grid === solver ? "" : `, ${grid} grid`);

function figure(source, text, kind = "") {
  const made = document.createElement("figure"), image = new Image(), caption = document.createElement("figcaption");
  [image.src, image.alt, caption.textContent, made.className] = [source, text, text, kind];
  made.append(image, caption);
  return made;
}

function show(step) { // a state of all images, and where the chosen one comes from
  const grid = $("grid");
  if (grid.children.length !== names.length)
    grid.replaceChildren(...names.map((name, k) => {
      const made = figure(frames[step][k], name);
      made.onclick = () => { chosen = k; follow(); };
      return made;
    }));
  frames[step].forEach((source, k) => {
    grid.children[k].firstChild.src = source;
    grid.children[k].lastChild.textContent = names[k];
  });
  [$("step").max, $("step").value] = [frames.length - 1, step];
  $("time").textContent = `t = ${times[step].toFixed(2)}`;
}

function follow() {
  chosen = Math.min(chosen, names.length - 1);
  [...$("grid").children].forEach((made, k) => made.classList.toggle("chosen", k === chosen));
  $("one").textContent = `The way of image ${chosen} (${names[chosen]})`;
  $("one_hint").textContent = "Click another image to follow that one.";
  const count = Math.min(frames.length, 12), last = frames.length - 1;
  const picked = [...Array(count).keys()].map((k) => Math.round((k * last) / Math.max(1, count - 1)));
  $("strip").replaceChildren(...picked.map((k) => figure(frames[k][chosen], `t = ${times[k].toFixed(2)}`)));
}

async function sample() {
  tell("the solver starts ...");
  let fresh = true;
  await ask("sample", JSON.stringify(wish()), (said) => {
    if (said.images) {
      if (fresh) [frames, times, fresh] = [[], [], false];
      names = said.names;
      frames.push(said.images);
      times.push(said.t);
      show(said.step);
      follow();
      [$("progress").hidden, $("progress").value, $("step").disabled] = [false, said.step / said.of, false];
      tell(`step ${said.step} of ${said.of}`);
    } else tell(cost(said));
  });
  $("progress").hidden = true;
}

async function ends() {
  await ask("between", JSON.stringify(wish({ places: [0, 1] })), (said) => {
    [$("left").src, $("right").src] = said.images;
    [$("left_name").textContent, $("right_name").textContent] = [`seed ${form.seed.value}`, `seed ${$("other").value}`];
  });
  await drag();
}

async function drag() { // one question at a time, the newest place next
  if (dragging) return void (again = true);
  dragging = true;
  do {
    again = false;
    const place = Number($("place").value);
    await ask("between", JSON.stringify(wish({ places: [place] })), (said) => {
      $("middle").src = said.images[0];
      $("middle_name").textContent = `at ${place.toFixed(2)} of the way`;
      tell(cost(said));
    });
  } while (again);
  dragging = false;
}

async function invert() {
  const file = $("file").files[0];
  if (!file) return tell("choose a picture first", true);
  if (file.size > most) return tell(`the picture has more than ${most / 1e6} MB: give a smaller one`, true);
  tell("on the way to the noise and back ...");
  const body = new FormData();
  body.append("wish", JSON.stringify(wish()));
  body.append("picture", file);
  await ask("invert", body, (said) => {
    const captions = ["your picture, as the network takes it", "its noise (a third of it)", "made of the noise again"];
    $("invert_out").replaceChildren(...said.images.map((source, k) => figure(source, captions[k], "big")));
    const { error, ratio, mean, spread } = said.facts;
    tell(`Error after both ways: ${error.toFixed(3)} of 255 grey levels (RMS), PSNR ${ratio.toFixed(1)} dB. The noise has ` +
      `mean ${mean.toFixed(2)} and spread ${spread.toFixed(2)} (normal: 0 and 1). ${cost(said)}`);
  });
}

const RUN = { sample, between: ends, invert };
const tab = () => TABS.find((name) => !$(name).hidden);

function open(name) {
  for (const each of TABS) {
    $(each).hidden = $(`${each}_out`).hidden = each !== name;
    $(`tab_${each}`).setAttribute("aria-selected", each === name);
  }
  tell("");
  if (name === "between") ends();
}

async function choose() { // what these weights can do
  tell("reading the weights ...");
  return ask("about", JSON.stringify({ weights: form.weights.value }), (said) => {
    const option = (text, value) => new Option(text, value);
    const any = said.classes.length ? "all in turn" : "these weights know no classes";
    form.label.replaceChildren(option(any, ""), ...said.classes.map((text, k) => option(text, k)));
    form.label.disabled = !said.classes.length;
    form.cfg.disabled = !said.guidance;
    form.n_steps.value = said.steps;
    form.solver.replaceChildren(...said.solvers.map((name) => option(name, name)));
    $("about").textContent = said.text;
    document.body.style.setProperty("--side", `${said.side > 48 ? Math.min(said.side * 2, 128) : said.side * 3}px`);
    tell("");
  });
}

form.onsubmit = (event) => { event.preventDefault(); RUN[tab()](); };
form.cfg.oninput = () => ($("cfg_shown").textContent = form.cfg.value);
form.weights.onchange = async () => (await choose()) && (tab() === "invert" ? undefined : RUN[tab()]());
form.onchange = (event) => event.target.name !== "weights" && tab() === "between" && ends();
$("other").onchange = ends;
$("place").oninput = drag;
$("step").oninput = () => show(Number($("step").value));
$("run_sample").onclick = sample;
$("run_invert").onclick = invert;
$("dice").onclick = () => { form.seed.value = Math.floor(Math.random() * 1e6); sample(); };
for (const name of TABS) $(`tab_${name}`).onclick = () => open(name);

(async () => {
  const listed = await (await fetch("weights")).json();
  most = listed.most_bytes;
  form.weights.replaceChildren(...listed.weights.map((name) => new Option(name, name)));
  if (await choose()) await sample();
})();
