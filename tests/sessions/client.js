// A client of the session server as a Node program has it: from the .proto alone, by @grpc/proto-loader.
// node client.js PROTO ADDRESS prints one line of JSON.
const crypto = require("crypto");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [proto, address] = process.argv.slice(2);
const { fastembed } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true, longs: Number }));
const client = new fastembed.v1.FastEmbedService(address, grpc.credentials.createInsecure());
const call = (name, request) => new Promise((done, fail) => {
  client[name](request, { deadline: Date.now() + 30000 }, (error, answer) => (error ? fail(error) : done(answer)));
});

/** Sends a file with its last message, or without it and with a size that is not the file's. */
function upload(session, text, { whole }) {
  const bytes = Buffer.from(text);
  return new Promise((done, fail) => {
    const stream = client.ProcessFileStream((error, answer) => (error ? fail(error) : done(answer)));
    const size = whole ? bytes.length : bytes.length + 1;
    stream.write({ session_id: session, metadata: { filename: "notes.txt", content_type: "text/plain", size } });
    let chunks = 0;
    for (let start = 0; start < bytes.length; start += 16, chunks += 1) {
      stream.write({ session_id: session, chunk: bytes.subarray(start, start + 16) });
    }
    if (whole) {
      const sha256 = crypto.createHash("sha256").update(bytes).digest();
      stream.write({ session_id: session, end: { chunks, bytes: bytes.length, sha256 } });
    }
    stream.end();
  });
}

async function main() {
  const session = `node-${process.pid}`;
  const made = await call("CreateSession", { session_id: session });
  const stored = await upload(session, "the cat sat on the mat\n\nsnow falls in winter\n", { whole: true });
  const cut = await upload(session, "half a file", { whole: false }).then(() => null, (error) => error.code);
  const { packed, dimension } = await call("GetEmbeddings", { session_id: session, texts: ["one", "two"], packed: true });
  const { embeddings } = await call("GetEmbeddings", { session_id: session, texts: ["one"] });
  const found = await call("Search", { session_id: session, query: "snow", top_k: 5 });
  const gone = await call("DestroySession", { session_id: session });
  const unknown = await call("GetSession", { session_id: session }).then(() => null, (error) => error.code);
  const first = new Float32Array(packed.buffer.slice(packed.byteOffset, packed.byteOffset + 4 * dimension));
  console.log(JSON.stringify({
    made: made.success, stored: stored.success, chunks: stored.points_stored, cut, rows: packed.length / 4 / dimension,
    apart: Math.max(...embeddings[0].values.map((value, at) => Math.abs(value - first[at]))),
    found: found.hits.map((hit) => hit.text), gone: gone.success, unknown,
  }));
  client.close();
}

main().catch((error) => { console.error(error); process.exit(1); });
