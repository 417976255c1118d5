// What an empty conversation shows: a few questions that suit the model.

import { h } from "./dom.js";

const TITLE = "What would you like to know?";
const PYDOC = ["What does os.path.join do?", "How does itertools.chain work?", "What is functools.partial for?", "And math.floor: up or down?"];
const GENERAL = [
  "Explain how a hash table works, with a short example.",
  "Write a Python script that renames photos by the date they were taken.",
  "Compare three ways to back up a home server, as a table.",
  "Help me word a friendly reminder about an unpaid invoice.",
];
const CODER = [
  "Write a function that merges overlapping intervals, with tests.",
  "Explain what this error means: segmentation fault (core dumped)",
  "Show the same loop in Python, Rust and Go.",
  "Write a SQL query that finds duplicate rows, and one that deletes them.",
];
// the first whose words stand in the model's name
const SUITED = [
  [/pydoc|embedded/i, PYDOC, "A toy that knows Python's standard library, one sentence a question."],
  [/cod(er|e)|starcoder/i, CODER, ""],
  [/./, GENERAL, ""],
];

export function emptyThread(model, ask) {
  if (!model) return h("div.empty", {}, h("h2", {}, TITLE)); // the server has not said yet what it has
  const [, questions, note] = SUITED.find(([pattern]) => pattern.test(model));
  return h("div.empty", {},
    h("h2", {}, TITLE),
    h("p.quiet", {}, "Answered on this machine by ", h("strong", {}, model), ".", note ? ` ${note}` : null),
    h("ul.samples", { "aria-label": "Questions to begin with" },
      questions.map((question) => h("li", {}, h("button.sample", { type: "button", onclick: () => ask(question) }, question)))));
}
