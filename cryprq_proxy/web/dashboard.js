"use strict";
/* Shows what the program tells. All text of it is set with textContent, after show(): names and targets are chosen by
   strangers. Nothing else is ever parsed as HTML (Trusted Types see to that). */

const SECONDS = 600;              // of the chart
const SILENCE = 5000;             // ms without an event until the program counts as gone
const HIDDEN = 60000;             // ms after which a page that nobody sees stops listening
const ROWS = 200;                 // streams shown at first, and with each "more"

const $ = (id) => document.getElementById(id);

// --- text ---

/* Controls, line separators, invisible and bidirectional characters are written out, so that none hides or reorders. */
const HIDING = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const show = (value) => String(value ?? "").replace(HIDING, (one) => "\\u" + one.charCodeAt(0).toString(16).padStart(4, "0"));

function text(node, value) {
  const shown = show(value);
  if (node.textContent !== shown) node.textContent = shown;
}

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = show(value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
function parts(count) {
  if (!Number.isFinite(count)) return ["–", ""];
  let unit = 0;
  for (; count >= 1024 && unit < UNITS.length - 1; unit++) count /= 1024;
  return [unit ? count.toFixed(count < 10 ? 2 : 1) : String(Math.round(count)), UNITS[unit]];
}
const size = (count) => parts(count).join(" ").trim();

function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.floor(seconds)), m = Math.floor(s / 60), h = Math.floor(m / 60);
  if (h >= 24) return `${Math.floor(h / 24)} d ${h % 24} h`;
  if (h) return `${h} h ${m % 60} min`;
  return m ? `${m} min ${s % 60} s` : `${s} s`;
}
const trip = (seconds) => (seconds > 0 ? `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms` : "–");
const clock = (unix) => new Date(unix * 1000).toLocaleTimeString([], {hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false});
const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const list = (value) => (Array.isArray(value) ? value : []);
const part = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});

// --- the token ---

/* It comes in the fragment, which no server and no Referer ever sees, and leaves the address bar at once. */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) sessionStorage.setItem("token", given);
  if (location.hash.includes("token=")) history.replaceState(null, "", location.pathname);
  return given;
}
takeToken();
let token = sessionStorage.getItem("token");
/* Pasted into a tab that is open: the browser loads nothing anew. */
addEventListener("hashchange", () => {
  token = takeToken() ?? token;
  permit();
});

function permit() {
  $("readonly").hidden = Boolean(token);
  $("reload").disabled = !token;
  for (const node of document.querySelectorAll(".close, #exits input")) node.disabled = !token;
}

const authorized = () => (token ? {Authorization: `Bearer ${token}`} : {});

async function change(path, body, done) {
  let message, bad = true;
  try {
    const answer = await fetch(path, {
      method: "POST", headers: {"Content-Type": "application/json", ...authorized()}, body: JSON.stringify(body),
      cache: "no-store", redirect: "error",
    });
    if (answer.ok) [message, bad] = [done, false];
    else message = part(await answer.json()).error ?? "The program refused.";
    if (answer.status === 401) forgetToken();
  } catch {
    message = "The program did not answer.";
  }
  tell(message, bad);
  return !bad;
}

function forgetToken() {
  sessionStorage.removeItem("token");
  token = null;
  permit();
}

let telling = 0;
function tell(message, bad) {
  const node = $("outcome");
  node.className = `notice ${bad ? "bad" : "good"}`;
  text(node, message);
  node.hidden = false;
  clearTimeout(telling);
  telling = setTimeout(() => { node.hidden = true; }, 6000);
}

// --- live data ---

let controller = null;

async function listen() {
  for (let wait = 500; ; wait = Math.min(wait * 1.5, 5000)) {
    while (document.hidden && controller === null) await new Promise((seen) => document.addEventListener("visibilitychange", seen, {once: true}));
    let trouble = "";
    try {
      trouble = await follow(() => { wait = 500; });
    } catch {
      trouble = "";
    }
    if (!document.hidden) gone(trouble);
    await new Promise((on) => setTimeout(on, wait));
  }
}

/* Reads events until the stream ends; returns what is wrong, if the server said so. fetch and not EventSource, which
   can carry no token. */
async function follow(heard) {
  controller = new AbortController();
  const stop = () => controller && controller.abort();
  let watch = setTimeout(stop, SILENCE);
  try {
    const answer = await fetch("/api/events", {headers: authorized(), cache: "no-store", signal: controller.signal});
    if (!answer.ok) {
      if (answer.status === 401 && token) forgetToken();
      return part(await answer.json()).error ?? "";
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const {value, done} = await reader.read();
      if (done) return "";
      clearTimeout(watch);
      watch = setTimeout(stop, SILENCE);
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) take(event);
      heard();
    }
  } finally {
    clearTimeout(watch);
    controller = null;
  }
}

function take(event) {
  const name = /^event: (.*)$/m.exec(event), data = /^data: (.*)$/m.exec(event);
  if (!name || !data) return;
  const value = JSON.parse(data[1]);
  if (name[1] === "status") showStatus(part(value.status), value.at);
  else if (name[1] === "streams") showStreams(list(value));
  else if (name[1] === "history") remember(list(value));
}

let hiding = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(() => controller && controller.abort(), HIDDEN);
});

function live() {
  if ($("live").dataset.state === "live") return;
  $("live").dataset.state = "live";
  text($("live").lastChild, "live");
  $("gone").hidden = true;
}

function gone(trouble) {
  $("live").dataset.state = "gone";
  text($("live").lastChild, "not connected");
  text($("gone"), trouble || "The program does not answer: it has ended, or is starting again. What you see is how it was; this page tries again by itself.");
  $("gone").hidden = false;
  $("link").dataset.state = "wait";
  for (const id of ["rate-up", "rate-down"]) text($(id), "–");
}

// --- the status ---

function showStatus(status, at) {
  live();
  text($("about"), [status.version && `version ${status.version}`, status.uptime && `running for ${duration(status.uptime)}`, list(status.listen).length && `proxy on ${status.listen.join(", ")}`].filter(Boolean).join(" · "));
  showThroughput(status, at);
  showLink(status);
  showExits(status);
  showPath(status);
  showRules(status);
  showTun(status.tun);
  showPaths(part(status.session));
  showEpochs(status);
  showErrors(list(status.errors));
  permit();
}

const CARRIERS = {lane: "UDP, the lane", tcp: "TCP", ws: "WebSocket", wss: "WebSocket over TLS"};
const EXIT = (status) => list(status.exits).find((exit) => exit.active) ?? {};

function showLink(status) {
  const up = status.link === "up", exit = EXIT(status), carrier = part(status.carrier), session = part(status.session);
  $("link").dataset.state = up ? "up" : "down";
  text($("link-title"), up ? "The link is up" : "The link is down");
  const address = carrier.address ?? exit.address ?? part(status.exit).address;
  const name = exit.name ? `${exit.name}, ` : "";
  text($("link-text"), up
    ? `To ${name}${address ?? "the exit"}${carrier.kind ? ` by ${CARRIERS[carrier.kind] ?? carrier.kind}` : ""}.`
    : `No link to ${name}${address ?? "the exit"}. Applications wait or get an error; nothing that belongs in the tunnel goes around it.`);
  text($("round-trip"), up ? trip(session.round_trip) : "–");
  const open = part(status.connections).open ?? session.streams;
  text($("open-count"), open ?? "–");
  document.title = `${up ? "" : "(down) "}cryprq-proxy`;
  $("advice").hidden = up;
  if (!up) fill($("advice-steps"), advice(status, exit));
}

/* Sentences for a person, most likely cause first. */
function advice(status, exit) {
  const error = show(exit.last_error ?? status.last_error ?? ""), steps = [];
  if (error) steps.push(`What the program last saw: ${error}.`);
  if (/authoriz|allowed/i.test(error)) steps.push("The exit does not know this client. There, ask for an invite with: cryprq-proxy invite NAME. Here, use it with: cryprq-proxy join URI.");
  else if (/time|answer/i.test(error)) steps.push("See whether the exit runs, and whether a firewall before it lets its port through.");
  else if (/refused/i.test(error)) steps.push("The machine answers, but no exit listens on that port. Start it there: cryprq-proxy exit.");
  else if (/name|address|resolve/i.test(error)) steps.push("See whether this machine has a network and can look up names.");
  if (list(status.exits).some((other) => other.healthy && !other.active)) steps.push("Another exit is healthy: choose it below.");
  steps.push("Let it be checked step by step: cryprq-proxy doctor.");
  return steps;
}

function fill(node, texts) {
  const shown = texts.map(show).join("\n");
  if (node.dataset.shown === shown) return;
  node.dataset.shown = shown;
  node.replaceChildren(...texts.map((one) => make("li", {text: one})));
}

function facts(node, rows) {
  const shown = JSON.stringify(rows);
  if (node.dataset.shown === shown) return;
  node.dataset.shown = shown;
  node.replaceChildren(...rows.map(([name, value, more, tone]) => {
    const told = make("dd", {text: value, ...(tone ? {class: tone} : {})});
    if (more) told.append(make("small", {text: more}));
    return make("div", {}, make("dt", {text: name}), told);
  }));
}

function showPath(status) {
  const carrier = part(status.carrier), lane = part(part(status.packets).lane), session = part(status.session), rows = [];
  rows.push(["Carrier", carrier.kind ? `${CARRIERS[carrier.kind] ?? carrier.kind} to ${carrier.address}` : "none", carrier.why]);
  if (carrier.congestion) rows.push(["Congestion", carrier.congestion, "The kernel's control for what is sent."]);
  if (lane.why !== undefined) rows.push(["Lane", lane.up ? `UDP to ${lane.peer}, ${lane.size}-byte datagrams` : "not in use", lane.why]);
  else rows.push(["Lane", "not in use", "Datagrams go on the carrier."]);
  rows.push(["Round trip", status.link === "up" ? trip(session.round_trip) : "–"]);
  if (session.cipher) rows.push(["Cipher", session.cipher, status.provider && `ML-KEM and ML-DSA by ${status.provider}`]);
  if (status.waiting) rows.push(["Waiting", many(status.waiting, "request"), "for the link", "warn"]);
  facts($("path"), rows);
}

function showRules(status) {
  const rules = part(status.rules), by = part(part(status.connections).by), rows = [];
  const choices = [["tunnel", "tunnel"], ["direct", "direct"], ["block", "block"], ["exit", "exit-route"]];
  const counted = choices.filter(([route]) => by[route] > 0).map(([route, tone]) => [route, tone, by[route]]);
  const shown = JSON.stringify(counted), routes = $("routes");
  if (routes.dataset.shown !== shown) {
    routes.dataset.shown = shown;
    routes.replaceChildren(...counted.map(([route, tone, count]) => {
      const piece = make("i", {class: tone, title: `${route}: ${count}`});
      piece.style.flexGrow = count;
      return piece;
    }));
    routes.setAttribute("aria-label", `Requests by route: ${counted.map(([route, , count]) => `${route} ${count}`).join(", ") || "none yet"}`);
  }
  rows.push(["Requests", counted.map(([route, , count]) => `${route} ${count.toLocaleString("en")}`).join(", ") || "none yet"]);
  const refused = Object.entries(part(part(status.connections).refused)).filter(([, count]) => count > 0);
  if (refused.length) rows.push(["Not opened", refused.map(([why, count]) => `${why.replaceAll("_", " ")} ${count}`).join(", ")]);
  const connections = part(status.connections), cut = Object.entries(part(connections.early_refused)).filter(([, count]) => count > 0);
  if (connections.early > 0) rows.push(["Answered early", connections.early.toLocaleString("en"), cut.length ? `reset then: ${cut.map(([why, count]) => `${why.replaceAll("_", " ")} ${count}`).join(", ")}` : ""]);
  if (rules.rules !== undefined) {
    rows.push(["Rules", rules.rules ? `${many(rules.rules, "rule")}, then ${rules.default}` : `none; everything: ${rules.default}`, rules.names ? `${many(rules.names, "name")} from lists` : ""]);
    if (rules.loaded_at) rows.push(["Read at", clock(rules.loaded_at)]);
    if (rules.error) rows.push(["Not taken", rules.error, "The rules before that stay in use.", "bad"]);
  }
  for (const forward of list(status.forwards)) rows.push(["Forward", `${forward.listen} to ${forward.to}`, `${many(forward.connections ?? 0, "connection")} so far`]);
  facts($("rules"), rows);
  const problems = list(rules.problems), unlisted = (rules.broken ?? 0) - problems.length;
  fill($("problems"), unlisted > 0 ? [...problems, `and ${many(unlisted, "more broken line")}`] : problems);
}

function showTun(tun) {
  $("tun-card").hidden = !tun || !Object.keys(tun).length;
  if ($("tun-card").hidden) return;
  const kill = part(tun.kill_switch), dns = part(tun.dns), counts = part(dns.counters), device = part(tun.device), rows = [];
  const kept = Object.entries(part(kill.kept_in)).filter(([, count]) => count > 0).map(([cause, count]) => `${cause.replaceAll("_", " ")} ${count}`);
  if (!kill.on) rows.push(["Kill switch", "off", "Traffic may get out if the link fails.", "warn"]);
  else if (kill.paused) rows.push(["Kill switch", `paused for ${duration(kill.paused)} more`, "", "warn"]);
  else if (kill.standing) rows.push(["Kill switch", "on", kept.length ? `kept in: ${kept.join(", ")}` : "", "good"]);
  else rows.push(["Kill switch", "being put back", "Another program has changed it.", "bad"]);
  if (dns.resolver) {
    const ill = list(dns.upstreams).filter((one) => one.healthy === false).map((one) => `${one.name} fails: ${one.last_error ?? "no answer"}`);
    rows.push(["DNS", `by ${dns.resolver}, asks ${dns.in_use ?? "nobody"}`, `${counts.questions ?? 0} questions, ${counts.cache_hits ?? 0} from the cache, ${counts.blocked ?? 0} blocked, ${counts.failures ?? 0} failed`]);
    if (ill.length) rows.push(["DNS trouble", ill.join("; "), "", "bad"]);
  }
  if (device.name) rows.push(["Interface", `${device.name}, MTU ${device.mtu}`, list(tun.addresses).join(", ")]);
  const repairs = list(tun.repairs), counted = repairs.filter((one) => one.repairs > 0).map((one) => `${one.name} ${one.repairs}`);
  if (counted.length) rows.push(["Put back", counted.join(", "), "Another program had changed it."]);
  for (const one of repairs) if (one.trouble) rows.push(["Trouble", one.name, one.trouble, "bad"]);
  facts($("tun"), rows);
}

// --- exits ---

function showExits(status) {
  const exits = list(status.exits), node = $("exits"), pinned = exits.find((exit) => exit.pinned);
  const rows = exits.length > 1 ? [{auto: true}, ...exits] : exits;
  const key = JSON.stringify(rows.map((exit) => exit.name));
  if (node.dataset.shown !== key) {
    node.dataset.shown = key;
    const legend = node.firstElementChild;
    node.replaceChildren(legend, ...rows.map((exit) => exitRow(exit, rows.length > 1)));
  }
  rows.forEach((exit, index) => {
    const row = node.children[index + 1], input = row.querySelector("input");
    const chosen = exit.auto ? !pinned : exit === pinned;
    if (input && document.activeElement !== input && !input.dataset.asked) input.checked = chosen;
    if (input && input.dataset.asked && chosen) { delete input.dataset.asked; input.checked = true; }
    if (exit.auto) return;
    const carrier = part(exit.carrier), ok = exit.healthy, badge = row.querySelector(".badge");
    badge.hidden = !exit.active;
    badge.className = `badge${ok ? "" : " idle"}`;
    text(badge, ok ? "in use" : "chosen");
    row.classList.toggle("ill", !ok);
    const kind = typeof exit.carrier === "string" ? exit.carrier : carrier.kind;
    const address = String(exit.address ?? carrier.address ?? "").replace(/^wss?:\/\//, "");
    text(row.querySelector(".where"), [address, CARRIERS[kind] ?? kind, `priority\u00a0${exit.priority ?? 1}`].filter(Boolean).join(" · "));
    text(row.querySelector(".why"), ok ? "" : exit.last_error);
    row.querySelector(".dot").className = `dot ${ok ? "good" : "bad"}`;
    text(row.querySelector(".health span"), ok ? "healthy" : exit.link === "up" ? "not answering" : "link down");
    text(row.querySelector(".trip b"), ok ? trip(exit.round_trip) : "–");
  });
}

function exitRow(exit, choice) {
  const row = make(choice ? "label" : "div", {class: "exit"});
  if (choice) {
    const input = make("input", {type: "radio", name: "exit"});
    input.disabled = !token;
    input.addEventListener("change", async () => {
      input.dataset.asked = "1";
      const done = exit.auto ? "Exits are chosen by priority and health again." : `New streams take the exit ${exit.name}.`;
      if (!(await change("/api/exit", {name: exit.auto ? "auto" : exit.name}, done))) delete input.dataset.asked;
    });
    row.append(input);
  } else {
    row.append(make("span"));
  }
  if (exit.auto) {
    row.append(make("span", {}, make("b", {text: "Automatic"})), make("span", {class: "where", text: "by priority, then health and round trip"}));
    return row;
  }
  row.append(
    make("span", {}, make("b", {text: exit.name}), make("span", {class: "badge", text: "in use"})),
    make("span", {class: "where"}),
    make("span", {class: "where why"}),
    make("span", {class: "trip"}, make("b"), make("br"), make("span", {class: "health"}, make("i", {class: "dot", "aria-hidden": "true"}), make("span"))),
  );
  return row;
}

// --- streams ---

const columns = ["target", "to", "rule", "exit", "age", "sent", "received"];
const numeric = new Set(["age", "sent", "received"]);
let streams = [], sortKey = "age", ascending = true, limit = ROWS;
const rows = new Map();           // id -> {row, cells, stream}

function showStreams(now) {
  streams = now;
  drawStreams();
}

function drawStreams() {
  const wanted = $("filter").value.trim().toLowerCase();
  const shown = wanted ? streams.filter((one) => [one.target, one.rule, one.exit, one.to, one.protocol].some((value) => String(value ?? "").toLowerCase().includes(wanted))) : streams.slice();
  const sign = ascending ? 1 : -1, key = sortKey;
  shown.sort((a, b) => sign * (numeric.has(key) ? a[key] - b[key] : String(a[key] ?? "").localeCompare(String(b[key] ?? ""))) || String(a.id).localeCompare(String(b.id)));
  const visible = shown.slice(0, limit), body = $("rows"), kept = new Set(visible.map((one) => one.id));
  for (const [id, entry] of rows) {
    if (!kept.has(id)) {
      keepFocus(entry.row);
      entry.row.remove();
      rows.delete(id);
    }
  }
  let at = body.firstElementChild;
  for (const stream of visible) {
    let entry = rows.get(stream.id);
    if (!entry) rows.set(stream.id, entry = streamRow(stream));
    updateRow(entry, stream);
    if (entry.row === at) at = at.nextElementSibling;
    else body.insertBefore(entry.row, at);
  }
  text($("streams-count"), wanted ? `${shown.length} of ${streams.length}` : streams.length ? many(streams.length, "stream") : "");
  $("empty").hidden = shown.length > 0;
  text($("empty"), streams.length ? "No stream fits the filter." : "No stream is open.");
  $("more").hidden = shown.length <= limit;
  if (shown.length > limit) text($("more"), `Show ${Math.min(ROWS, shown.length - limit)} more of ${shown.length}`);
}

/* A row that goes while somebody stands on it hands the focus to its neighbour. */
function keepFocus(row) {
  if (!row.contains(document.activeElement)) return;
  const next = row.nextElementSibling ?? row.previousElementSibling;
  (next?.querySelector(".close") ?? $("streams")).focus();
}

function streamRow(stream) {
  const cells = columns.map((key) => make("td", {role: "cell", ...(numeric.has(key) ? {class: "number"} : {})}));
  const close = make("button", {type: "button", class: "close", "aria-label": `Close the stream to ${show(stream.target)}`, title: "Close", text: "×"});
  close.disabled = !token;
  close.addEventListener("click", async () => {
    if (close.dataset.asked) return;
    close.dataset.asked = "1";    // not disabled: that would take the focus from it
    await change("/api/streams/close", {id: stream.id}, `The stream to ${stream.target} is closed.`);
    delete close.dataset.asked;
  });
  const target = make("span", {text: stream.target});
  cells[0].append(target);
  cells[0].title = show(stream.target);
  if (stream.protocol === "udp") cells[0].append(make("span", {class: "udp", text: "UDP"}));
  const verdict = String(stream.to).startsWith("exit:") ? "exit-route" : ["tunnel", "direct", "block"].includes(stream.to) ? stream.to : "";
  cells[1].append(make("span", {class: `route ${verdict}`, text: verdict === "exit-route" ? "exit" : stream.to}));
  text(cells[2], stream.rule);
  cells[2].title = show(stream.rule);
  return {row: make("tr", {role: "row"}, ...cells, make("td", {role: "cell"}, close)), cells};
}

function updateRow({cells}, stream) {
  text(cells[3], stream.exit || "–");
  cells[3].classList.toggle("none", !stream.exit);
  text(cells[4], duration(stream.age));
  text(cells[5], size(stream.sent));
  text(cells[6], size(stream.received));
}

function sortBy(key, up) {
  [sortKey, ascending] = [key, up];
  for (const head of document.querySelectorAll("th[data-key]")) {
    if (head.dataset.key === key) head.setAttribute("aria-sort", up ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  $("order").value = key;
  drawStreams();
}
for (const head of document.querySelectorAll("th[data-key]")) {
  const key = head.dataset.key, first = key !== "sent" && key !== "received";
  head.firstElementChild.addEventListener("click", () => sortBy(key, sortKey === key ? !ascending : first));
}
$("order").addEventListener("change", () => sortBy($("order").value, !["sent", "received"].includes($("order").value)));
$("filter").addEventListener("input", () => { limit = ROWS; drawStreams(); });
$("more").addEventListener("click", () => { limit += ROWS; drawStreams(); });
$("reload").addEventListener("click", () => change("/api/reload", {}, "Rules and lists were read again."));

// --- paths and epochs ---

function showPaths(session) {
  const paths = list(session.paths), lane = paths.find((path) => path.kind === "lane");
  text($("paths-text"), lane ? `streams go by ${lane.use === "in use" ? "the lane" : "TCP"}: ${lane.why}` : "");
  ledger("paths", ["Path", "", "", "Round trip", "Sends up to", "Loses", "In flight", "Sent", "Received"], paths.map((path) => [path.use === "in use",
    path.number ?? "–", [CARRIERS[path.kind] ?? path.kind, path.address].filter(Boolean).join(" to "), path.use, trip(path.round_trip),
    path.rate == null ? "–" : `${size(path.rate)}/s`, path.loss == null ? "–" : `${(100 * path.loss).toFixed(1)} %`,
    size(path.in_flight), size(path.bytes_sent), size(path.bytes_received)]));
}

/* Of all exits that have a session: the one in use first, each with its name where there are several. */
function showEpochs(status) {
  const own = {...EXIT(status), session: part(status.session)};
  const sessions = [own, ...list(status.exits).filter((exit) => !exit.active)].filter((exit) => list(part(exit.session).epochs).length);
  const epochs = sessions.flatMap((exit) => exit.session.epochs.map((epoch) => ({...epoch, name: sessions.length > 1 ? `${exit.name} ` : ""})));
  const rotations = sessions.reduce((sum, exit) => sum + (exit.session.rotations ?? 0), 0);
  text($("epochs-text"), epochs.length ? `fresh keys by both exchanges each time; ${many(rotations, "rotation")} so far` : "");
  ledger("epochs", ["Epoch", "", "", "Age", "Lasted", "Sent", "Received"], epochs.map((epoch) => [epoch.current,
    epoch.name + epoch.number, epoch.exchange, epoch.cipher, duration(epoch.since), epoch.current ? "in use" : duration(epoch.lasted), size(epoch.bytes_sent), size(epoch.bytes_received)]));
}

/* The rows of a table: whether each is the present one, and its cells; labels stand before the cells where it is narrow. */
function ledger(id, labels, rows) {
  const body = $(id);
  $(`no-${id}`).hidden = rows.length > 0;
  body.parentElement.hidden = !rows.length;
  while (body.children.length > rows.length) body.lastElementChild.remove();
  while (body.children.length < rows.length) body.append(make("tr", {role: "row"}, ...labels.map((label, index) => make("td", {role: "cell", "data-label": label, ...(index > 2 ? {class: "number"} : {})}))));
  rows.forEach(([current, ...values], index) => {
    const row = body.children[index];
    row.className = current ? "current" : "";
    values.forEach((value, cell) => text(row.children[cell], value));
  });
}

// --- errors ---

function showErrors(errors) {
  const node = $("errors"), shown = JSON.stringify(errors);
  $("no-errors").hidden = errors.length > 0;
  if (node.dataset.shown === shown) return;
  node.dataset.shown = shown;
  node.replaceChildren(...errors.map((error) => make("li", {class: error.level === "error" ? "error" : "warning"},
    make("time", {datetime: new Date(error.at * 1000).toISOString(), text: clock(error.at)}),
    make("b", {text: error.level}),
    make("span", {text: error.text + (error.count > 1 ? ` (${error.count} times)` : "")}))));
}

// --- throughput ---

const samples = [];               // {at, up, down} in bytes a second, oldest first
let before = null;

function showThroughput(status, at) {
  const total = part(status.bytes), device = part(part(status.tun).device);
  const up = (total.sent ?? 0) + (device.read_bytes ?? 0), down = (total.received ?? 0) + (device.written_bytes ?? 0);
  text($("total-up"), size(up));
  text($("total-down"), size(down));
  if (before && at > before.at && at - before.at < 10) {
    const seconds = at - before.at;
    const sample = {at, up: Math.max(0, up - before.up) / seconds, down: Math.max(0, down - before.down) / seconds};
    samples.push(sample);
    rate($("rate-up"), sample.up);
    rate($("rate-down"), sample.down);
  }
  while (samples.length && samples[0].at < at - SECONDS - 2) samples.shift();
  before = {at, up, down};
  drawChart();
}

/* What the program has kept stands for all that this page has seen until then. */
function remember(kept) {
  if (!kept.length) return;
  const last = kept.at(-1)[0], since = samples.filter((one) => one.at > last);
  samples.splice(0, samples.length, ...kept.map(([at, up, down]) => ({at, up, down})), ...since);
}

function rate(node, value) {
  const [number, unit] = parts(value);
  text(node.firstChild ?? node.appendChild(document.createTextNode("")), number);
  if (node.children.length === 0) node.append(make("small"));
  text(node.lastElementChild, `${unit}/s`);
}

/* A round number of bytes a second at or above the highest sample: 1, 2 or 5 times a power of ten, of a unit. */
function ceiling(value) {
  let unit = 1024;
  while (value > unit * 1024) unit *= 1024;
  const inUnit = value / unit, power = 10 ** Math.floor(Math.log10(Math.max(inUnit, 1)));
  return unit * power * [1, 2, 5, 10].find((step) => inUnit <= step * power);
}

function drawChart() {
  const canvas = $("chart"), width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio || 1;
  if (!width) return;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const top = 14, bottom = height - 18, left = 0, right = width, now = before ? before.at : 0;
  const peak = samples.reduce((most, one) => Math.max(most, one.up, one.down), 0), most = ceiling(Math.max(peak, 1024));
  const x = (at) => right - ((now - at) / SECONDS) * (right - left), y = (value) => bottom - (value / most) * (bottom - top);
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  pen.lineWidth = 1;
  for (const share of [0, 0.5, 1]) {
    const line = Math.round(y(most * share)) + 0.5;
    pen.strokeStyle = colour("--line");
    pen.beginPath(); pen.moveTo(left, line); pen.lineTo(right, line); pen.stroke();
  }
  pen.fillStyle = colour("--soft");
  [[600, "left", "10 min ago"], [300, "center", "5 min"], [0, "right", "now"]].forEach(([ago, align, label]) => { pen.textAlign = align; pen.fillText(label, x(now - ago), height - 4); });
  for (const [key, name, filled] of [["down", "--down", 0.14], ["up", "--up", 0.1]]) {
    if (samples.length < 2) continue;
    pen.beginPath();
    samples.forEach((one, index) => (index ? pen.lineTo(x(one.at), y(one[key])) : pen.moveTo(x(one.at), y(one[key]))));
    pen.strokeStyle = pen.fillStyle = colour(name);
    pen.lineWidth = 1.75; pen.lineJoin = "round";
    pen.stroke();
    pen.lineTo(x(samples.at(-1).at), bottom); pen.lineTo(x(samples[0].at), bottom); pen.closePath();
    pen.globalAlpha = filled; pen.fill(); pen.globalAlpha = 1;
  }
  pen.strokeStyle = colour("--card"); pen.fillStyle = colour("--soft"); pen.lineWidth = 4; pen.textAlign = "left";
  for (const share of [0.5, 1]) {
    const label = `${size(most * share).replace(/\.0+ /, " ")}/s`, line = Math.round(y(most * share)) - 4;
    pen.strokeText(label, left, line);
    pen.fillText(label, left, line);
  }
  const last = samples.at(-1);
  if (last) canvas.setAttribute("aria-label", `Throughput of the last ten minutes: now ${size(last.down)} a second down, ${size(last.up)} up; at most ${size(peak)} a second`);
}
addEventListener("resize", drawChart);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawChart);

// --- begin ---

permit();
sortBy("age", true);
drawChart();
listen();
