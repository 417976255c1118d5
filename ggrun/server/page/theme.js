// Light, dark, or as the system is.

import { $ } from "./dom.js";
import { keepSetting, setting } from "./store.js";

const NEXT = { system: "light", light: "dark", dark: "system" };
const NAMES = { system: "as the system", light: "light", dark: "dark" };

export function setUpTheme() {
  const button = $("theme");
  let theme = setting("theme", "system");
  if (!(theme in NEXT)) theme = "system";
  const apply = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const label = `Theme: ${NAMES[theme]}. Change to ${NAMES[NEXT[theme]]}`;
    button.title = label;
    button.setAttribute("aria-label", label);
    const dark = theme === "dark" || (theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
    for (const meta of document.querySelectorAll("meta[name=theme-color]")) meta.content = dark ? "#191918" : "#faf9f6";
  };
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    keepSetting("theme", theme === "system" ? undefined : theme);
    apply();
  });
  apply();
}
