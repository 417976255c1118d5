// Where conversations are kept: IndexedDB, one record each; in memory alone where the browser allows no storage.
// Small settings lie in localStorage. Other tabs are told of changes.

const NAME = "ggrun", TABLE = "conversations";
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(NAME) : null;

let database = null;
const memory = new Map();

/** Open the storage; false: nothing will outlive this tab. */
export async function openStore() {
  try {
    database = await new Promise((resolve, reject) => {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
      request.onblocked = () => reject(new Error("blocked by another tab"));
    });
    database.onversionchange = () => database.close();
    return true;
  } catch {
    return false;
  }
}

function transact(mode, work) {
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(TABLE, mode);
    const request = work(transaction.objectStore(TABLE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error ?? request.error);
  });
}

export async function allConversations() {
  return database ? transact("readonly", (table) => table.getAll()) : [...memory.values()].map((kept) => structuredClone(kept));
}

export async function loadConversation(id) {
  return database ? transact("readonly", (table) => table.get(id)) : structuredClone(memory.get(id));
}

let whenFull = () => {};

/** full(): called when the browser takes no more. */
export function onStorageFull(full) {
  whenFull = full;
}

/** Keep a conversation as it is now; one that was deleted meanwhile stays so. */
export async function saveConversation(conversation) {
  if (deleted.has(conversation.id)) return;
  try {
    if (database) await transact("readwrite", (table) => table.put(conversation));
    else memory.set(conversation.id, structuredClone(conversation));
    channel?.postMessage({ changed: conversation.id });
  } catch {
    whenFull();
  }
}

const deleted = new Set();

export async function deleteConversation(id) {
  deleted.add(id);
  if (database) await transact("readwrite", (table) => table.delete(id));
  else memory.delete(id);
  channel?.postMessage({ deleted: id });
}

/** listener({changed: id} or {deleted: id}): another tab did that. */
export function onOtherTabs(listener) {
  if (channel) channel.onmessage = (event) => listener(event.data);
}

/** A small setting of this browser, or what was said instead where there is none. */
export function setting(name, otherwise = null) {
  try {
    const text = localStorage.getItem(`${NAME}.${name}`) ?? sessionStorage.getItem(`${NAME}.${name}`);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** Keep a small setting (undefined: forget it); for this tab alone when `session`. */
export function keepSetting(name, value, session = false) {
  try {
    for (const storage of [localStorage, sessionStorage]) storage.removeItem(`${NAME}.${name}`);
    if (value !== undefined) (session ? sessionStorage : localStorage).setItem(`${NAME}.${name}`, JSON.stringify(value));
  } catch { /* storage is off or full: it lasts as long as this tab */ }
}
