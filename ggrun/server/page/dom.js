// Elements, icons and small things of the document. HTML is never made of strings here.

const SVG = "http://www.w3.org/2000/svg";

// name -> paths on a 20 x 20 grid, drawn as strokes
const ICONS = {
  sidebar: ["M3.5 4.5h13v11h-13z", "M8 4.5v11"],
  plus: ["M10 4v12", "M4 10h12"],
  theme: ["M10 3.5a6.5 6.5 0 1 0 0 13z", "M10 3.5a6.5 6.5 0 0 1 0 13"],
  chip: ["M6 6h8v8H6z", "M8 3v3", "M12 3v3", "M8 14v3", "M12 14v3", "M3 8h3", "M3 12h3", "M14 8h3", "M14 12h3"],
  sliders: ["M3 6h7", "M14 6h3", "M3 14h3", "M10 14h7", "M12 4v4", "M8 12v4"],
  send: ["M10 16V4.5", "M5 9.5l5-5 5 5"],
  stop: ["M6 6h8v8H6z"],
  down: ["M10 4v11.5", "M5 10.5l5 5 5-5"],
  copy: ["M7 7h9v9H7z", "M4 13V4h9"],
  check: ["M4.5 10.5l3.5 3.5 7.5-8"],
  again: ["M15.5 10a5.5 5.5 0 1 1-1.8-4.1", "M14 2.8v3.4h-3.4"],
  edit: ["M4 16l.8-3.4L13.4 4l2.6 2.6-8.6 8.6z"],
  left: ["M12 5l-5 5 5 5"],
  right: ["M8 5l5 5-5 5"],
  more: ["M5 10h.01", "M10 10h.01", "M15 10h.01"],
  close: ["M5 5l10 10", "M15 5L5 15"],
  trash: ["M4 6h12", "M8 6V4h4v2", "M5.5 6l.7 10h7.6l.7-10"],
  save: ["M10 3.5v9", "M6 9l4 4 4-4", "M4 16.5h12"],
};

/** An element: h("p.note", {title: "..."}, "text", child, null). on*: listeners; data-*, aria-*, role: attributes; else properties. */
export function h(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key.includes("-") || key === "role" || key === "for") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of [["viewBox", "0 0 20 20"], ["aria-hidden", "true"], ["class", "icon"]]) svg.setAttribute(key, value);
  for (const d of ICONS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

/** A button that shows only an icon; the label is what screen readers and the tooltip say. */
export function iconButton(name, label, onclick, classes = "") {
  const button = h("button.icon-button", { type: "button", title: label, "aria-label": label, onclick }, icon(name));
  if (classes) button.classList.add(...classes.split(" "));
  return button;
}

/** Draw the icons that the document's own elements name by data-icon. */
export function drawIcons() {
  for (const element of document.querySelectorAll("[data-icon]")) {
    element.prepend(icon(element.dataset.icon));
    if (element.ariaLabel && !element.title) element.title = element.ariaLabel;
  }
}

export const $ = (id) => document.getElementById(id);

/** Said by screen readers, shown nowhere. */
export function say(text) {
  $("status").textContent = text;
}

/** Copy text; also where the clipboard needs https and there is none. Returns whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea.visually-hidden", { value: text });
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}

/** A random name that is unique enough; crypto.randomUUID needs https. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** 1234567 -> 1.18 MiB */
export function bytes(n) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (Math.abs(n) >= size) return `${(n / size).toFixed(n / size >= 100 ? 0 : n / size >= 10 ? 1 : 2)} ${unit}`;
  }
  return `${Math.round(n)} B`;
}

/** Tokens a second as people read them. */
export const speed = (n) => (n >= 100 ? Math.round(n).toLocaleString("en") : n.toFixed(1));
export const count = (n) => Number(n).toLocaleString("en");
