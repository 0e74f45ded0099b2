// Results as cards. Everything from the web is set as text; links lead only to http or https.

/** Shorter words of a question are too common to mark. */
const LEAST_LETTERS = 3;
const COMMON = new Set(["and", "are", "but", "can", "did", "does", "for", "from", "how", "into", "not", "that", "the", "this", "was", "what", "when", "where", "which", "who", "why", "with", "you"]);

/** A card of one page's passages, best first. */
export function card(passages, query) {
  const [best, ...others] = passages;
  const words = wordsOf(query);
  const result = element("li", "card result");
  const source = element("div", "source");
  source.append(...sourceOf(best.url), gauge(best.score));
  const heading = element("h2");
  heading.append(link(best.url, best.title || best.url));
  result.append(source, heading, passage(best, words, "passage best long"));
  if (others.length) result.append(rest(others, words));
  return result;
}

/** Adds an unfold button to passages that are cut off; called when the page shows them. */
export function foldLong(results) {
  for (const shown of results.querySelectorAll(".long")) {
    if (shown.scrollHeight <= shown.clientHeight + 1) continue;
    const button = element("button", "unfold", "Show all");
    button.type = "button";
    button.addEventListener("click", () => {
      shown.classList.remove("long");
      button.remove();
    });
    shown.after(button);
  }
}

/** Placeholders for results. */
export function skeletons(count) {
  return Array.from({ length: count }, () => {
    const bone = element("li", "card result");
    bone.setAttribute("aria-hidden", "true");
    bone.append(...["bone head", "bone", "bone", "bone last"].map((name) => element("div", name)));
    return bone;
  });
}

/** Text as nodes; the words of a question, and longer words that begin with them, are marked. */
export function marked(text, words) {
  if (!words.length) return [text];
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}])(?:${words.join("|")})[\\p{L}\\p{N}]*`, "giu");
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    nodes.push(text.slice(end, match.index), element("mark", "", match[0]));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)].filter((node) => node !== "");
}

/** Words of letters and digits only, which need no escaping in a pattern. */
export function wordsOf(query) {
  const words = query.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return [...new Set(words)].filter((word) => word.length >= LEAST_LETTERS && !COMMON.has(word));
}

function passage({ text }, words, name) {
  const shown = element("p", name);
  shown.append(...marked(text, words));
  return shown;
}

function rest(others, words) {
  const folded = element("details", "others");
  folded.append(element("summary", "", `${others.length} more ${others.length === 1 ? "passage" : "passages"} of this page`));
  for (const other of others) {
    const block = element("div", "other");
    block.append(gauge(other.score), passage(other, words, "passage"));
    folded.append(block);
  }
  return folded;
}

/** The score, a distance, as a figure, and as a bar that is longer for nearer passages. */
function gauge(score) {
  const [shown, track, bar] = [element("span", "score"), element("span", "gauge"), element("i")];
  shown.title = "Squared distance to the question: lower is nearer";
  bar.style.width = `${100 / (1 + Math.max(score, 0))}%`;
  track.append(bar);
  shown.append(track, score.toFixed(3));
  return shown;
}

/** A page's address: its host's first letter, host and path. */
function sourceOf(url) {
  const parsed = URL.canParse(url) ? new URL(url) : null;
  const host = (parsed?.host ?? url).replace(/^www\./, "");
  const where = element("span", "where");
  where.append(element("b", "", host), parsed ? readable(parsed.pathname).replaceAll("/", " › ").replace(/ › $/, "") : "");
  const letter = element("span", "letter", (host[0] ?? "?").toUpperCase());
  letter.setAttribute("aria-hidden", "true");
  return [letter, where];
}

function readable(path) {
  try {
    return decodeURI(path);
  } catch {
    return path;
  }
}

function link(url, title) {
  const parsed = URL.canParse(url) ? new URL(url) : null;
  const shown = element("a", "", title);
  if (parsed && ["http:", "https:"].includes(parsed.protocol)) {
    shown.href = parsed.href;
    shown.rel = "noopener noreferrer";
  } else {
    shown.tabIndex = 0;
  }
  return shown;
}

/** An element with a class and a text. */
export function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return made;
}
