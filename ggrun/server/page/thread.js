// The messages of the shown conversation, and where it is scrolled to.

import { $, copyText, h, icon, say } from "./dom.js";
import { MessageView } from "./message.js";
import { pathOf, siblingsOf } from "./tree.js";

const scroller = $("scroller"), thread = $("thread"), down = $("down");
const views = new Map(); // id of a message -> its view
let following = true; // the newest line stays in view

/** Show a conversation's branch; views of messages that stay are kept. empty: what stands there when there is none. */
export function showThread(conversation, actions, empty) {
  const path = pathOf(conversation);
  const wanted = new Set(path.map((node) => node.id));
  for (const [id, view] of views) {
    if (wanted.has(id) && view.conversation === conversation.id) continue;
    view.element.remove();
    views.delete(id);
  }
  thread.querySelector(".empty")?.remove();
  if (!path.length) thread.append(empty);
  for (const [i, node] of path.entries()) {
    let view = views.get(node.id);
    if (!view) {
      view = new MessageView(node, actions);
      view.conversation = conversation.id;
      view.onDraw = follow;
      views.set(node.id, view);
    }
    view.setAlternatives(siblingsOf(conversation, node));
    if (thread.children[i] !== view.element) thread.insertBefore(view.element, thread.children[i] ?? null); // what stays where it is keeps the focus
  }
}

export const viewOf = (node) => views.get(node.id);

/** Draw a message again, after it has changed without its view. */
export function forgetView(node) {
  views.get(node.id)?.element.remove();
  views.delete(node.id);
}

export function follow() {
  if (following) scroller.scrollTop = scroller.scrollHeight;
  place();
}

export function toNewest() {
  following = true;
  follow();
}

function place() {
  const distance = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  down.hidden = distance < 160;
  return distance;
}

let lastTop = 0;
scroller.addEventListener("scroll", () => {
  const distance = place();
  if (distance < 24) following = true;
  else if (scroller.scrollTop < lastTop - 2) following = false; // upwards: a person reads
  lastTop = scroller.scrollTop;
}, { passive: true });
scroller.addEventListener("wheel", (event) => {
  if (event.deltaY < 0 && scroller.scrollHeight > scroller.clientHeight) following = false;
}, { passive: true });
down.addEventListener("click", () => {
  following = true;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  scroller.scrollTo({ top: scroller.scrollHeight, behavior: calm ? "instant" : "smooth" });
});
new ResizeObserver(follow).observe(thread);

thread.addEventListener("click", async (event) => {
  const button = event.target.closest("figure.code .copy");
  if (!button) return;
  const done = await copyText(button.closest("figure").querySelector("code").textContent);
  const label = done ? "Copied" : "Not allowed";
  button.replaceChildren(icon(done ? "check" : "close"), h("span", {}, label));
  say(label);
  setTimeout(() => button.replaceChildren(icon("copy"), h("span", {}, "Copy")), 1500);
});
