// Requests with the API key that this tab's user gave; the user is asked for one if the worker needs it.

const STORED = "embedshare-api-key";

/** `fetch(url, options())`. If the worker wants another key, the user is asked for it and the request is repeated.
 *  Without a key, or if `mayAsk` is false: an error with the worker's reason, whose name is "KeyWanted". */
export async function keyed(url, options, mayAsk = true) {
  for (;;) {
    const key = stored();
    const { headers, ...rest } = options();
    const answer = await fetch(url, { ...rest, headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers });
    if (!answer.headers.get("WWW-Authenticate")?.startsWith("Bearer")) return answer;
    const { error } = await answer.json();
    const why = key ? error : "This worker answers only with an API key.";
    if (!mayAsk || !(await given(why))) throw Object.assign(new Error(error), { name: "KeyWanted" });
  }
}

/** The key, which this tab keeps until it is closed. */
function stored() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return stored.key; // storage is denied: the page itself keeps it
  }
}

function store(key) {
  try {
    sessionStorage.setItem(STORED, key);
  } catch {
    stored.key = key;
  }
}

/** Whether the user gave a key. */
function given(why) {
  const dialog = document.createElement("dialog");
  const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
  const form = make("form", { method: "dialog" });
  const label = make("label", { textContent: "API key" });
  const field = make("input", { type: "password", name: "key", autocomplete: "off", required: true, spellcheck: false });
  const buttons = make("p", { className: "buttons" });
  buttons.append( // the first is Enter's
    make("button", { type: "submit", value: "use", textContent: "Use key", className: "main" }),
    make("button", { type: "submit", value: "cancel", textContent: "Cancel", formNoValidate: true }),
  );
  label.append(field);
  form.append(make("h2", { textContent: "API key needed" }), make("p", { textContent: why }), label, buttons);
  dialog.className = "credential";
  dialog.append(form);
  document.body.append(dialog);
  dialog.addEventListener("keydown", (event) => event.stopPropagation()); // the page has keys of its own
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = field.value.trim();
      const use = dialog.returnValue === "use" && key;
      if (use) store(key);
      dialog.remove();
      resolve(Boolean(use));
    });
    dialog.showModal();
    field.focus();
  });
}
