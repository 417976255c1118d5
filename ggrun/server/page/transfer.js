// Conversations as files: written for a person's own keeping, read with suspicion.

import { h, randomId } from "./dom.js";
import { cleanSettings } from "./settings.js";
import { pathOf, titleOf } from "./tree.js";

const FORMAT = "ggrun conversations", VERSION = 1;

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const fileName = (text) => text.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "conversation";

export function exportJson(conversations) {
  const name = conversations.length === 1 ? fileName(titleOf(conversations[0])) : `ggrun-conversations-${new Date().toISOString().slice(0, 10)}`;
  download(`${name}.json`, "application/json", JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1));
}

export function exportMarkdown(conversation) {
  const said = { user: "You", assistant: "Answer" };
  const parts = pathOf(conversation).map((node) => `## ${said[node.role]}\n\n${node.content}\n`);
  download(`${fileName(titleOf(conversation))}.md`, "text/markdown", `# ${titleOf(conversation)}\n\n${parts.join("\n")}`);
}

/** The conversations of a file's text. Raises an Error with a sentence. Each gets a new id, so that nothing kept is overwritten. */
export function readConversations(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON. Take one that Export has written.");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error("This file was not written by this page's Export.");
  if (file.version > VERSION) throw new Error("This file was written by a newer version of this page.");
  return file.conversations.map((one, i) => {
    const conversation = checked(one);
    if (!conversation) throw new Error(`Conversation ${i + 1} of this file is damaged; nothing was imported.`);
    return conversation;
  });
}

const words = (value) => (typeof value === "string" ? value : "");
const moment = (value) => (Number.isFinite(value) ? value : Date.now());

/** A conversation made of known fields alone, or null. */
function checked(one) {
  if (typeof one?.nodes !== "object" || one.nodes === null) return null;
  const nodes = {};
  for (const [id, node] of Object.entries(one.nodes)) {
    if (!/^[0-9a-zA-Z-]{1,64}$/.test(id)) return null;
    if (!["user", "assistant"].includes(node?.role) || typeof node.content !== "string") return null;
    if (node.parent !== null && !Object.hasOwn(one.nodes, node.parent)) return null;
    nodes[id] = {
      id, parent: node.parent, role: node.role, content: node.content, created: moment(node.created), order: Number(node.order) || 0,
      ...(node.thought ? { thought: words(node.thought) } : {}),
      ...(node.model ? { model: words(node.model) } : {}),
      ...(node.finish ? { finish: words(node.finish) } : {}),
      ...(node.timings ? { timings: numbers(node.timings) } : {}),
      ...(Array.isArray(node.toolCalls) ? { toolCalls: node.toolCalls.map((call) => ({ name: words(call?.name), arguments: words(call?.arguments) })) } : {}),
    };
  }
  for (const id of Object.keys(nodes)) {
    let steps = 0;
    for (let at = id; at !== null; at = nodes[at].parent) if (++steps > 100_000 || (at === id && steps > 1)) return null; // a circle
  }
  const leaf = Object.hasOwn(nodes, one.leaf ?? "") ? one.leaf : Object.keys(nodes).at(-1) ?? null;
  return { id: randomId(), title: words(one.title).slice(0, 200), created: moment(one.created), updated: moment(one.updated), settings: cleanSettings(one.settings), nodes, leaf };
}

function numbers(timings) {
  const names = ["cache_n", "prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms", "predicted_per_second"];
  return Object.fromEntries(names.map((name) => [name, Number.isFinite(timings[name]) ? timings[name] : 0]));
}
