// A conversation: a tree of messages. Editing a message or asking again grows a branch; `leaf` says which one is shown.
// Plain data, so that it can be stored, exported and imported as it is.

import { randomId } from "./dom.js";

export function createConversation(settings = {}) {
  const now = Date.now();
  return { id: randomId(), title: "", created: now, updated: now, settings: { ...settings }, nodes: {}, leaf: null };
}

/** Add a message under a parent (null: a first message) and show it. */
export function addMessage(conversation, parent, message) {
  const node = { content: "", ...message, id: randomId(), parent, created: Date.now(), order: Object.keys(conversation.nodes).length };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  conversation.updated = node.created;
  return node;
}

/** The messages that are shown, the first one first. */
export function pathOf(conversation, leaf = conversation.leaf) {
  const path = [];
  for (let node = conversation.nodes[leaf]; node; node = conversation.nodes[node.parent]) path.unshift(node);
  return path;
}

/** A message and its alternatives, in the order they were made. */
export function siblingsOf(conversation, node) {
  return Object.values(conversation.nodes).filter((other) => other.parent === node.parent).sort((a, b) => a.order - b.order);
}

/** Show the branch of a message: down to its newest descendant. */
export function showBranch(conversation, node) {
  for (let next = node; next; ) {
    conversation.leaf = next.id;
    const children = Object.values(conversation.nodes).filter((other) => other.parent === next.id);
    next = children.sort((a, b) => b.order - a.order)[0];
  }
}

/** What is sent to the model: the messages up to a leaf, as OpenAI's API writes them. Answers that failed before a word are left out. */
export function messagesFor(conversation, leaf = conversation.leaf) {
  const messages = [];
  const system = conversation.settings.system?.trim();
  if (system) messages.push({ role: "system", content: system });
  for (const node of pathOf(conversation, leaf)) {
    if (node.role === "assistant" && !node.content) continue;
    const last = messages.at(-1);
    if (last?.role === "user" && node.role === "user") last.content += `\n\n${node.content}`; // many templates demand turns
    else messages.push({ role: node.role, content: node.content });
  }
  return messages;
}

export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = pathOf(conversation)[0]?.content.trim().split("\n")[0] ?? "";
  return first.length > 60 ? `${first.slice(0, 58).trimEnd()}…` : first || "New conversation";
}

export const isEmpty = (conversation) => conversation.leaf === null;

/** Does a search find it? Every word must stand in its title or in one of its messages. */
export function matches(conversation, search) {
  const text = [titleOf(conversation), ...Object.values(conversation.nodes).map((node) => node.content)].join("\n").toLowerCase();
  return search.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}
