// An application in JavaScript for Node: see tests/e2e/test_languages.py.

import http from "node:http";

const [kind, port, base, what] = process.argv.slice(2);
const target = new URL(base);

/** A connection to the target: a request to the proxy as it is, or inside of a tunnel. */
async function request(path, options, body = "") {
  let where = { host: "127.0.0.1", port, path: base + path, headers: { Host: target.host } };
  if (kind === "connect") {
    const tunnel = http.request({ host: "127.0.0.1", port, method: "CONNECT", path: target.host });
    const socket = await new Promise((resolve, reject) =>
      tunnel.on("connect", (_, socket) => resolve(socket)).on("error", reject).end());
    where = { path, createConnection: () => socket, headers: { Host: target.host } };
  }
  return await new Promise((resolve, reject) => {
    const asked = http.request({ ...where, ...options }, (answer) => {
      let text = "";
      answer.on("data", (data) => (text += data)).on("end", () => resolve(text)).on("error", reject);
    });
    asked.on("error", reject);
    asked.write(body);
    asked.end();
  });
}

if (what === "give-up") {
  try {
    await request("/", { signal: AbortSignal.timeout(200) });
  } catch {
    console.log("gave up");
    process.stdin.resume();
  }
} else {
  process.stdout.write(await request("/hello", {}));
  process.stdout.write(await request("/upload", { method: "POST" }, Buffer.alloc(300_000)));
}
