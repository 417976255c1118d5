// Questions asked in a dialog: each returns a promise of the answer, null when it was put aside. Built on <dialog>, which keeps the focus.

import { h } from "./dom.js";

let serial = 0;

function ask(title, content, buttons, classes = "") {
  return new Promise((resolve) => {
    const heading = `dialog-${++serial}`;
    const form = h("form", { method: "dialog" }, h("h2", { id: heading }, title), ...content,
      h("div.dialog-foot", {}, buttons.map(([label, value, kind]) => h(`button.button${kind ? `.${kind}` : ""}`, { value, type: "submit", formNoValidate: value === "" }, label))));
    const dialog = h("dialog", { "aria-labelledby": heading }, form);
    if (classes) dialog.className = classes;
    const back = document.activeElement;
    dialog.addEventListener("close", () => {
      const value = dialog.returnValue;
      dialog.remove();
      back?.focus?.();
      resolve(value || null);
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close(""));
    // Enter in a field presses the first submit button of the form: that must be the one that goes on
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.target.tagName !== "INPUT" || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit(form.querySelector(".dialog-foot .primary, .dialog-foot .danger"));
    });
    document.body.append(dialog);
    dialog.showModal();
    (form.querySelector("input, .dialog-foot .primary") ?? form.querySelector("button")).focus();
    form.querySelector("input[type=text]")?.select();
  });
}

const CANCEL = ["Cancel", ""];

export async function confirmed(title, text, label) {
  return (await ask(title, [h("p", {}, text)], [CANCEL, [label, "yes", "danger"]])) === "yes";
}

export async function askText(title, label, value) {
  const input = h("input", { type: "text", value, maxLength: 200, autocomplete: "off" });
  const answer = await ask(title, [h("label.field", {}, h("span", {}, label), input)], [CANCEL, ["Save", "yes", "primary"]]);
  return answer === null ? null : input.value.trim();
}

export async function askKey(wrong) {
  const input = h("input", { type: "password", autocomplete: "current-password", required: true, name: "key" });
  const keep = h("input", { type: "checkbox" });
  const text = wrong ? "The server did not accept this key. Type another one." : "This server was started with --api-key: it answers those who know one of its keys.";
  const answer = await ask("API key", [h("p", {}, text), h("label.field", {}, h("span", {}, "Key"), input),
    h("label.check", {}, keep, h("span", {}, "Remember it in this browser (else: in this tab alone)"))], [CANCEL, ["Go on", "yes", "primary"]]);
  return answer === null || !input.value ? null : { key: input.value.trim(), keep: keep.checked };
}

export async function askChoice(title, text, choices) {
  return ask(title, text ? [h("p", {}, text)] : [], [CANCEL, ...choices]);
}

export function showKeys(rows) {
  const table = h("dl.keys", {}, rows.map(([keys, what]) => h("div", {}, h("dt", {}, keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, what))));
  return ask("Keys", [table], [["Close", "", "primary"]]);
}
