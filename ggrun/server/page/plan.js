// The plan as a picture: each device's memory, which layer is where, and the table behind it. From GET /plan, what `ggrun plan --json` prints.

import { bytes, count, h } from "./dom.js";

// purpose of a line of the ledger -> what it is called; others are shown under their own names
const PURPOSES = { weights: "weights", kv: "KV cache", cache: "kept prompts", scratch: "scratch", staging: "staging", stream: "streamed weights", driver: "driver", process: "process" };

export function planView(plan) {
  const order = plan.devices.map((device) => device.device);
  return [
    h("section", {}, h("h3", {}, "The plan: memory"), plan.devices.map((device) => deviceView(device, plan.ledger))),
    h("section", {}, h("h3", {}, "The plan: what runs where"), layersView(plan.units, order), sentence(plan)),
    h("section", {}, h("details.units", {}, h("summary", {}, "Units, kernels and bytes"), unitTable(plan.units))),
    plan.notes?.length ? h("section", {}, h("h3", {}, "Notes"), h("ul.notes", {}, plan.notes.map((note) => h("li", {}, note)))) : "",
  ];
}

/** One device: a bar of what takes how much of its memory, and a legend that also tells it in words. */
function deviceView(device, ledger) {
  const lines = ledger.filter((line) => line.device === device.device);
  const parts = [...new Set([...Object.keys(PURPOSES), ...lines.map((line) => line.purpose)])].map((purpose) => {
    const n = lines.filter((line) => line.purpose === purpose).reduce((sum, line) => sum + line.n_bytes, 0);
    return { purpose, name: PURPOSES[purpose] ?? purpose, n };
  }).filter((part) => part.n > 0);
  const free = device.limit_bytes - device.used_bytes;
  const drawn = parts.map(({ purpose, n }) => {
    const part = h(`span.part.${purpose}`);
    part.style.width = `${(100 * n) / Math.max(device.limit_bytes, device.used_bytes)}%`;
    return part;
  });
  const what = device.what === "memory" ? "" : device.what;
  return h("div.device", {},
    h("div.device-head", {}, h("strong", {}, device.device), h("small", {}, what), h("span", {}, `${bytes(device.used_bytes)} of ${bytes(device.limit_bytes)}`)),
    h("div.bar.tall", { "aria-hidden": "true" }, drawn),
    h("div.legend", {}, [...parts, ...(free > 0 ? [{ purpose: "free", name: "free", n: free }] : [])].map(({ purpose, name, n }) =>
      h("span", {}, h(`i.swatch.${purpose}`, { "aria-hidden": "true" }), `${name} ${bytes(n)}`))));
}

/** "layer.0-2,5.attn" -> [{layer: 0, part: "attn"}, ...]; "head" -> [{name: "head"}] */
function places(unit) {
  const match = /^layer\.([\d,-]+)\.(.+)$/.exec(unit);
  if (!match) return [{ name: unit }];
  return match[1].split(",").flatMap((run) => {
    const [first, last = first] = run.split("-").map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => ({ layer: first + i, part: match[2] }));
  });
}

/** A cell for each layer, in the colours of the devices its parts run on; the same in words below. */
function layersView(units, order) {
  const layers = [], others = [];
  for (const row of units) {
    for (const place of places(row.unit)) {
      if (place.name) others.push({ name: place.name, device: row.device });
      else (layers[place.layer] ??= []).push({ part: place.part, device: row.device });
    }
  }
  const number = (device) => Math.max(0, order.indexOf(device)) % 6;
  const cell = (label, parts) => h("span.cell", { title: `${label}: ${parts.map(({ part, device }) => (part ? `${part} on ${device}` : `on ${device}`)).join(", ")}` },
    parts.map(({ device }) => h(`i.device-${number(device)}`)));
  const strip = h("div.layers", { "aria-hidden": "true" },
    others.filter(({ name }) => name !== "head").map((one) => cell(one.name, [one])),
    layers.map((parts, i) => cell(`layer ${i}`, parts)),
    others.filter(({ name }) => name === "head").map((one) => cell(one.name, [one])));
  const told = order.filter((device) => units.some((row) => row.device === device)).map((device) => {
    const names = units.filter((row) => row.device === device).map((row) => row.unit.replace(/^layer\.([\d,-]+)\.(.+)$/, "$2 of layers $1"));
    return h("li", {}, h(`i.swatch.device-${number(device)}`, { "aria-hidden": "true" }), h("span", {}, h("strong", {}, device), `: ${names.join(", ")}`));
  });
  return [strip, h("ul.told", {}, told)];
}

function sentence(plan) {
  const parts = [`${plan.n_parallel} ${plan.n_parallel === 1 ? "slot" : "slots"} of up to ${count(plan.n_ctx)} tokens, ${count(plan.kv_tokens)} together; prompts in steps of ${plan.n_ubatch}; ${plan.n_threads} threads.`];
  const offload = Object.keys(plan.op_offload?.units ?? {});
  if (offload.length) parts.push(`For prompts of ${plan.op_offload.from_tokens} tokens or more, ${offload.length} units are streamed to a GPU.`);
  if (plan.prediction) parts.push(`Predicted: ${rate(plan.prediction.prompt)} tokens a second of a prompt, ${rate(plan.prediction.answer)} of an answer.`);
  return h("p.quiet", {}, parts.join(" "));
}

const rate = (n) => (n >= 10 ? Math.round(n).toLocaleString("en") : n.toFixed(1));

function unitTable(units) {
  return h("div.table", { role: "region", tabIndex: 0, "aria-label": "Units" }, h("table", {},
    h("thead", {}, h("tr", {}, ["unit", "device", "kernels", "weights", "KV"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, units.map((row) => h("tr", {}, h("td", {}, row.unit), h("td", {}, row.device), h("td", {}, row.kernels.join(", ")),
      h("td.number", {}, bytes(row.weight_bytes)), h("td.number", {}, row.kv_bytes ? bytes(row.kv_bytes) : ""))))));
}
