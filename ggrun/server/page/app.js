// The page: which conversation is shown, and what happens when something is pressed. Everything else has a module of its own.

import { answer, running, runningIds, runningNode, stopAnswer } from "./answering.js";
import { getJson, listModels, onKeyNeeded } from "./api.js";
import { draft, focusComposer, setBusy, setDraft, setUpComposer, showContext } from "./composer.js";
import { askChoice, askKey, askText, confirmed, showKeys } from "./dialogs.js";
import { $, drawIcons, h, say } from "./dom.js";
import { keyRows, setUpKeys } from "./keys.js";
import { closeButton, closePanel, panelShown, showPanel } from "./panel.js";
import { emptyThread } from "./samples.js";
import { ServerView } from "./server.js";
import { cleanSettings, settingsForm } from "./settings.js";
import { isNarrow, showList, sidebarShown, toggleSidebar, watchWidth } from "./sidebar.js";
import { allConversations, deleteConversation, keepSetting, loadConversation, onOtherTabs, onStorageFull, openStore, saveConversation, setting } from "./store.js";
import { setUpTheme } from "./theme.js";
import { follow, forgetView, showThread, toNewest, viewOf } from "./thread.js";
import { exportJson, exportMarkdown, readConversations } from "./transfer.js";
import { addMessage, createConversation, isEmpty, pathOf, showBranch, titleOf } from "./tree.js";

const conversations = new Map();
const drafts = new Map(); // what was begun and not sent, by conversation
let current = createConversation();
let models = [];
let contexts = {}; // name of a model -> tokens of its context
let props = null;

// ---- what is seen

const modelName = () => (models.some((model) => model.id === current.model) ? current.model : models.find((model) => model.id === setting("model"))?.id ?? models[0]?.id ?? "");

function show() {
  showThread(current, { edit, again, branch }, emptyThread(modelName(), send));
  const node = runningNode(current), view = node && viewOf(node);
  if (view && !view.stream) { // it came in while another conversation was looked at
    view.begin();
    if (node.thought) view.thought(node.thought);
    if (node.content) view.text(node.content);
  }
  const title = titleOf(current);
  $("title").textContent = title;
  $("title").classList.toggle("visually-hidden", isEmpty(current));
  document.title = isEmpty(current) ? "ggrun" : `${title} · ggrun`;
  setBusy(running(current));
  const last = pathOf(current).findLast((one) => one.context);
  showContext(last?.context, contexts[last?.model] ?? contexts[modelName()]);
  showList([...conversations.values()], current.id, runningIds(), { open, rename, exportOne, remove });
  showModels();
  follow();
}

const STATES = { loading: " (loading)", unloaded: "", sleeping: " (sleeping)", failed: " (failed)" };

function showModels() {
  const place = $("model"), name = modelName();
  if (models.length < 2) return place.replaceChildren(h("span.model-name", { title: name }, name));
  if (document.activeElement?.parentElement === place) return;
  const select = h("select", { "aria-label": "Model", onchange: () => {
    current.model = select.value;
    keepSetting("model", select.value);
    if (!isEmpty(current)) keep(current);
    refreshProps();
    show();
  } }, models.map((model) => h("option", { value: model.id, selected: model.id === name }, `${model.state === "loaded" ? "● " : ""}${model.id}${STATES[model.state] ?? ""}`)));
  place.replaceChildren(select);
}

/** A line above the messages. about: who said it; what is about the server goes away when the server answers again. */
function notice(text, action = null, about = "") {
  $("notice").hidden = !text;
  $("notice").dataset.about = about;
  $("notice").replaceChildren(h("span", {}, text), action ? h("button.button.small", { type: "button", onclick: action[1] }, action[0]) : "");
}

// ---- conversations

function keep(conversation) {
  conversations.set(conversation.id, conversation);
  saveConversation(conversation);
}

function open(conversation, push = true) {
  drafts.set(current.id, draft());
  const focused = document.activeElement;
  current = conversation;
  if (push) history.pushState(null, "", isEmpty(conversation) ? location.pathname : `#${conversation.id}`);
  setDraft(drafts.get(current.id) ?? "");
  if (panelShown() === "settings") openSettings();
  show();
  toNewest();
  if (isNarrow() && sidebarShown()) toggleSidebar(false, false);
  if (!isNarrow() || !focused?.closest("#sidebar")) focusComposer();
}

function create() {
  const fresh = createConversation(cleanSettings(setting("defaults", {})));
  fresh.model = modelName();
  open(fresh);
}

async function rename(conversation) {
  const title = await askText("Rename the conversation", "Title", titleOf(conversation));
  if (title === null) return;
  conversation.title = title;
  keep(conversation);
  show();
}

async function remove(conversation) {
  if (!(await confirmed("Delete this conversation?", `“${titleOf(conversation)}” is kept in this browser alone; it cannot be brought back.`, "Delete"))) return;
  stopAnswer(conversation);
  conversations.delete(conversation.id);
  await deleteConversation(conversation.id);
  say("Deleted");
  if (conversation.id === current.id) create();
  else show();
}

async function exportOne(conversation) {
  const kind = await askChoice("Export the conversation", "JSON can be imported again, with all versions; Markdown is for reading.", [["Markdown", "md"], ["JSON", "json", "primary"]]);
  if (kind === "json") exportJson([conversation]);
  if (kind === "md") exportMarkdown(conversation);
}

async function importFile(file) {
  try {
    const read = readConversations(await file.text());
    read.forEach(keep);
    notice(`${read.length} ${read.length === 1 ? "conversation was" : "conversations were"} imported.`, ["Good", () => notice("")]);
    if (read.length) open(read[0]);
  } catch (error) {
    notice(error.message, ["Close", () => notice("")]);
  }
}

/** The conversation that the address names, or a new one. */
function openAddress() {
  const named = conversations.get(location.hash.slice(1));
  if (named) open(named, false);
  else if (location.hash) {
    history.replaceState(null, "", location.pathname);
    create();
  } else if (!isEmpty(current)) open(createConversation(cleanSettings(setting("defaults", {}))), false);
}

// ---- messages

function send(text) {
  if (running(current)) return false;
  const conversation = current, first = isEmpty(conversation);
  ask(conversation, addMessage(conversation, conversation.leaf, { role: "user", content: text }));
  if (first) history.replaceState(null, "", `#${conversation.id}`);
  toNewest();
  return true;
}

async function ask(conversation, question) {
  const name = modelName();
  conversation.model ??= name;
  conversations.set(conversation.id, conversation);
  say("The answer begins");
  const changed = () => (conversation.id === current.id ? show() : showList([...conversations.values()], current.id, runningIds(), { open, rename, exportOne, remove }));
  const node = await answer(conversation, question, name, models.length > 1, changed);
  say(node.problem ? `${node.problem.message} ${node.problem.todo}` : node.finish === "stopped" ? "The answer was stopped" : "The answer is complete");
  refreshModels();
}

/** False when it has to wait for the answer that comes in. */
function edit(node, text) {
  if (running(current)) return false;
  ask(current, addMessage(current, node.parent, { role: "user", content: text }));
  toNewest();
  focusComposer();
  return true;
}

function again(node) {
  if (running(current)) return;
  const question = current.nodes[node.parent];
  if (question) ask(current, question);
  toNewest();
  focusComposer();
}

function branch(node) {
  if (running(current)) return;
  showBranch(current, node);
  keep(current);
  show();
  const buttons = viewOf(node)?.element.querySelectorAll(".branches button:not([disabled])");
  buttons?.[0]?.focus();
}

function lastOf(role) {
  return pathOf(current).findLast((node) => node.role === role);
}

// ---- panels

function openSettings() {
  const change = (settings) => {
    current.settings = settings;
    if (!isEmpty(current)) keep(current);
  };
  showPanel("settings", settingsForm(current.settings, props, change, {
    closeButton: closeButton(),
    keep: () => {
      keepSetting("defaults", cleanSettings(current.settings));
      say("New conversations begin with these settings");
      notice("New conversations begin with these settings.", ["Good", () => notice("")]);
    },
    reset: () => {
      change({});
      openSettings();
    },
  }));
}

function openServer() {
  const view = new ServerView(modelName(), closeButton());
  showPanel("server", view.elements, () => view.stop());
  view.start();
}

const toggle = (name, opening) => () => (panelShown() === name ? closePanel() : opening());

// ---- the server

async function refreshModels() {
  try {
    models = await listModels({ quiet: true });
    const status = await getJson("status", { quiet: true });
    contexts = Object.fromEntries(status.models.filter((model) => model.n_ctx).map((model) => [model.name, model.n_ctx]));
    if (!props) await refreshProps();
    show();
  } catch { /* the next request says what is wrong */ }
}

/** What requests have that do not say otherwise. Asking it of a model that is not loaded would load it. */
async function refreshProps() {
  const model = models.find(({ id }) => id === modelName());
  props = model?.state !== "loaded" ? null : await getJson(`props?model=${encodeURIComponent(modelName())}`, { quiet: true }).catch(() => null);
  if (panelShown() === "settings") openSettings();
}

/** Meet the server: which models there are; asks for a key where one is wanted; waits while a model is being loaded. */
async function meet() {
  try {
    models = await listModels();
    await getJson("status"); // needs the key, which the list of models does not
    if ($("notice").dataset.about === "server") notice("");
    if (models.length === 1 && models[0].state === "loading") {
      notice("The model is being loaded…", null, "server");
      setTimeout(meet, 1000);
    }
    await refreshModels();
  } catch (problem) {
    notice(`${problem.message} ${problem.todo ?? ""}`, ["Try again", meet], "server");
  }
}

// ---- the beginning

function setUp() {
  drawIcons();
  setUpTheme();
  watchWidth();
  toggleSidebar(!isNarrow() && setting("sidebar", true), false);
  onKeyNeeded(askKey);
  setUpComposer({
    send,
    stop: () => stopAnswer(current),
    editLast: () => {
      const node = lastOf("user"), possible = node && !running(current);
      if (possible) viewOf(node)?.edit();
      return Boolean(possible);
    },
  });
  const flip = (shown) => {
    toggleSidebar(shown);
    if (!isNarrow()) keepSetting("sidebar", shown);
  };
  setUpKeys({
    again: () => lastOf("assistant") && again(lastOf("assistant")),
    create,
    search: () => {
      toggleSidebar(true, false);
      $("search").focus();
      $("search").select();
    },
    sidebar: () => flip(!sidebarShown()),
    settings: toggle("settings", openSettings),
    server: toggle("server", openServer),
    focus: focusComposer,
    keys: () => showKeys(keyRows),
    escape: () => {
      if (running(current)) stopAnswer(current);
      else if (isNarrow() && sidebarShown()) toggleSidebar(false);
      else closePanel();
    },
  });
  const press = { new: create, "new-head": create, "sidebar-open": () => flip(true), "sidebar-close": () => flip(false), "settings-open": toggle("settings", openSettings),
    "server-open": toggle("server", openServer), keys: () => showKeys(keyRows), import: () => $("import-file").click(), export: () => exportJson([...conversations.values()]) };
  for (const [id, run] of Object.entries(press)) $(id).addEventListener("click", run);
  $("scrim").addEventListener("click", () => toggleSidebar(false));
  $("search").addEventListener("input", show);
  $("import-file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) importFile(file);
    event.target.value = "";
  });
  addEventListener("popstate", openAddress);
  document.addEventListener("visibilitychange", () => document.hidden || running(current) || refreshModels());
}

async function begin() {
  setUp();
  const kept = await openStore();
  for (const conversation of await allConversations()) {
    for (const node of Object.values(conversation.nodes)) if (node.role === "assistant" && !node.finish) node.finish = "interrupted";
    conversations.set(conversation.id, conversation);
  }
  current.settings = cleanSettings(setting("defaults", {}));
  show();
  openAddress();
  focusComposer();
  onOtherTabs(async ({ changed, deleted }) => {
    const id = changed ?? deleted;
    if (runningIds().has(id)) return;
    const conversation = changed && (await loadConversation(id));
    if (conversation) conversations.set(id, conversation);
    else conversations.delete(id);
    if (id === current.id) {
      pathOf(current).forEach(forgetView);
      current = conversation || createConversation();
    }
    show();
  });
  onStorageFull(() => notice("The browser's storage is full: delete conversations, or export them. What is new will be lost when this page closes."));
  if (!kept) notice("This browser keeps nothing for this page (a private window?): conversations last until it is closed.", ["Good", () => notice("")]);
  await meet();
}

begin();
