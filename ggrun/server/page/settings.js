// The settings of a conversation: the table of fields, the form, and what they become in a request.

import { h } from "./dom.js";

const NUMBER = "number", TEXT = "text", CHOICE = "choice";

// field of the request -> how it is asked for. shown: the server's default under /props' name; least, most, step as in the form
const FIELDS = [
  { name: "system", kind: TEXT, label: "System prompt", hint: "Said to the model before everything else.", rows: 4, sent: false },
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token.", shown: "temperature", least: 0, most: 5, step: "any" },
  { name: "top_p", label: "Top p", hint: "Only the likeliest tokens that add up to this probability.", shown: "top_p", least: 0, most: 1, step: "any" },
  { name: "top_k", label: "Top k", hint: "Only so many of the likeliest; 0 for all.", shown: "top_k", least: 0, step: 1 },
  { name: "min_p", label: "Min p", hint: "Only tokens at least this likely, measured by the likeliest.", shown: "min_p", least: 0, most: 1, step: "any" },
  { name: "repeat_penalty", label: "Repeat penalty", hint: "1 for none.", shown: "repeat_penalty", least: 0.1, most: 5, step: "any" },
  { name: "presence_penalty", label: "Presence penalty", shown: "presence_penalty", least: -2, most: 2, step: "any" },
  { name: "frequency_penalty", label: "Frequency penalty", shown: "frequency_penalty", least: -2, most: 2, step: "any" },
  { name: "max_tokens", label: "Longest answer", hint: "In tokens.", unset: "no limit", least: 1, step: 1 },
  { name: "seed", label: "Seed", hint: "The same seed gives the same answer.", unset: "random", least: 0, most: 4294967295, step: 1 },
  { name: "thinking", kind: CHOICE, label: "Thinking", needs: "enable_thinking", sent: false, choices: [["", "default"], ["on", "on"], ["off", "off"]] },
  { name: "reasoning_effort", kind: CHOICE, label: "Reasoning effort", needs: "reasoning_effort",
    choices: [["", "default"], ["low", "low"], ["medium", "medium"], ["high", "high"]] },
];

/** Settings as fields of a chat completion request. */
export function requestFields(settings) {
  const fields = {};
  for (const { name, sent = true } of FIELDS) if (sent && settings[name] !== undefined && settings[name] !== "") fields[name] = settings[name];
  if (settings.thinking) fields.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  return fields;
}

/** Only fields that exist, with values of the right type: what an imported file or an older page may hold otherwise. */
export function cleanSettings(settings) {
  const clean = {};
  for (const { name, kind = NUMBER } of FIELDS) {
    const value = settings?.[name];
    if (kind === NUMBER ? Number.isFinite(value) : typeof value === "string" && value) clean[name] = value;
  }
  return clean;
}

/** The form. props: the server's /props (null: unknown). changed(settings) after every change that is valid; actions: {close, keep, reset}. */
export function settingsForm(settings, props, changed, actions) {
  const values = { ...settings };
  const defaults = props?.default_generation_settings?.params ?? {};
  const template = props?.chat_template ?? "";
  const field = (spec) => {
    const id = `setting-${spec.name}`, useless = spec.needs && props && !template.includes(spec.needs);
    const input = control(spec, id, values[spec.name], defaults);
    const hint = useless ? "This model's template has no such switch." : spec.hint;
    const note = hint ? h("small", { id: `${id}-hint` }, hint) : null;
    if (note) input.setAttribute("aria-describedby", note.id);
    input.disabled = Boolean(useless);
    input.addEventListener("input", () => {
      if (!input.checkValidity()) {
        note?.classList.add("wrong");
        if (note) note.textContent = input.validationMessage;
        return;
      }
      note?.classList.remove("wrong");
      if (note) note.textContent = hint;
      values[spec.name] = (spec.kind ?? NUMBER) === NUMBER ? (input.value === "" ? undefined : Number(input.value)) : input.value;
      changed(cleanSettings(values));
    });
    return h(`div.field.${spec.kind ?? NUMBER}`, {}, h("label", { htmlFor: id }, spec.label), input, note);
  };
  return [
    h("div.panel-head", {}, h("h2", {}, "Settings"), actions.closeButton),
    h("p.quiet", {}, "Of this conversation. What is left empty is as the server has it."),
    h("form.settings", { onsubmit: (event) => event.preventDefault() }, FIELDS.map(field)),
    h("div.panel-foot", {}, h("button.button.small", { type: "button", onclick: actions.keep }, "Use for new conversations"),
      h("button.button.small", { type: "button", onclick: actions.reset }, "Clear all")),
  ];
}

function control(spec, id, value, defaults) {
  if (spec.kind === TEXT) return h("textarea", { id, rows: spec.rows, value: value ?? "", spellcheck: true });
  if (spec.kind === CHOICE) {
    return h("select", { id }, spec.choices.map(([key, label]) => h("option", { value: key, selected: key === (value ?? "") }, label)));
  }
  const input = h("input", { id, type: "number", inputMode: "decimal", step: spec.step, value: value ?? "", placeholder: placeholder(spec, defaults) });
  if (spec.least !== undefined) input.min = spec.least;
  if (spec.most !== undefined) input.max = spec.most;
  return input;
}

function placeholder(spec, defaults) {
  const value = defaults[spec.shown];
  return spec.unset ?? (typeof value === "number" ? String(Number(value.toFixed(4))) : "");
}
