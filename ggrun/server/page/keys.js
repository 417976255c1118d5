// Keys that work everywhere on the page.

const MOD = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘" : "Ctrl";

// shown -> what it does; the actions' names are app.js's
const KEYS = [
  { shown: "Enter", what: "send the message" },
  { shown: "Shift Enter", what: "a new line" },
  { shown: "Esc", what: "stop the answer; close what is open" },
  { shown: "↑", what: "in an empty box: edit the last message" },
  { shown: `${MOD} Shift Enter`, what: "answer again", action: "again", test: (e) => mod(e) && e.shiftKey && e.key === "Enter" },
  { shown: `${MOD} Shift O`, what: "a new conversation", action: "create", test: (e) => mod(e) && e.shiftKey && e.key.toLowerCase() === "o" },
  { shown: `${MOD} K`, what: "search the conversations", action: "search", test: (e) => mod(e) && !e.shiftKey && e.key.toLowerCase() === "k" },
  { shown: `${MOD} B`, what: "show or hide the conversations", action: "sidebar", test: (e) => mod(e) && !e.shiftKey && e.key.toLowerCase() === "b" },
  { shown: `${MOD} ,`, what: "settings", action: "settings", test: (e) => mod(e) && e.key === "," },
  { shown: `${MOD} .`, what: "the server's slots, memory and plan", action: "server", test: (e) => mod(e) && e.key === "." },
  { shown: "/", what: "to the message box", action: "focus", test: (e) => plain(e) && e.key === "/" },
  { shown: "?", what: "this list", action: "keys", test: (e) => plain(e) && e.key === "?" },
];

const mod = (event) => (event.ctrlKey || event.metaKey) && !event.altKey;
const plain = (event) => !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest?.("input, textarea, select, [contenteditable]");

export const keyRows = KEYS.map(({ shown, what }) => [shown, what]);

/** actions: by the names above, and escape(). Nothing happens while a dialog is open. */
export function setUpKeys(actions) {
  addEventListener("keydown", (event) => {
    if (event.isComposing || document.querySelector("dialog[open], .menu")) return;
    if (event.key === "Escape") return actions.escape();
    const key = KEYS.find(({ test }) => test?.(event));
    if (!key) return;
    event.preventDefault();
    actions[key.action]();
  });
}
