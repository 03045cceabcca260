// The page: an input goes to the server once, then each position of the slider is coded there. Answers are
// kept, and the positions that nobody asked for are coded in between, so that the curve fills itself.

import { Curve, make, short, showAnswer, showErrors } from "./drawing.js";

const root = document.documentElement;
root.dataset.errors = "";
root.dataset.coded = "0";
window.addEventListener("error", (event) => { root.dataset.errors += `${event.message};`; });
window.addEventListener("unhandledrejection", (event) => { root.dataset.errors += `${event.reason};`; });

const at = (id) => document.getElementById(id);
const slider = at("quality");
const LONGEST = 640; // pixels: what the server fits pictures into
const KEY = "dtufc token";
const PAUSE = 500; // milliseconds

let facts = null; // of the server
let input = null; // what it answered to the present one
let coded = new Map(); // position of the slider -> what it answered
let curves = [];
let turn = 0; // number of the last input that was given
let last = null; // what it was, should the server forget it
let again = 0; // how often it did
let pending = false; // whether the server has it in hand
let working = false;

class Refusal extends Error {
  constructor(answer) {
    super(`${answer.code}: ${answer.reason}`);
    this.code = answer.code;
  }
}

/** Ask the server -> its JSON. Who asks too fast is refused, and asks again a little later. */
async function ask(method, path, body, patience = 5) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { method, body, headers });
  } catch {
    throw new Refusal({ code: "away", reason: "the server does not answer" });
  }
  let answer;
  try { answer = await response.json(); } catch { answer = {}; }
  if (response.ok) return answer;
  if (answer.code === "rate" && patience) {
    await new Promise((resolve) => { setTimeout(resolve, PAUSE); });
    return ask(method, path, body, patience - 1);
  }
  throw new Refusal({ code: answer.code ?? response.status, reason: answer.reason ?? response.statusText });
}

/** Say why something was refused; a token that is missing is asked for. */
function refuse(error) {
  if (!(error instanceof Refusal)) throw error;
  const locked = error.code === "token";
  at("lock").hidden = !locked;
  at("refusal").hidden = locked && !sessionStorage.getItem(KEY);
  at("refusal").textContent = `Refused: ${error.message}`;
  if (locked) {
    sessionStorage.removeItem(KEY);
    at("main").hidden = true;
    at("about").textContent = "The server is locked.";
    at("token").focus();
  }
}

// Inputs.

async function start() {
  facts = await ask("GET", "page/facts");
  at("lock").hidden = at("refusal").hidden = true;
  const cut = facts.cut ? `, cut after ${facts.cut}` : "";
  at("about").textContent = `${facts.kind} ${facts.asks}. The model is in two halves${cut}; ` +
    `${facts.codec} codes what goes from one to the other.`;
  document.title = `${facts.kind}: feature coding, live`;
  const own = { picture: "drop", text: "write", caption: "write" }[facts.takes];
  at(own).hidden = false;
  at("text-label").textContent = `Your own ${facts.takes}`;
  at("error-name").textContent = facts.error;
  slider.max = facts.qualities.length - 1;
  slider.value = facts.start;
  slider.disabled = facts.qualities.length < 2;
  const pick = (step) => { slider.value = step; show(); announce(); };
  const distance = `${facts.distance.name}, ${facts.distance.unit}`;
  curves = [new Curve(distance, false, pick), new Curve(`Feature: ${facts.error}`, true, pick)];
  at("curves").replaceChildren(...curves.map((curve) => curve.element));
  offer();
  at("main").hidden = false;
  if (facts.samples.length) await choose({ sample: 0 });
  else root.dataset.state = "ready";
}

function offer() {
  at("samples").hidden = !facts.samples.length;
  at("offers").classList.toggle("listed", !facts.samples.some((sample) => sample.picture));
  at("offers").replaceChildren(...facts.samples.map((sample, number) => {
    const choice = make("input", { type: "radio", name: "sample", value: number, checked: number === 0,
                                   "aria-label": sample.title });
    choice.addEventListener("change", () => choose({ sample: number }));
    const look = sample.picture ? make("img", { src: sample.picture, alt: "", title: sample.title })
      : make("span", { title: sample.title }, make("i", {}, sample.title));
    return make("div", { class: "offer" }, choice, look);
  }));
}

/** Give the server another input. */
function choose(what) {
  [last, again] = [what, 0];
  return take(what);
}

/** Give the server an input: the number of a sample, or bytes. */
async function take({ sample, body }) {
  const mine = ++turn;
  pending = true;
  root.dataset.state = "busy";
  at("rate").classList.add("busy");
  try {
    const given = await ask("POST", sample === undefined ? "page/input" : `page/input?sample=${sample}`, body);
    if (mine !== turn) return;
    at("refusal").hidden = true;
    [input, coded, pending] = [given, new Map(), false];
    root.dataset.coded = "0";
    if (sample === undefined) for (const each of document.getElementsByName("sample")) each.checked = false;
    for (const curve of curves) curve.update([], -1);
    work();
  } catch (error) {
    if (mine !== turn) return;
    pending = false;
    at("rate").classList.toggle("busy", !input);
    root.dataset.state = "refused";
    refuse(error);
  }
}

/** A file as the server takes it: a picture of too many bytes is drawn smaller first. */
async function readPicture(file) {
  if (file.size <= facts.bytes) return file;
  const picture = await createImageBitmap(file);
  const factor = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const canvas = make("canvas", { width: Math.round(factor * picture.width),
                                  height: Math.round(factor * picture.height) });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", 0.95); });
}

async function drop(file) {
  if (facts.takes !== "picture") { await choose({ body: (await file.text()).slice(0, 8192) }); return; }
  try {
    await choose({ body: await readPicture(file) });
  } catch (error) {
    if (error instanceof Refusal) throw error;
    refuse(new Refusal({ code: "frame", reason: "the browser cannot read this picture" }));
  }
}

// Coding.

/** Positions of the slider in the order in which the curve is filled: the ends, the middles, and so on. */
function order() {
  const last = facts.qualities.length - 1;
  const found = new Set();
  for (let step = last || 1; step >= 1; step = Math.floor(step / 2)) {
    for (let place = 0; place <= last; place += step) found.add(place);
  }
  return [...found];
}

/** Code what the slider asks for, then the others, one at a time. */
async function work() {
  if (working || !input) return;
  working = true;
  const asked = () => Number(slider.value);
  try {
    while (!pending) {
      const mine = input;
      const wanted = [asked(), ...order()].find((step) => !coded.has(step));
      if (wanted === undefined) { root.dataset.state = "ready"; break; }
      const answer = await ask("POST", `page/code?input=${mine.input}&step=${wanted}`);
      if (mine !== input) continue;
      coded.set(wanted, answer);
      root.dataset.coded = coded.size;
      if (wanted === asked()) { show(); announce(); } else updateCurves();
    }
  } catch (error) {
    if (error.code === "gone" && again++ < 3) take(last);
    else { root.dataset.state = "refused"; refuse(error); }
  } finally {
    working = false;
  }
}

let drawing = 0;

/** Draw curves and figures, once per frame of the screen. */
function updateCurves() {
  drawing ||= requestAnimationFrame(() => { drawing = 0; drawCurves(); fillFigures(); });
}

function drawCurves() {
  const points = (y) => [...coded.values()].map((each) => ({ step: each.step, x: each.bpfp, y: y(each) }));
  curves[0].update(points((each) => each.distance), Number(slider.value));
  curves[1].update(points((each) => each.error), Number(slider.value));
}

/** The table of all rates, while it is open. */
function fillFigures() {
  if (!at("all").open) return;
  const head = ["bits per point", "bytes", facts.error, `${facts.distance.name}, ${facts.distance.unit}`];
  const rows = [...coded.values()].sort((a, b) => a.step - b.step).map((each) =>
    make("tr", each.step === Number(slider.value) ? { "aria-current": "true" } : {},
      make("th", { scope: "row" }, short(each.bpfp)), make("td", {}, each.bytes.toLocaleString("en")),
      make("td", {}, short(each.error)), make("td", {}, short(each.distance))));
  at("figures").replaceChildren(
    make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows));
}

/** Show the slider's position, as far as it is coded. */
function show() {
  const found = coded.get(Number(slider.value));
  at("rate").classList.toggle("busy", !found);
  if (!found) return;
  const ratio = found.bytes / input.raw_bytes;
  at("bytes").textContent = `${found.bytes.toLocaleString("en")} bytes`;
  at("bpfp").textContent = short(found.bpfp);
  at("ratio").textContent = ratio < 1 ? `1 / ${short(1 / ratio)}` : `${short(ratio)} ×`;
  at("error").textContent = short(found.error);
  at("times").textContent = `${short(found.encode_ms)} + ${short(found.decode_ms)} ms`;
  slider.setAttribute("aria-valuetext",
    `${found.bytes} bytes, ${short(found.bpfp)} bits per point: ${found.answer.words}`);
  at("words").textContent = `At ${short(found.bpfp)} bits per point: ${found.answer.words}.`;
  showAnswer(at("answer"), input, found.answer);
  at("places-words").textContent =
    showErrors(at("places"), input.shown, found.errors, found.answer.changed);
  updateCurves();
}

let later = 0;

/** Tell a screen reader, once the slider rests. */
function announce() {
  clearTimeout(later);
  later = setTimeout(() => {
    const found = coded.get(Number(slider.value));
    if (found) at("status").textContent = `${input.title}, ${found.bytes} bytes: ${found.answer.words}`;
  }, 600);
}

// What the reader does.

at("all").addEventListener("toggle", fillFigures);
slider.addEventListener("input", () => { show(); work(); announce(); });
at("file").addEventListener("change", (event) => {
  if (event.target.files.length) drop(event.target.files[0]);
  event.target.value = "";
});
at("write").addEventListener("submit", (event) => {
  event.preventDefault();
  choose({ body: at("text").value });
});
at("lock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("token").value.trim());
  at("token").value = "";
  start().catch(refuse);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    root.classList.toggle("dragging", kind === "dragover");
    if (kind === "drop" && facts && event.dataTransfer.files.length) drop(event.dataTransfer.files[0]);
  });
}
start().catch(refuse);
