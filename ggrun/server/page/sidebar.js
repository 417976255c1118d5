// The list of kept conversations: search, open, rename, export, delete.

import { $, h, icon } from "./dom.js";
import { matches, titleOf } from "./tree.js";

const DAY = 86_400_000;

/** What a conversation's time is called: groups of the list. */
function group(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  if (time >= today - 7 * DAY) return "The last seven days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}

/** Draw the list. current, running: ids. actions: {open, rename, exportOne, remove}, each with the conversation. */
export function showList(conversations, current, running, actions) {
  const search = $("search").value.trim();
  const found = conversations.filter((one) => !search || matches(one, search)).sort((a, b) => b.updated - a.updated);
  const parts = [];
  let last = null, items = null;
  for (const conversation of found) {
    const name = group(conversation.updated);
    if (name !== last) {
      items = h("ul", {});
      parts.push(h("h2", {}, name), items);
      last = name;
    }
    items.append(item(conversation, conversation.id === current, running.has(conversation.id), actions));
  }
  if (!found.length) parts.push(h("p.quiet", {}, search ? "Nothing is found." : "Conversations are kept in this browser, and nowhere else."));
  const focused = document.activeElement?.closest?.("#list [data-id]")?.dataset.id;
  $("list").replaceChildren(...parts);
  if (focused) $("list").querySelector(`[data-id="${focused}"] .item-open`)?.focus();
}

function item(conversation, current, running, actions) {
  const title = titleOf(conversation);
  const open = h("button.item-open", { type: "button", title, "aria-current": current ? "page" : null, onclick: () => actions.open(conversation) }, title,
    running ? h("span.pulse", { role: "img", "aria-label": "an answer is coming" }) : null);
  const more = h("button.icon-button.item-more", { type: "button", "aria-label": `What to do with ${title}`, "aria-haspopup": "menu", "aria-expanded": "false" }, icon("more"));
  more.addEventListener("click", (event) => {
    event.stopPropagation();
    showMenu(more, [["Rename", () => actions.rename(conversation)], ["Export", () => actions.exportOne(conversation)], ["Delete", () => actions.remove(conversation), "danger"]]);
  });
  const element = h(`li.item${current ? ".current" : ""}`, {}, open, more);
  element.dataset.id = conversation.id;
  return element;
}

/** A menu under a button; arrow keys move, Escape closes. */
function showMenu(button, entries) {
  document.querySelector(".menu")?.remove();
  const close = (focus = true) => {
    menu.remove();
    button.setAttribute("aria-expanded", "false");
    removeEventListener("pointerdown", outside, true);
    if (focus) button.focus();
  };
  const outside = (event) => !menu.contains(event.target) && close(false);
  const items = entries.map(([label, run, kind]) => h(`button.menu-item${kind ? `.${kind}` : ""}`, { type: "button", role: "menuitem", tabIndex: -1,
    onclick: () => { close(); run(); } }, label));
  const menu = h("div.menu", { role: "menu" }, items);
  menu.addEventListener("keydown", (event) => {
    const at = items.indexOf(document.activeElement), step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) items[(at + step + items.length) % items.length].focus();
    else if (event.key === "Escape" || event.key === "Tab") close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.body.append(menu);
  const box = button.getBoundingClientRect(), own = menu.getBoundingClientRect();
  menu.style.left = `${Math.max(8, Math.min(box.right - own.width, innerWidth - own.width - 8))}px`;
  menu.style.top = `${box.bottom + own.height + 8 > innerHeight ? box.top - own.height - 4 : box.bottom + 4}px`;
  button.setAttribute("aria-expanded", "true");
  addEventListener("pointerdown", outside, true);
  items[0].focus();
}

const narrow = matchMedia("(max-width: 52rem)");

/** Show or hide the sidebar: on a narrow screen it lies over the page, and what is under it cannot be reached. */
export function toggleSidebar(shown, focus = true) {
  const app = $("app");
  app.classList.toggle("sidebar-shown", shown);
  app.classList.toggle("sidebar-hidden", !shown);
  $("sidebar").inert = !shown;
  $("main").inert = shown && narrow.matches;
  $("sidebar-open").setAttribute("aria-expanded", String(shown));
  if (focus) (shown ? $("new") : $("sidebar-open")).focus();
}

export const sidebarShown = () => !$("sidebar").inert;
export const isNarrow = () => narrow.matches;

export function watchWidth() {
  narrow.addEventListener("change", () => toggleSidebar(!narrow.matches, false));
}
