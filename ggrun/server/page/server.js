// The live view of the server: slots, what the KV cache holds, totals, and below them the plan.
// Elements are made once and changed in place, so that focus and screen readers are left in peace.

import { getJson } from "./api.js";
import { count, h, speed } from "./dom.js";
import { planView } from "./plan.js";

const EVERY_MS = 1000;
const STATES = { idle: "idle", prompt: "reading the prompt", answer: "answering" };
const MODEL_STATES = { loaded: "loaded", loading: "loading", unloaded: "loads on first use", sleeping: "sleeping, wakes on the next request", failed: "could not be loaded" };

/** A bar of parts: {name, n, kind}; the last part is what is free. */
export function bar(label, kinds) {
  const parts = kinds.map((kind) => h(`span.part.${kind}`));
  const element = h("div.bar", { role: "img", "aria-label": label }, parts);
  return {
    element,
    set(values, total, text) {
      values.forEach((value, i) => {
        parts[i].style.width = `${total > 0 ? Math.min(100, (100 * value) / total) : 0}%`;
        parts[i].hidden = !(value > 0);
      });
      element.setAttribute("aria-label", text);
    },
  };
}

/** The view of one model; `start` begins to look at the server each second, `stop` ends that. */
export class ServerView {
  constructor(model, closeButton) {
    this.model = model;
    this.slots = new Map();
    this.timer = 0;
    this.state = h("p.quiet", {}, "Asking the server…");
    this.slotList = h("ul.slots", {});
    this.waiting = h("p.quiet", { hidden: true });
    this.kv = bar("KV cache", ["used", "cached"]);
    this.kvText = h("div.legend", {});
    this.totals = h("dl.totals", {});
    this.plan = h("div.plan", {});
    this.live = h("div", { hidden: true }, h("section", {}, h("h3", {}, "Slots"), this.slotList, this.waiting),
      h("section", {}, h("h3", {}, "Memory of conversations, in tokens"), this.kv.element, this.kvText),
      h("section", {}, h("h3", {}, "Since the model was loaded"), this.totals));
    this.elements = [h("div.panel-head", {}, h("h2", {}, "Server"), closeButton), this.state, this.live, this.plan];
  }

  start() {
    const look = async () => {
      if (!document.hidden) await this.#look();
      if (this.timer) this.timer = setTimeout(look, EVERY_MS);
    };
    this.timer = setTimeout(look, 0);
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = 0;
  }

  async #look() {
    let status;
    try {
      status = await getJson("status", { quiet: true });
    } catch (problem) {
      this.state.textContent = `${problem.message} ${problem.todo ?? ""}`;
      this.live.hidden = true;
      return;
    }
    const model = status.models.find((one) => one.name === this.model) ?? status.models[0];
    this.state.replaceChildren(h("strong", {}, model.name), ` · ${MODEL_STATES[model.state] ?? model.state}`, model.error ? `: ${model.error}` : "",
      model.n_ctx ? ` · ${count(model.n_ctx)} tokens of context` : "");
    this.live.hidden = !model.engine;
    if (!model.engine) return this.plan.replaceChildren();
    this.#showSlots(model.engine);
    this.#showCache(model.engine);
    this.#showTotals(model.engine);
    if (this.planned !== model.loaded) {
      this.planned = model.loaded;
      this.#showPlan(model.name);
    }
  }

  #showSlots({ slots, n_waiting: waiting }) {
    if (!slots) this.slotList.replaceChildren(h("li.quiet", {}, "Not shown: the server was started with --no-slots."));
    for (const slot of slots ?? []) {
      let row = this.slots.get(slot.id);
      if (!row) {
        row = { bar: bar("", ["used"]), state: h("span.slot-state"), numbers: h("span.slot-numbers") };
        row.element = h("li.slot", {}, h("div.slot-head", {}, h("span.slot-name", {}, `Slot ${slot.id}`), row.state, row.numbers), row.bar.element);
        this.slots.set(slot.id, row);
        this.slotList.append(row.element);
      }
      const progress = slot.state === "prompt" && slot.n_prompt ? ` ${Math.round((100 * slot.n_prompt_done) / slot.n_prompt)}%` : "";
      row.state.textContent = `${STATES[slot.state] ?? slot.state}${progress}`;
      row.element.dataset.state = slot.state;
      row.numbers.textContent = slot.n_tokens ? `${count(slot.n_tokens)} of ${count(slot.n_ctx)}` : "";
      row.bar.set([slot.n_tokens], slot.n_ctx, `${slot.n_tokens} of ${slot.n_ctx} tokens`);
    }
    this.waiting.hidden = !waiting;
    this.waiting.textContent = waiting === 1 ? "1 request waits for a slot." : `${waiting} requests wait for a slot.`;
  }

  #showCache({ kv_tokens: all, kv_used: used, kv_cached: cached }) {
    const free = Math.max(0, all - used - cached);
    const text = `${count(used)} tokens in use, ${count(cached)} kept for reuse, ${count(free)} free, of ${count(all)}`;
    this.kv.set([used, cached], all, text);
    this.kvText.replaceChildren(...[["used", "in use", used], ["cached", "kept for reuse", cached], ["free", "free", free]].map(([kind, name, n]) =>
      h("span", {}, h(`i.swatch.${kind}`, { "aria-hidden": "true" }), `${name} ${count(n)}`)));
  }

  #showTotals(engine) {
    const rate = (n, seconds) => (seconds > 0 && n > 0 ? ` at ${speed(n / seconds)} t/s` : "");
    const rows = [
      ["Prompts", `${count(engine.prompt_tokens)} tokens${rate(engine.prompt_tokens, engine.prompt_seconds)}`],
      ["From the cache", `${count(engine.cached_tokens)} tokens`],
      ["Answers", `${count(engine.predicted_tokens)} tokens${rate(engine.predicted_tokens, engine.predicted_seconds)}`],
    ];
    if (engine.n_preempted) rows.push(["Put off for lack of room", `${count(engine.n_preempted)} times`]);
    this.totals.replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  async #showPlan(name) {
    try {
      this.plan.replaceChildren(...planView(await getJson(`plan?model=${encodeURIComponent(name)}`, { quiet: true })));
    } catch (problem) {
      this.plan.replaceChildren(h("p.quiet", {}, `${problem.message} ${problem.todo ?? ""}`));
      this.planned = undefined;
    }
  }
}
