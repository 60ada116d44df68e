/** The pictures: who talks to whom, commands over a minute, and latencies. Each says in words what it shows. */
import { bytes, number, time } from "./format.js";
import type { Latency, Rates, Session } from "./status.js";

const SVG = "http://www.w3.org/2000/svg";
type Attributes = Readonly<Record<string, string | number>>;

function element(name: string, attributes: Attributes, ...children: (Node | string)[]): SVGElement {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, `${value}`);
  made.append(...children);
  return made;
}

/** `words`: for who does not see it. */
function picture(width: number, height: number, words: string, ...children: Node[]): SVGElement {
  const attributes = { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words };
  return element("svg", attributes, ...children);
}

const text = (x: number, y: number, words: string, kind = "", anchor = "middle"): SVGElement =>
  element("text", { x, y, class: kind, "text-anchor": anchor }, words);

function box(x: number, width: number, name: string, state: string, isThere: boolean): SVGElement {
  return element(
    "g",
    {},
    element("rect", { x, y: 30, width, height: 80, rx: 8, class: isThere ? "box" : "box away" }),
    text(x + width / 2, 62, name, "name"),
    text(x + width / 2, 86, state, "quiet"),
  );
}

/** An arrow from one box to the next, with what goes along it. */
function arrow(from: number, to: number, y: number, above: string): SVGElement {
  const tip = to > from ? to - 8 : to + 8;
  return element(
    "g",
    {},
    element("path", { class: "arrow", d: `M${from} ${y}H${to}M${tip} ${y - 5}L${to} ${y}L${tip} ${y + 5}` }),
    text((from + to) / 2, y - 7, above),
  );
}

export function drawPicture({ client, device, windowMaps, maps }: Session, rates: Rates): SVGElement {
  const { reads, writes, commands, interrupts, messages, dmaBytes } = rates;
  const asked = `${number(commands)} commands/s`;
  const answered = `${number(interrupts)} interrupts/s`;
  const memory = `DMA ${bytes(dmaBytes)}/s, ${windowMaps} of ${maps} maps in the window`;
  const rw = `${number(reads)} reads/s, ${number(writes)} writes/s`;
  const vm = client ? "connected" : "not there";
  if (device === "local") {
    const words = `Driver VM, ${vm}; device, in this process. ${asked}; ${answered}; ${memory}.`;
    return picture(
      ...([900, 150, words] as const),
      box(10, 200, "Driver VM", vm, client),
      box(690, 200, "Device", "in this process", true),
      arrow(215, 685, 55, `${asked}: ${rw}`),
      arrow(685, 215, 90, answered),
      text(450, 125, memory, "quiet"),
    );
  }
  const isThere = device === "connected" || device === "ready" || device === "linked";
  const words = `Driver VM, ${vm}; bridge; device VM, ${device}. ${asked}; ${rw}; ${answered}; ${memory}.`;
  return picture(
    ...([900, 150, words] as const),
    box(10, 160, "Driver VM", vm, client),
    box(370, 160, "Bridge", `${number(messages)} messages/s`, true),
    box(730, 160, "Device VM", device, isThere),
    arrow(175, 365, 55, asked),
    arrow(365, 175, 90, answered),
    arrow(535, 725, 55, rw),
    arrow(725, 535, 90, answered),
    text(450, 135, memory, "quiet"),
  );
}

export function drawCurve(values: readonly number[], most: number): SVGElement {
  const [width, height, top] = [420, 150, 12];
  const largest = Math.max(1, ...values);
  const x = (n: number) => width - ((values.length - 1 - n) * width) / (most - 1);
  const y = (value: number) => height - 16 - ((height - 16 - top) * value) / largest;
  const points = values.map((value, n) => `${x(n).toFixed(1)},${y(value).toFixed(1)}`);
  const now = number(values.at(-1) ?? 0);
  const words = `${now} commands a second now, ${number(Math.max(0, ...values))} at most in the last minute`;
  return picture(
    ...([width, height, words] as const),
    element("path", { class: "axis", d: `M0 ${height - 16}H${width}` }),
    element("polyline", { class: "curve", points: points.join(" ") }),
    text(0, 11, `${number(Math.max(0, ...values))}/s at most`, "quiet", "start"),
    text(0, height - 2, "a minute ago", "quiet", "start"),
    text(width, height - 2, "now", "quiet", "end"),
  );
}

export function drawBars(latency: Latency | undefined, bounds: readonly number[]): SVGElement {
  const [width, height] = [420, 130];
  if (latency === undefined) {
    return picture(
      width,
      30,
      "No command came since somebody looks.",
      text(0, 18, "no command came since somebody looks", "quiet", "start"),
    );
  }
  const { cumulative, summary } = latency;
  const counts = [...cumulative, summary.count].map((value, n) => value - (cumulative[n - 1] ?? 0));
  const largest = Math.max(1, ...counts);
  const step = width / counts.length;
  const bars = counts.map((count, n) => {
    const tall = count === 0 ? 0 : Math.max(1, ((height - 30) * count) / largest);
    const below = n < bounds.length ? `up to ${time(bounds[n])}` : `more than ${time(bounds[n - 1])}`;
    const attributes = { class: "bar", x: n * step + 1, y: height - 18 - tall, width: step - 2, height: tall };
    return element("rect", attributes, element("title", {}, `${count} ${below}`));
  });
  const ticks = bounds.flatMap((bound, n) =>
    n % 6 === 0 ? [text((n + 1) * step, height - 3, time(bound), "quiet")] : [],
  );
  const half = `half of ${number(summary.count)} took up to ${time(summary.p50)}`;
  const words = `${latency.command}: ${half}, 99 % up to ${time(summary.p99)}`;
  return picture(
    width,
    height,
    words,
    element("path", { class: "axis", d: `M0 ${height - 18}H${width}` }),
    ...bars,
    ...ticks,
  );
}
