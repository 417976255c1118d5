// One message as it is seen: the person's words, or an answer with its reasoning, tool calls, figures and what can be done with it.

import { copyText, count, h, icon, iconButton, say, speed } from "./dom.js";
import { MarkdownStream, renderMarkdown } from "./markdown.js";

const ENDS = { length: "stopped at the limit of tokens or of the context", stopped: "stopped", interrupted: "interrupted" };

/** A message's view. actions: {edit(node, text), again(node), branch(node), retry(node)}; alternatives: [node, ...] itself among them. */
export class MessageView {
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.body = h("div.body");
    this.extra = h("div.extra");
    this.foot = h("footer.message-foot");
    this.element = h(`article.message.${node.role}`, { "aria-label": node.role === "user" ? "You" : "Answer" }, this.body, this.extra, this.foot);
    this.element.dataset.id = node.id;
    this.stream = null;
    this.footKey = "";
    if (node.role === "user") this.body.textContent = node.content;
    else this.#drawAnswer();
  }

  // ---- an answer that arrives

  /** From here on pieces come: `thought`, `text`, `call`, and at last `finish`. */
  begin() {
    this.element.classList.add("running");
    this.waiting = h("div.waiting", {}, h("span.dots", { "aria-hidden": "true" }, h("i"), h("i"), h("i")), this.waitingText = h("span", {}));
    this.body.replaceChildren();
    this.extra.replaceChildren(this.waiting);
    this.element.querySelector(".thought")?.remove();
    this.stream = { text: null, thought: null, frame: 0, timer: 0, next: 0, n: 0, first: 0 };
    this.footKey = "";
    this.foot.replaceChildren();
  }

  /** What is being waited for, e.g. "reading the prompt, 40%". */
  wait(text) {
    if (this.stream) this.waitingText.textContent = text;
  }

  text(piece) {
    if (!this.stream) return;
    this.stream.text ??= new MarkdownStream(this.body);
    this.stream.text.push(piece);
    this.#count();
    this.#schedule();
  }

  thought(piece) {
    if (!this.stream) return;
    this.stream.thought ??= new MarkdownStream(this.#thoughts("Thinking…"));
    this.stream.thought.push(piece);
    this.#count();
    this.#schedule();
  }

  #count() {
    this.stream.n += 1; // the server sends a piece for each token, nearly
    this.stream.first ||= performance.now();
  }

  call() {
    if (!this.stream) return;
    this.#drawCalls();
    this.#schedule();
  }

  finish() {
    if (!this.stream) return;
    cancelAnimationFrame(this.stream.frame);
    clearTimeout(this.stream.timer);
    for (const part of [this.stream.text, this.stream.thought]) part?.finish();
    this.stream = null;
    this.element.classList.remove("running");
    this.#drawAnswer(true);
  }

  /** Draw on the next frame; when drawing is slow, less often, so that the page never lags behind the model. */
  #schedule() {
    const stream = this.stream;
    if (stream.frame || stream.timer) return;
    const draw = () => {
      const start = performance.now();
      stream.frame = stream.timer = 0;
      this.waiting.hidden = stream.text !== null;
      for (const part of [stream.text, stream.thought]) part?.draw();
      const seconds = (start - stream.first) / 1000;
      if (seconds > 0.5) this.foot.replaceChildren(figures({ timings: { predicted_n: stream.n, predicted_per_second: stream.n / seconds, prompt_n: 0 } }));
      stream.next = performance.now() + 4 * (performance.now() - start);
      this.onDraw?.();
    };
    const pause = stream.next - performance.now();
    if (pause > 20) stream.timer = setTimeout(draw, pause);
    else stream.frame = requestAnimationFrame(draw);
    if (document.hidden && !stream.timer) {
      cancelAnimationFrame(stream.frame); // frames do not come in a tab that is not seen
      stream.frame = 0;
      stream.timer = setTimeout(draw, 500);
    }
  }

  // ---- an answer that is there

  #drawAnswer(streamed = false) {
    const { node } = this;
    if (!streamed) {
      renderMarkdown(this.body, node.content);
      if (node.thought) renderMarkdown(this.#thoughts(""), node.thought);
    }
    const words = node.thought?.trim().split(/\s+/).length;
    this.element.querySelector(".thought summary span")?.replaceChildren(`Reasoning, ${count(words)} ${words === 1 ? "word" : "words"}`);
    this.extra.replaceChildren();
    this.#drawCalls();
    if (node.problem) {
      this.extra.append(h("div.problem", { role: "alert" }, h("p", {}, h("strong", {}, node.problem.message), node.problem.todo ? ` ${node.problem.todo}` : ""),
        node.problem.retry === false ? null : h("button.button.small", { type: "button", onclick: () => this.actions.again(node) }, "Try again")));
    } else if (!node.content && !node.toolCalls?.length && node.finish) {
      this.extra.append(h("p.quiet", {}, node.finish === "stop" ? "The model ended its answer without a word." : "No words came."));
    }
  }

  #thoughts(title) {
    const content = h("div.thought-text");
    this.element.querySelector(".thought")?.remove();
    this.element.prepend(h("details.thought", {}, h("summary", {}, icon("right"), h("span", {}, title)), content));
    return content;
  }

  #drawCalls() {
    for (const old of this.element.querySelectorAll(".call")) old.remove();
    for (const call of this.node.toolCalls ?? []) {
      let text = call.arguments;
      try {
        text = JSON.stringify(JSON.parse(text), null, 2);
      } catch { /* not complete yet: as it is */ }
      this.extra.append(h("figure.call", {}, h("figcaption", {}, "The model asks for the tool ", h("code", {}, call.name || "…")), h("pre", { tabIndex: 0 }, text)));
    }
  }

  /** What can be done with the message, its place among its alternatives, and its figures. */
  setAlternatives(alternatives) {
    const { node, actions } = this, user = node.role === "user";
    const key = this.stream ? "" : [node.finish, ...alternatives.map(({ id }) => id)].join();
    if (this.stream || key === this.footKey) return; // buttons that are right already keep the focus
    this.footKey = key;
    const parts = [];
    if (alternatives.length > 1) {
      const at = alternatives.findIndex((other) => other.id === node.id);
      const move = (to, name, label) => {
        const button = iconButton(name, label, () => actions.branch(alternatives[to]));
        button.disabled = !alternatives[to];
        return button;
      };
      parts.push(h("span.branches", { role: "group", "aria-label": "Versions" }, move(at - 1, "left", "The version before"),
        h("span", { "aria-label": `version ${at + 1} of ${alternatives.length}` }, `${at + 1}/${alternatives.length}`), move(at + 1, "right", "The next version")));
    }
    const copy = iconButton("copy", user ? "Copy the message" : "Copy the answer", async () => {
      const done = await copyText(node.content);
      copy.replaceChildren(icon(done ? "check" : "close"));
      say(done ? "Copied" : "The browser does not let this page copy");
      setTimeout(() => copy.replaceChildren(icon("copy")), 1500);
    });
    if (node.content) parts.push(copy);
    if (user) parts.push(iconButton("edit", "Edit the message", () => this.edit(), "edit"));
    else if (!node.problem) parts.push(iconButton("again", "Answer again", () => actions.again(node), "again"));
    this.foot.replaceChildren(h("span.actions", {}, ...parts), ...(user ? [] : [figures(node)]));
  }

  /** Change the message where it stands; sending it makes a new branch. */
  edit() {
    const area = h("textarea", { value: this.node.content, "aria-label": "Edit the message", rows: 3 });
    const close = () => {
      this.element.classList.remove("editing");
      this.body.textContent = this.node.content;
      this.foot.hidden = false;
      this.foot.querySelector(".edit")?.focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (text && this.actions.edit(this.node, text) === false) say("Stop the answer first, or wait for it");
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    this.element.classList.add("editing");
    this.foot.hidden = true;
    this.body.replaceChildren(area, h("div.edit-foot", {}, h("span.hint", {}, "The old version is kept beside the new one."),
      h("button.button.small", { type: "button", onclick: close }, "Cancel"), h("button.button.small.primary", { type: "button", onclick: send }, "Send")));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

/** Tokens and speeds of an answer, as the server measured them. */
function figures(node) {
  const { timings, finish, model } = node, parts = [];
  if (timings) {
    parts.push([`${count(timings.predicted_n)} tokens`, "tokens of the answer"]);
    if (timings.predicted_per_second > 0) parts.push([`${speed(timings.predicted_per_second)} t/s`, "speed of the answer, tokens a second"]);
    const read = timings.prompt_n + (timings.cache_n || 0);
    const cached = timings.cache_n > 0 ? ` (${count(timings.cache_n)} cached)` : "";
    const fast = timings.prompt_n > 0 && timings.prompt_per_second > 0 ? ` at ${speed(timings.prompt_per_second)} t/s` : "";
    if (read) parts.push([`prompt ${count(read)}${cached}${fast}`, "tokens of the prompt, how many were found in the cache, and the speed of the others"]);
  }
  if (ENDS[finish]) parts.push([ENDS[finish], "why the answer ended"]);
  if (node.showModel && model) parts.push([model, "the model that answered"]);
  return h("span.figures", {}, ...parts.map(([text, title]) => h("span", { title }, text)));
}
