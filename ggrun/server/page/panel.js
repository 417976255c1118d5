// The panel at the side: settings or the server, one at a time. On a narrow screen it covers the page.

import { $, iconButton } from "./dom.js";

const BUTTONS = { settings: "settings-open", server: "server-open" };
let shown = null, closing = null;

export const panelShown = () => shown;
export const closeButton = () => iconButton("close", "Close", () => closePanel());

/** Show a panel; closed(): called when it is put away. */
export function showPanel(name, elements, closed = null) {
  if (shown) put(false);
  shown = name;
  closing = closed;
  const panel = $("panel");
  panel.replaceChildren(...elements);
  panel.hidden = false;
  panel.setAttribute("aria-label", panel.querySelector("h2").textContent);
  $("app").classList.add("panel-shown");
  $(BUTTONS[name]).setAttribute("aria-expanded", "true");
  panel.scrollTop = 0;
  panel.querySelector(".panel-head .icon-button").focus();
}

function put(focus) {
  const name = shown;
  closing?.();
  shown = closing = null;
  $("panel").hidden = true;
  $("panel").replaceChildren();
  $("app").classList.remove("panel-shown");
  $(BUTTONS[name]).setAttribute("aria-expanded", "false");
  if (focus) $(BUTTONS[name]).focus();
}

export function closePanel() {
  if (shown) put(true);
}
