// Requests a sample once a second while the page is open.

import { keyed } from "./keyed.js";

const EVERY_MS = 1000;
const LIMIT_MS = 6000;
const SLOWEST_MS = 8000;

/** Calls `onSample` with each answer, or `onLost` with the error and the pause in ms before the next request. */
export async function poll(url, onSample, onLost) {
  let failures = 0;
  let mayAsk = true;
  for (;;) {
    const began = performance.now();
    let wait = EVERY_MS;
    try {
      const sample = await ask(url, mayAsk);
      failures = 0;
      onSample(sample);
      wait = Math.max(EVERY_MS - (performance.now() - began), 100);
    } catch (error) {
      mayAsk &&= error.name !== "KeyWanted"; // the user declined: ask again when the page is reloaded
      wait = Math.min(EVERY_MS * 2 ** failures, SLOWEST_MS);
      failures += 1;
      onLost(error, wait);
    }
    await new Promise((resume) => setTimeout(resume, wait));
  }
}

async function ask(url, mayAsk) {
  const answer = await keyed(url, () => ({ cache: "no-store", signal: AbortSignal.timeout(LIMIT_MS) }), mayAsk);
  if (!answer.ok) throw new Error(`the worker answered ${answer.status}`);
  return answer.json();
}
