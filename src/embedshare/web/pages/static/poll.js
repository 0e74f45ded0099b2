// Asks for the figures once a second, for as long as the page lives.

import { keyed } from "./keyed.js";

const EVERY_MS = 1000;
const LIMIT_MS = 6000;
const SLOWEST_MS = 8000;

/** Calls `onSample` with each answer, and `onLost` with the reason and the wait in ms where none came. */
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
      mayAsk &&= error.name !== "KeyWanted"; // once declined: asked again when the page is loaded again
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
