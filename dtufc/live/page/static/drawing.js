// Draws what the page shows of a coded feature: answers, errors by place, curves.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a child may be text. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

/** A number to so many digits, without exponents where it is not tiny. */
export function short(value, digits = 3) {
  if (value === 0) return "0";
  if (Math.abs(value) < 1e-4) return value.toExponential(1);
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
}

/** A share 0..1 as percent. */
export function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

/** A token as it can be seen: line breaks and leading spaces have signs. */
export function token(text) {
  const element = make("span", { class: "token" });
  for (const part of text.split(/(\n|^ +| +$)/).filter(Boolean)) {
    if (part === "\n") element.append(make("i", {}, "↵"));
    else if (/^ +$/.test(part)) element.append(make("i", {}, "·".repeat(part.length)));
    else element.append(part);
  }
  return element;
}

// Answers.

function figure(title, picture, alt, now = false) {
  return make("figure", now ? { class: "now" } : {},
    make("figcaption", {}, title), make("img", { src: picture, alt }));
}

/** Pictures side by side: input, answer without coding, decoded answer, difference. */
function pictures(input, decoded) {
  const { shown, answer, title } = input;
  const views = make("div", { class: "views" });
  if (shown.picture) views.append(figure(title, shown.picture, "the input"));
  else views.append(make("figure", {}, make("figcaption", {}, "Caption"),
    make("blockquote", {}, shown.text)));
  views.append(
    figure("Without coding", answer.picture, "the answer without coding"),
    figure("Decoded", decoded.picture, `the decoded answer: ${decoded.words}`, true),
    figure("Difference", decoded.difference, "white where the two answers differ"));
  const parts = [views];
  if (decoded.legend) {
    parts.push(make("ul", { class: "legend", "aria-label": "Classes" }, ...decoded.legend.map((entry) => {
      const square = make("i");
      square.style.background = entry.colour;
      return make("li", {}, square, entry.name);
    })));
  }
  if (decoded.scale) {
    parts.push(make("p", { class: "legend depths" },
      make("span", {}, decoded.scale.low, make("i"), decoded.scale.high)));
  }
  return parts;
}

function bar(share, now) {
  const fill = make("b");
  fill.style.width = `${100 * share}%`;
  return make("td", {}, make("div", { class: "bar" },
    make("div", { class: now ? "track now" : "track" }, fill), make("span", {}, percent(share))));
}

/** What is likeliest, with both probabilities; of a language model also the tokens behind it. */
function rankings(input, decoded) {
  const name = (text) => (decoded.continued ? token(text) : text);
  const table = make("table", { class: "bars" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, decoded.continued ? "next token" : "class"),
      make("th", { scope: "col" }, "without coding"), make("th", { scope: "col" }, "decoded"))),
    make("tbody", {}, ...decoded.bars.map((each) => make("tr", {},
      make("th", { scope: "row" }, name(each.name)), bar(each.uncoded, false), bar(each.decoded, true)))));
  if (!decoded.continued) {
    return [make("div", { class: "ranked" }, figure(input.title, input.shown.picture, "the input"), table)];
  }
  const then = make("ol", { class: "then" }, ...decoded.continued.map((each) => {
    const probabilities = `${percent(each.uncoded)} → ${percent(each.decoded)}`;
    if (each.instead === null) return make("li", {}, token(each.text), probabilities);
    return make("li", { class: "other" }, token(each.text), probabilities, make("br"), "instead: ",
      make("b", {}, token(each.instead)));
  }));
  return [table, make("h3", { class: "dim" }, "The text goes on, without coding → decoded"), then];
}

/** The answers into a place of the page. */
export function showAnswer(place, input, decoded) {
  place.replaceChildren(...(decoded.kind === "picture" ? pictures : rankings)(input, decoded));
}

// Errors by place.

/** An error's colour: 0.001 and less is the low end, 1 and more the high one. */
function heat(value) {
  const level = Math.min(1, Math.max(0, 1 + Math.log10(Math.max(value, 1e-9)) / 3));
  const share = Math.round(100 * (level < 0.5 ? 2 * level : 2 * level - 1));
  return level < 0.5
    ? `color-mix(in oklab, var(--heat-mid) ${share}%, var(--heat-low))`
    : `color-mix(in oklab, var(--heat-high) ${share}%, var(--heat-mid))`;
}

function grid(rows, columns, panel) {
  const size = 10;
  const picture = draw("svg", { viewBox: `0 0 ${columns * size} ${rows * size}`, "aria-hidden": "true" });
  panel.values.forEach((value, place) => {
    const row = Math.floor(place / columns);
    const column = place % columns;
    const cell = draw("rect", { x: column * size + 0.4, y: row * size + 0.4, width: size - 0.8,
                                height: size - 0.8, rx: 1.2 });
    cell.style.fill = heat(value);
    cell.append(draw("title", {}, `row ${row + 1}, column ${column + 1}: ${short(value)}`));
    picture.append(cell);
  });
  const first = panel.first === null ? "" : `class token ${short(panel.first)}`;
  const words = [panel.name, first].filter(Boolean).join(" · ");
  return make("figure", {}, ...(words ? [make("figcaption", {}, words)] : []), picture);
}

function strip(tokens, errors, changed) {
  const line = make("p", { class: "strip", tabindex: "0", role: "group", "aria-label": "The text" });
  tokens.forEach((text, place) => {
    const word = make("span", { title: `error ${short(errors.values[place])}` +
      (changed[place] ? "; another token is the likeliest behind it" : "") });
    if (changed[place]) word.className = "changed";
    word.style.borderBottomColor = heat(errors.values[place]);
    word.append(text.replaceAll("\n", "↵"));
    line.append(word);
    if (text.includes("\n")) line.append(make("br"));
  });
  return line;
}

/** The error by place into a place of the page -> it in words. */
export function showErrors(place, shown, errors, changed) {
  if (errors.panels) {
    const few = errors.panels.length < 3 ? "grids few" : "grids";
    place.replaceChildren(make("div", { class: few },
      ...errors.panels.map((panel) => grid(errors.rows, errors.columns, panel))));
  } else {
    const top = place.querySelector(".strip")?.scrollTop;
    place.replaceChildren(strip(shown.tokens, errors, changed));
    if (top) place.querySelector(".strip").scrollTop = top;
  }
  const where = errors.panels ? "place" : "token";
  const more = errors.panels ? "" : " Dotted: another token is the likeliest behind it.";
  return `Relative error per ${where}: mean ${short(errors.mean)}, worst ${short(errors.worst)}.${more}`;
}

// Curves.

const HEIGHT = 190;
const MARGIN = { left: 54, right: 14, top: 24, bottom: 36 };

/** Round numbers between two ends: on a logarithmic axis powers of ten, and three times those where they are
 * few; steps of 1, 2 or 5 on another. */
function ticks(low, high, logarithmic) {
  const found = [];
  if (logarithmic) {
    const [first, last] = [Math.floor(Math.log10(low)), Math.floor(Math.log10(high))];
    const step = Math.max(1, Math.ceil((last - first) / 5));
    for (let power = first; power <= last; power += step) {
      found.push(10 ** power);
      if (last - first < 4) found.push(3 * 10 ** power);
    }
    return found.filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((each) => each >= rough);
  for (let value = Math.ceil(low / step) * step; value <= high * (1 + 1e-9); value += step) found.push(value);
  return found;
}

function scale(low, high, from, to, logarithmic) {
  const place = logarithmic ? Math.log : (value) => value;
  const [first, last] = [place(low), place(high)];
  return (value) => from + ((place(value) - first) / (last - first || 1)) * (to - from);
}

/** A figure against bits per point, with the current point. */
export class Curve {
  constructor(title, logarithmic, onPick) {
    Object.assign(this, { title, logarithmic, onPick });
    this.svg = draw("svg", { role: "img" });
    this.element = make("div", { class: "plot" }, this.svg);
    this.points = [];
    this.width = 0;
    new ResizeObserver(() => this.update(this.points, this.now)).observe(this.element);
  }

  /** Points ``{step, x, y}`` that are known; ``now`` is the step of the slider. */
  update(points, now) {
    const width = this.element.clientWidth;
    const ordered = [...points].sort((a, b) => a.x - b.x);
    const tell = (list) => list.map((point) => `${point.step} ${point.y}`).join(";");
    const same = width === this.width && tell(ordered) === tell(this.points);
    Object.assign(this, { points: ordered, now, width });
    if (!ordered.length || !width) { this.svg.replaceChildren(); this.width = 0; return; }
    if (!same) this.#axes(ordered);
    const current = ordered.find((point) => point.step === now);
    for (const part of [this.dot, this.guide]) part.style.display = current ? "" : "none";
    if (!current) return;
    const [x, y] = [this.x(current.x), this.y(this.#floor(current.y))];
    this.dot.style.transform = `translate(${x}px, ${y}px)`;
    this.guide.style.transform = `translate(${x}px, 0)`;
    const [first, last] = [ordered[0], ordered.at(-1)];
    this.svg.setAttribute("aria-label",
      `${this.title} against bits per point: ${short(first.y)} at ${short(first.x)}, ` +
      `${short(last.y)} at ${short(last.x)}; now ${short(current.y)} at ${short(current.x)}.`);
  }

  #floor(value) { return this.logarithmic ? Math.max(value, this.low) : value; }

  #axes(points) {
    const xs = points.map((point) => point.x);
    const ys = points.map((point) => point.y);
    const positive = ys.filter((value) => value > 0);
    const [left, right] = [Math.min(...xs) / 1.15, Math.max(...xs) * 1.15];
    let high = Math.max(...ys) || 1;
    if (this.logarithmic) {
      this.low = Math.max(Math.min(...positive, 1) / 1.5, 1e-9);
      high *= 1.5;
    } else {
      this.low = 0;
      high *= 1.06;
    }
    const bottom = HEIGHT - MARGIN.bottom;
    this.x = scale(left, right, MARGIN.left, this.width - MARGIN.right, true);
    this.y = scale(this.low, high, bottom, MARGIN.top, this.logarithmic);
    const parts = [draw("text", { x: MARGIN.left - 44, y: 12 }, this.title)];
    for (const value of ticks(left, right, true)) {
      parts.push(draw("line", { class: "grid", x1: this.x(value), x2: this.x(value), y1: MARGIN.top, y2: bottom }),
        draw("text", { x: this.x(value), y: bottom + 16, "text-anchor": "middle" }, short(value)));
    }
    for (const value of ticks(this.low, high, this.logarithmic)) {
      parts.push(draw("line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: this.y(value), y2: this.y(value) }),
        draw("text", { x: MARGIN.left - 6, y: this.y(value) + 4, "text-anchor": "end" }, short(value)));
    }
    parts.push(draw("text", { x: (MARGIN.left + this.width - MARGIN.right) / 2, y: HEIGHT - 4, "text-anchor": "middle" },
      "bits per point"));
    const places = points.map((point) => [this.x(point.x), this.y(this.#floor(point.y))]);
    parts.push(draw("polyline", { class: "line", points: places.map((place) => place.join(",")).join(" ") }));
    points.forEach((point, number) => {
      const dot = draw("circle", { class: "dot", cx: places[number][0], cy: places[number][1], r: 3.4 });
      dot.append(draw("title", {}, `${short(point.x)} bits per point: ${short(point.y)}`));
      dot.addEventListener("click", () => this.onPick(point.step));
      parts.push(dot);
    });
    this.guide = draw("line", { class: "guide", y1: MARGIN.top, y2: bottom });
    this.dot = draw("circle", { class: "now", r: 7 });
    this.svg.replaceChildren(...parts, this.guide, this.dot);
  }
}
