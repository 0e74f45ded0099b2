// Files on their way to sessions, and those that failed.

/** Files that are sent at once; the others wait. */
const AT_ONCE = 2;

export class Uploads {
  #send;
  #changed;
  #waiting = [];
  #sending = 0;
  /** By session and file name. */
  #files = new Map();

  /** `send(session, file)` resolves when the file is stored; `changed()` is called at each change. */
  constructor(send, changed) {
    this.#send = send;
    this.#changed = changed;
  }

  add(session, files) {
    for (const file of files) {
      this.#files.set(keyOf(session, file.name), { session, filename: file.name, size: file.size, state: "waiting", error: null });
      this.#waiting.push({ session, file });
    }
    while (this.#sending < AT_ONCE && this.#waiting.length) this.#next();
    this.#changed();
  }

  /** Whether a file of this session is on its way. */
  isBusy(session) {
    return [...this.#files.values()].some((one) => one.session === session && one.state !== "failed");
  }

  forget(session, name) {
    this.#files.delete(keyOf(session, name));
  }

  /** The documents of a session, with what is known here of those that are on their way, or failed. */
  rows(session, documents) {
    const own = [...this.#files.values()].filter((one) => one.session === session);
    const known = documents.map((document) => {
      const mine = own.find((one) => one.filename === document.filename);
      if (!mine) return document;
      return mine.state === "failed" ? { ...document, error: mine.error } : { ...document, size: document.size ?? mine.size };
    });
    const others = own.filter((one) => !documents.some((document) => document.filename === one.filename));
    return [...known, ...others.map((one) => ({ ...one, chunks: null, bytes: 0 }))];
  }

  async #next() {
    const { session, file } = this.#waiting.shift();
    const mine = this.#files.get(keyOf(session, file.name));
    this.#sending += 1;
    if (mine) mine.state = "sending";
    try {
      await this.#send(session, file);
      if (this.#files.get(keyOf(session, file.name)) === mine) this.forget(session, file.name);
    } catch (error) {
      if (mine) Object.assign(mine, { state: "failed", error: error.message });
    }
    this.#sending -= 1;
    if (this.#waiting.length) this.#next();
    this.#changed();
  }
}

function keyOf(session, name) {
  return JSON.stringify([session, name]);
}
