// A found chunk as a card. The document's text is set as text, never as markup.

import { element, marked, wordsOf } from "./results.js";

/** The card of a chunk of the document with this file name. */
export function chunkCard(found, filename, query) {
  const card = element("li", "card result");
  const source = element("div", "source");
  source.append(element("h2", "", filename), gauge(found.score));
  const text = element("p", "passage best long");
  text.append(...marked(found.text, wordsOf(query)));
  const facts = element("p", "facts-of");
  facts.append(...factsOf(found).map((fact) => element("span", "", fact)));
  card.append(source, text, facts);
  return card;
}

function factsOf({ page, heading, chunk, start, end, metadata }) {
  return [
    heading,
    page !== null && `page ${page}`,
    `chunk ${chunk + 1}, characters ${start.toLocaleString("en")} to ${end.toLocaleString("en")}`,
    ...Object.entries(metadata).map(([name, value]) => `${name}: ${value}`),
  ].filter(Boolean);
}

/** The score, a cosine or of a hybrid search, as a figure and as a bar that is longer for better chunks. */
function gauge(score) {
  const [shown, track, bar] = [element("span", "score"), element("span", "gauge"), element("i")];
  shown.title = "How well the chunk fits the query: higher is better";
  bar.style.width = `${100 * Math.max(score, 0)}%`;
  track.append(bar);
  shown.append(track, score.toFixed(3));
  return shown;
}
