// Requests to the server that this page came from, and what may go wrong with them, as sentences.

import { keepSetting, setting } from "./store.js";

const ROOT = new URL("..", import.meta.url);

/** What went wrong, for a person; `todo`: what to do about it; `status`: HTTP's (0: no answer at all). */
export class Problem extends Error {
  constructor(message, { todo = "", status = 0, retry = true } = {}) {
    super(message);
    Object.assign(this, { todo, status, retry });
  }
}

let keyAsked = null; // the one question for a key, while it is open
let askForKey = async () => null;

/** How to ask for an API key: ask(wrong) -> {key, keep}, or null when the person does not want to. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function newKey() {
  keyAsked ??= askForKey(setting("key") !== null).finally(() => (keyAsked = null));
  const answer = await keyAsked;
  if (answer) keepSetting("key", answer.key, !answer.keep);
  return answer !== null;
}

/** fetch, with the key; raises Problem. quiet: do not ask for a key (what polls must not open dialogs). */
async function request(path, { quiet = false, ...options } = {}) {
  for (;;) {
    const key = setting("key");
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(new URL(path, ROOT), { ...options, headers, credentials: "same-origin", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server cannot be reached.", { todo: "Look whether `ggrun serve` still runs, then try again." });
    }
    if (response.ok) return response;
    if (response.status === 401 && !quiet && (setting("key") !== key || (await newKey()))) continue;
    throw await problemOf(response);
  }
}

/** An error response as a Problem. */
async function problemOf(response) {
  let body = null;
  try {
    body = await response.json();
  } catch { /* not ours: the status says it */ }
  return toProblem(body?.error ?? {}, response.status);
}

function toProblem(error, status) {
  const said = typeof error === "string" ? error : error.message;
  if (error.type === "exceed_context_size_error") {
    const { n_prompt_tokens: prompt, n_ctx: context } = error;
    return new Problem(`This conversation has ${prompt} tokens, and the model's context holds ${context}.`, {
      todo: "Start a new conversation, edit an earlier message to continue from there, or start the server with a larger -c.", status, retry: false });
  }
  const todos = {
    401: "This server wants an API key (--api-key). Try again to type one.",
    403: "The server does not answer pages under this address; open it under the one it printed when it started.",
    413: "Shorten the message.",
    429: "Too many wait already. Try again in a moment.",
    503: "Try again in a moment.",
  };
  const sentence = said ? `${said[0].toUpperCase()}${said.slice(1)}${/[.!?]$/.test(said) ? "" : "."}` : "";
  const todo = todos[status] ?? (status >= 500 ? "Try again; the server's own output may say more." : "Change what it names (settings, or the message), and try again.");
  return new Problem(sentence || `The server answered with status ${status}.`, { todo, status });
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

/** The models that can be asked for, as {id, state, ...}. */
export async function listModels(options) {
  const { data } = await getJson("v1/models", options);
  return data.map((model) => ({ ...model, state: model.state ?? model.status?.value ?? "loaded" }));
}

/**
 * Stream an answer. body: a chat completion request. on: {start, text, thought, call, end}.
 * start(model): the name of the model that answers, with the first piece; call(delta): as OpenAI's API writes it;
 * end({reason, timings, usage, model}). Raises Problem, or AbortError when the signal says so.
 */
export async function streamChat(body, on, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const end = { reason: null, timings: null, usage: null, model: null };
  let finished = false;
  for await (const data of serverEvents(response.body)) {
    if (data === "[DONE]") {
      finished = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw toProblem(chunk.error, chunk.error.code >= 400 ? chunk.error.code : 500);
    if (!end.model && chunk.model) on.start?.((end.model = chunk.model));
    if (chunk.timings) end.timings = chunk.timings;
    if (chunk.usage) end.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const { content, reasoning_content: thought, tool_calls: calls } = choice.delta ?? {};
    if (thought) on.thought(thought);
    if (content) on.text(content);
    for (const call of calls ?? []) on.call(call);
    if (choice.finish_reason) end.reason = choice.finish_reason;
  }
  if (!finished && !end.reason) throw new Problem("The connection broke before the answer was complete.", { todo: "What had arrived is kept; try again for a whole answer." });
  on.end(end);
}

/** The data of server-sent events, one string an event. Comments (keep-alive) are skipped. */
async function* serverEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", data = [];
  try {
    for (;;) {
      let step;
      try {
        step = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Problem("The connection to the server broke in the middle of the answer.", { todo: "Look whether `ggrun serve` still runs, then try again." });
      }
      if (step.done) return;
      const lines = (rest + step.value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
