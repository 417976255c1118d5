// The box where messages are written, its one button (send, or stop), and the line below it.

import { $, count, h, icon } from "./dom.js";

const input = $("input"), button = $("send");
const touch = matchMedia("(hover: none) and (pointer: coarse)"); // there Enter makes a new line, as everywhere on a phone

let busy = false;

/** handlers: {send(text), stop(), editLast()} */
export function setUpComposer(handlers) {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (busy) return handlers.stop();
    const text = input.value.trim();
    if (text && handlers.send(text) !== false) setDraft("");
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch.matches && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      if (!busy) $("composer").requestSubmit();
    } else if (event.key === "ArrowUp" && input.value === "") {
      if (handlers.editLast()) event.preventDefault();
    }
  });
  input.addEventListener("input", fit);
  $("hint").replaceChildren(...(touch.matches ? [] : [h("kbd", {}, "Enter"), " sends, ", h("kbd", {}, "Shift"), " ", h("kbd", {}, "Enter"), " makes a new line"]));
  setBusy(false);
}

function fit() {
  if (!CSS.supports("field-sizing", "content")) {
    input.style.height = "auto";
    input.style.height = `${input.scrollHeight}px`;
  }
  $("composer").classList.toggle("written", input.value.trim() !== "");
  if (!busy) button.disabled = input.value.trim() === "";
}

export function setBusy(now) {
  busy = now;
  button.replaceChildren(icon(busy ? "stop" : "send"));
  button.classList.toggle("stop", busy);
  const label = busy ? "Stop the answer" : "Send";
  button.setAttribute("aria-label", label);
  button.title = busy ? `${label} (Esc)` : label;
  button.disabled = !busy && input.value.trim() === "";
}

export const draft = () => input.value;

export function setDraft(text) {
  input.value = text;
  fit();
}

/** Not on a phone: there the keyboard would cover half of the page. */
export function focusComposer() {
  if (!touch.matches) input.focus({ preventScroll: true });
}

/** How full the context is after the last answer. */
export function showContext(used, all) {
  const element = $("context");
  if (!used || !all) return element.replaceChildren();
  const fill = h("span.part.used");
  fill.style.width = `${Math.min(100, (100 * used) / all)}%`;
  element.classList.toggle("full", used > 0.9 * all);
  element.title = "tokens of this conversation, and how many the model's context holds";
  element.replaceChildren(h("span.bar", { "aria-hidden": "true" }, fill), h("span", {}, `context ${count(used)} of ${count(all)}`));
}
