// Answers that are coming in: each belongs to a conversation and goes on when another one is looked at.

import { getJson, Problem, streamChat } from "./api.js";
import { requestFields } from "./settings.js";
import { saveConversation } from "./store.js";
import { addMessage, messagesFor } from "./tree.js";
import { viewOf } from "./thread.js";

const SAVE_MS = 2000, PATIENCE_MS = 700;

const runs = new Map(); // id of a conversation -> its run

export const running = (conversation) => runs.has(conversation.id);
export const runningIds = () => new Set(runs.keys());
export const runningNode = (conversation) => runs.get(conversation.id)?.node ?? null;

/** Stop the answer of a conversation; what has come stays. */
export function stopAnswer(conversation) {
  runs.get(conversation.id)?.controller.abort();
}

/**
 * Let the model answer a message (a node of the conversation). Resolves when the answer is there, was stopped, or failed; its node says which.
 * changed(): the conversation looks different now (at the beginning and at the end).
 */
export async function answer(conversation, question, model, several, changed) {
  const node = addMessage(conversation, question.id, { role: "assistant", finish: null, showModel: several });
  const run = { node, controller: new AbortController(), n: 0, first: 0 };
  runs.set(conversation.id, run);
  saveConversation(conversation);
  changed();
  const view = () => viewOf(node);
  view()?.begin();
  const saving = setInterval(() => saveConversation(conversation), SAVE_MS);
  const watching = watchProgress(run, model, (text) => view()?.wait(text));
  const came = () => {
    run.n += 1;
    run.first ||= performance.now();
  };
  try {
    const body = { ...requestFields(conversation.settings), ...(model ? { model } : {}), messages: messagesFor(conversation, question.id) };
    await streamChat(body, {
      start: (name) => (node.model = name),
      text: (piece) => {
        came();
        node.content += piece;
        view()?.text(piece);
      },
      thought: (piece) => {
        came();
        node.thought = (node.thought ?? "") + piece;
        view()?.thought(piece);
      },
      call: (delta) => {
        came();
        const call = ((node.toolCalls ??= [])[delta.index ?? 0] ??= { name: "", arguments: "" });
        call.name += delta.function?.name ?? "";
        call.arguments += delta.function?.arguments ?? "";
        view()?.call();
      },
      end: ({ reason, timings, usage }) => {
        node.finish = reason ?? "stop";
        if (timings) node.timings = timings;
        if (usage) node.context = usage.total_tokens;
      },
    }, run.controller.signal);
  } catch (error) {
    if (error.name === "AbortError") node.finish = "stopped";
    else {
      const problem = error instanceof Problem ? error : new Problem("This page made a mistake.", { todo: `Please report it: ${error.message}` });
      node.finish = "error";
      node.problem = { message: problem.message, todo: problem.todo, retry: problem.retry };
    }
    if (run.n) node.timings = ownTimings(run);
  } finally {
    clearInterval(saving);
    clearTimeout(watching.timer);
    watching.over = true;
    runs.delete(conversation.id);
    node.toolCalls = node.toolCalls?.filter(Boolean);
    conversation.updated = Date.now();
    view()?.finish();
    saveConversation(conversation);
    changed();
  }
  return node;
}

/** Of an answer that was cut off, the server's figures never came: what was seen from here. */
function ownTimings(run) {
  const seconds = (performance.now() - run.first) / 1000;
  return { predicted_n: run.n, predicted_ms: 1000 * seconds, predicted_per_second: run.n > 1 && seconds > 0 ? (run.n - 1) / seconds : 0, prompt_n: 0, cache_n: 0 };
}

/** While nothing has come for a while, say what the server is doing. */
function watchProgress(run, name, tell) {
  const watching = { timer: 0, over: false };
  const look = async () => {
    if (watching.over || run.first) return;
    try {
      const status = await getJson("status", { quiet: true });
      if (!watching.over && !run.first) tell(progress(status.models.find((one) => one.name === name) ?? status.models[0]));
    } catch { /* the answer itself will tell what is wrong */ }
    if (!watching.over) watching.timer = setTimeout(look, PATIENCE_MS);
  };
  watching.timer = setTimeout(look, PATIENCE_MS);
  return watching;
}

function progress(model) {
  if (model.state !== "loaded") return "The model is being loaded…";
  const { slots, n_waiting: waiting } = model.engine;
  const reading = (slots ?? []).filter((slot) => slot.state === "prompt");
  if (reading.length === 1 && reading[0].n_prompt) return `Reading the prompt: ${Math.round((100 * reading[0].n_prompt_done) / reading[0].n_prompt)}%`;
  if (reading.length) return "Reading the prompt…";
  return waiting ? "Waiting for a free slot…" : "";
}
