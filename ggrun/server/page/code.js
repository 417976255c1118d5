// Colours in code. A language's grammar is fetched from this server when code in it first appears.

import DOMPurify from "./vendor/purify.js";
import highlighter from "./vendor/highlight/core.js";

// language -> the names by which it is called; the file is vendor/highlight/languages/LANGUAGE.js
const NAMES = {
  bash: "sh zsh", c: "h", cmake: "", cpp: "c++ cc cxx hpp cu cuda", csharp: "c# cs", css: "scss less", diff: "patch", dockerfile: "docker",
  go: "golang", haskell: "hs", ini: "toml conf cfg", java: "", javascript: "js jsx mjs cjs node", json: "jsonc json5 jsonl", kotlin: "kt kts",
  latex: "tex", lua: "", makefile: "make mk", markdown: "md", nginx: "", perl: "pl", php: "", powershell: "ps ps1 pwsh",
  python: "py python3 py3 pyi ipython", r: "", ruby: "rb", rust: "rs", scala: "", shell: "console shellsession terminal", sql: "sqlite postgresql mysql",
  swift: "", typescript: "ts tsx", xml: "html xhtml svg vue", yaml: "yml",
};
const BY_NAME = new Map(Object.entries(NAMES).flatMap(([language, names]) => [language, ...names.split(" ").filter(Boolean)].map((name) => [name, language])));
const LIMIT = 200_000; // characters; longer code stays plain

const loading = new Map();

function load(language) {
  if (!loading.has(language)) {
    const fetched = import(`./vendor/highlight/languages/${language}.js`).then((module) => highlighter.registerLanguage(language, module.default));
    loading.set(language, fetched);
  }
  return loading.get(language);
}

/** Code as a fragment of coloured spans, or null where that is not possible (yet). */
export function highlightedNow(text, name) {
  const language = BY_NAME.get(name.toLowerCase());
  if (!language || text.length > LIMIT || !text) return null;
  if (!highlighter.getLanguage(language)) {
    load(language).catch(() => {});
    return null;
  }
  const html = highlighter.highlight(text, { language, ignoreIllegals: true }).value;
  return DOMPurify.sanitize(html, { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true });
}

/** The same, once the language has been fetched; null when it is not known. */
export async function highlighted(text, name) {
  const language = BY_NAME.get(name.toLowerCase());
  if (!language) return null;
  await load(language).catch(() => {});
  return highlighter.getLanguage(language) ? highlightedNow(text, name) : null;
}
