// Markdown to elements. Everything passes the sanitizer; HTML that a model writes is shown, not carried out.
//
// A growing text is drawn block by block: blocks that later text cannot change are drawn once and left alone, only the last one is drawn
// again, and an open code block just gets its new lines. So a long answer costs time in proportion to its length.

import { highlighted, highlightedNow } from "./code.js";
import { h, icon } from "./dom.js";
import { Marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";

const HARMLESS = /^<\/?(?:br|sub|sup|kbd|b|i|em|strong|u|s|mark)\s*\/?>$/i;
const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text, block }) => (HARMLESS.test(text.trim()) ? text : block ? `<p class="raw">${escape(text.trimEnd())}</p>\n` : escape(text)),
    // an image would be fetched from wherever the model says: a link leaves that to the person
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || "image")}</a>`,
  },
});

const ALLOWED = {
  ALLOWED_TAGS: ("p h1 h2 h3 h4 h5 h6 ul ol li pre code blockquote table thead tbody tr th td a em strong del br hr sub sup kbd " +
    "b i u s mark input").split(" "),
  ALLOWED_ATTR: ["href", "title", "class", "start", "align", "type", "checked", "disabled"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["title", "class", "start", "align", "type", "checked", "disabled"], // no addresses: the line above is not for them
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** Tokens of top-level blocks -> a fragment of finished elements. */
function draw(tokens) {
  const fragment = document.importNode(DOMPurify.sanitize(marked.parser(tokens), ALLOWED), true);
  for (const parent of [fragment, ...fragment.querySelectorAll("ul, ol, tbody")]) {
    for (const node of [...parent.childNodes]) if (node.nodeType === Node.TEXT_NODE && !node.data.trim()) node.remove();
  }
  for (const link of fragment.querySelectorAll("a[href]")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const input of fragment.querySelectorAll("input")) {
    if (input.type === "checkbox") Object.assign(input, { disabled: true, ariaLabel: input.checked ? "done" : "to do" });
    else input.remove();
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div.table", { role: "region", tabIndex: 0, "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of fragment.querySelectorAll("pre > code")) {
    code.parentElement.replaceWith(codeBlock(/language-(\S+)/.exec(code.className)?.[1] ?? "", code.textContent.replace(/\n$/, "")));
  }
  return fragment;
}

/** A code block: its language, a copy button (whoever shows it listens for clicks), and the code, coloured if that is possible at once. */
function codeBlock(language, text) {
  return h("figure.code", {},
    h("figcaption", {}, h("span.language", {}, language || "text"),
      h("button.copy", { type: "button", "aria-label": "Copy the code" }, icon("copy"), h("span", {}, "Copy"))),
    h("pre", { tabIndex: 0, role: "region", "aria-label": language ? `Code in ${language}` : "Code" },
      h("code", {}, highlightedNow(text, language) ?? text)));
}

/** Colour the code blocks that could not be coloured at once, because their language had not been fetched. */
async function colour(element) {
  for (const figure of element.querySelectorAll("figure.code")) {
    const code = figure.querySelector("code"), text = code.textContent;
    if (code.childElementCount) continue;
    const fragment = await highlighted(text, figure.querySelector(".language").textContent);
    if (fragment && code.textContent === text) code.replaceChildren(fragment);
  }
}

/** Make the children of `old`, from the given one on, look like those of `next` with few changes: what is selected or scrolled stays so. */
function morph(old, next, from = 0) {
  const before = [...old.childNodes].slice(from), after = [...next.childNodes];
  after.forEach((node, i) => {
    const there = before[i];
    if (!there) old.append(node);
    else if (there.nodeName !== node.nodeName || classOf(there) !== classOf(node)) there.replaceWith(node);
    else if (node.nodeType === Node.TEXT_NODE) {
      if (there.data !== node.data) there.data = node.data;
    } else {
      for (const { name } of [...there.attributes]) if (!node.hasAttribute(name)) there.removeAttribute(name);
      for (const { name, value } of node.attributes) if (there.getAttribute(name) !== value) there.setAttribute(name, value);
      morph(there, node);
    }
  });
  for (const node of before.slice(after.length)) node.remove();
}

/** The rows of a block that has many: a list's items, a table's rows. {name of the field, what all of them depend on, their texts}; else null. */
function rowsOf(tokens) {
  const [token, ...others] = tokens;
  if (others.some((other) => other.type !== "space")) return null;
  if (token?.type === "list") return { name: "items", key: `${token.ordered} ${token.start} ${token.loose}`, texts: token.items.map((item) => item.raw) };
  if (token?.type !== "table") return null;
  const key = JSON.stringify([token.align, token.header.map((cell) => cell.text)]);
  return { name: "rows", key, texts: token.rows.map((row) => row.map((cell) => cell.text).join("|")) };
}

const classOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("class") : null);
const OPENING = /^(`{3,}|~{3,})([^\n]*)\n/;

/** A text that grows, drawn into an element. */
export class MarkdownStream {
  #element;
  #text = "";
  #rest = ""; // the text behind the blocks that are drawn for good
  #raws = []; // the texts of those blocks
  #n = 0; // and how many elements they are
  #rows = null; // of the last block, if it is a list or a table: rowsOf what is drawn of it
  #open = null; // the code block at the end, while it is not closed: an OpenCode

  constructor(element) {
    this.#element = element;
    element.classList.add("markdown");
    element.replaceChildren();
  }

  get text() {
    return this.#text;
  }

  /** More text; `draw` shows it. */
  push(piece) {
    const clean = piece.replaceAll("\r", "");
    this.#text += clean;
    this.#rest += clean;
  }

  draw() {
    if (this.#open?.grow(this.#rest)) return;
    this.#open = null;
    const tokens = marked.lexer(this.#rest);
    if (this.#growRows(tokens)) return;
    // a block is drawn for good once a whole line behind it shows that it has ended; half a line may still become anything
    const whole = this.#rest.lastIndexOf("\n") + 1;
    let end = 0, sure = 0, length = 0;
    for (const [i, token] of tokens.entries()) {
      end += token.raw.length;
      if (end < whole && this.#rest.slice(end, whole).trim()) [sure, length] = [i + 1, end];
      else break;
    }
    const done = draw(tokens.slice(0, sure)), n = done.childNodes.length;
    const last = tokens.at(-1);
    done.append(draw(tokens.slice(sure)));
    this.#rows = rowsOf(tokens.slice(sure));
    morph(this.#element, done, this.#n);
    this.#n += n;
    this.#raws.push(...tokens.slice(0, sure).map((token) => token.raw));
    this.#rest = this.#rest.slice(length);
    if (last?.type === "code" && OpenCode.is(last.raw) && this.#rest.endsWith(last.raw)) {
      this.#open = new OpenCode(last.raw, this.#rest.length - last.raw.length, [...this.#element.querySelectorAll("figure.code")].at(-1));
    }
  }

  /** Draw only the rows that are new or not as they were, where the tokens are the list or the table that was drawn last. */
  #growRows(tokens) {
    const before = this.#rows, now = before && rowsOf(tokens);
    if (!now || now.name !== before.name || now.key !== before.key) return false;
    const most = Math.min(before.texts.length, now.texts.length) - 1; // the last row may still grow
    let same = 0;
    while (same < most && before.texts[same] === now.texts[same]) same += 1;
    if (!same) return false;
    const [token] = tokens, bodyOf = (block) => (now.name === "rows" ? block.querySelector("tbody") : block);
    const drawn = draw([{ ...token, [now.name]: token[now.name].slice(same) }]);
    morph(bodyOf(this.#element.childNodes[this.#n]), bodyOf(drawn.firstChild), same);
    this.#rows = now;
    return true;
  }

  /** The text is complete. What was drawn in pieces is compared with the whole (a later line may define an earlier link), and mended. */
  finish() {
    this.#open = null;
    this.draw();
    this.#open = null;
    const tokens = marked.lexer(this.#text);
    const same = this.#raws.every((raw, i) => tokens[i]?.raw === raw);
    if (!same || tokens.some((token) => token.type === "def")) morph(this.#element, draw(tokens));
    colour(this.#element);
  }
}

/** A fenced code block that has not ended: new lines are added as text, and coloured now and then. */
class OpenCode {
  static is(raw) {
    const fence = OPENING.exec(raw);
    return fence !== null && !raw.split("\n").slice(1).some((line) => OpenCode.#closing(fence[1]).test(line));
  }

  static #closing(fence) {
    return new RegExp(`^ {0,3}${fence}[~\`]* *$`);
  }

  constructor(raw, start, figure) {
    const fence = OPENING.exec(raw);
    this.closing = OpenCode.#closing(fence[1]);
    this.language = fence[2].trim().split(/\s/)[0];
    this.start = this.line = start + fence[0].length; // where the code begins in the text; where its first unread line does
    this.code = figure.querySelector("code");
    this.shown = null; // how far the text is shown; unknown until the first time
    this.again = 0;
  }

  /** Show more of the text; false when the block has ended. */
  grow(text) {
    for (let end; (end = text.indexOf("\n", this.line)) >= 0; this.line = end + 1) {
      if (this.closing.test(text.slice(this.line, end))) return false;
    }
    const half = text.slice(this.line);
    let end = /^ {0,3}[`~]/.test(half) ? this.line : text.length; // may become the end of the block
    if (text[end - 1] === "\n" && end > this.start) end -= 1;
    if (this.shown === null) {
      this.plain = document.createTextNode(text.slice(this.start, end));
      this.code.replaceChildren(this.plain);
    } else this.plain.appendData(text.slice(this.shown, end));
    this.shown = Math.max(end, this.shown ?? 0);
    this.#colour(text.slice(this.start, this.shown));
    return true;
  }

  /** At most a tenth of the time goes into colours, and nothing that is selected is replaced. */
  #colour(code) {
    const now = performance.now(), selection = getSelection();
    if (now < this.again || code.length > 50_000 || (!selection.isCollapsed && this.code.contains(selection.anchorNode))) return;
    const fragment = highlightedNow(code, this.language);
    if (fragment) {
      this.plain = document.createTextNode("");
      this.code.replaceChildren(fragment, this.plain);
    }
    const cost = performance.now() - now;
    this.again = now + Math.max(120, 10 * cost);
  }
}

/** A whole text at once. */
export function renderMarkdown(element, text) {
  const stream = new MarkdownStream(element);
  stream.push(text);
  stream.finish();
}
