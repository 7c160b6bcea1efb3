// Shows what /status says as JSON, asked for every 2 s while the page is seen. Text of backends becomes text nodes only.

const PACE = 2000; // ms from one answer to the next question
const PATIENCE = 10000; // ms for an answer
const CHANGES_KEPT = 20;
const NONE = "–";
const STATUS = new URL("status", import.meta.url); // wherever the application is mounted

const TONES = { ready: "good", recovering: "warn", degraded: "bad" };
const FIGURES = [
  ["Sessions live", (told) => told.manager.live],
  ["Sessions asleep", (told) => told.manager.hibernated],
  ["Opening", (told) => told.manager.opening],
  ["Calls in flight", (told) => told.manager.in_flight],
  ["Requests in flight", (told) => told.front.in_flight],
  ["Requests refused", (told) => told.front.refused],
  ["Sessions refused", (told) => told.manager.refused],
  ["Uptime", (told) => duration(told.uptime)],
];
const NUMBERS = [
  ["In flight", (backend) => backend.in_flight],
  ["Calls", (backend) => backend.calls],
  ["Errors", (backend) => backend.errors],
  ["p50", (backend) => latency(backend, "p50")],
  ["p90", (backend) => latency(backend, "p90")],
  ["p99", (backend) => latency(backend, "p99")],
];

// --- texts

function duration(seconds) {
  if (seconds < 60) return `${Math.floor(Math.max(0, seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function latency(backend, name) {
  if (backend.latency === null) return NONE;
  const ms = backend.latency[name] * 1000;
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms >= 10 ? Math.round(ms) : ms.toFixed(1)} ms`;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function age(from, told) {
  return duration((Date.parse(told.at) - Date.parse(from)) / 1000);
}

function clock(date) {
  return date.toLocaleTimeString([], { hour12: false });
}

// --- elements

const at = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function setText(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

// A word with a sign of its own form: the colour is never the only difference.
function showState(element, sign, tone, text) {
  if (element.dataset.shown === sign + text) return;
  element.dataset.shown = sign + text;
  element.dataset.tone = tone;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#sign-${sign}`);
  svg.append(use);
  element.replaceChildren(svg, text);
}

// Brings the children of an element in line with a list: those that stay are the same elements, so that focus, selection
// and the place of a reader stay, too.
function keep(parent, shown, items, keyOf, build) {
  const wanted = new Set(items.map(keyOf));
  for (const [key, entry] of shown) {
    if (!wanted.has(key)) {
      entry.element.remove();
      shown.delete(key);
    }
  }
  items.forEach((item, place) => {
    const key = keyOf(item);
    if (!shown.has(key)) shown.set(key, build(item));
    const { element, update } = shown.get(key);
    if (parent.children[place] !== element) parent.insertBefore(element, parent.children[place] ?? null);
    update(item);
  });
}

// --- one backend, one session

// The roles are those that the elements have by themselves, and lose in browsers when a narrow page lays them out.
function backendRow(first, now) {
  const state = make("span", { class: "state" });
  const since = make("span", { class: "muted" });
  const numbers = NUMBERS.map(([label]) => make("td", { class: "number", role: "cell", "data-label": label }));
  const failure = make("td", { class: "failure", role: "cell" });
  const element = make(
    "tr",
    { role: "row" },
    make("th", { scope: "row", role: "rowheader" }, first.id),
    make("td", { class: "condition", role: "cell" }, state, " ", since),
    ...numbers,
    failure,
  );
  function update(backend) {
    if (isFailing(backend)) showState(state, "recovering", "warn", "ready, not reached");
    else showState(state, backend.state, TONES[backend.state] ?? "", backend.state);
    setText(since, `for ${age(isFailing(backend) ? backend.failing_since : backend.since, now())}`);
    NUMBERS.forEach(([, value], place) => {
      setText(numbers[place], value(backend));
      numbers[place].toggleAttribute("data-none", value(backend) === NONE); // left out where there is little room
    });
    const { last_failure: last } = backend;
    const is = backend.state === "ready" && !isFailing(backend) ? "earlier: " : "";
    setText(failure, last === null ? "" : `${is}${last.reason}: ${last.detail}`);
    failure.classList.toggle("muted", is !== "");
  }
  return { element, update };
}

function sessionPanel(first, now) {
  const rows = new Map();
  const client = make("span", { class: "muted" });
  const caption = make("caption");
  const body = make("tbody", { role: "rowgroup" });
  const heads = ["Backend", "State", ...NUMBERS.map(([label]) => label), "Latest failure"].map((label, place) =>
    make("th", { scope: "col", role: "columnheader", class: place > 1 && place < 8 ? "number" : "" }, label),
  );
  const table = make(
    "table",
    { role: "table" },
    caption,
    make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads)),
    body,
  );
  const element = make(
    "article",
    { class: "session", "aria-label": first.tag },
    make("header", {}, make("h3", {}, first.tag), client),
    table,
  );
  function update(session) {
    const backends = session.backends.filter((backend) => backend.state !== "removed");
    const era = session.client_era === null ? "made by the application" : `${session.client_era} client`;
    setText(client, `${era} · ${session.state}, ${age(session.created_at, now())} old · ${count(session.in_flight, "call")} in flight`);
    setText(caption, `${count(backends.length, "backend")}, ${notReady(backends).length} not ready`);
    keep(body, rows, backends, (backend) => backend.id, (backend) => backendRow(backend, now));
  }
  return { element, update };
}

function isAway(state) {
  return !["ready", "stopped", "removed"].includes(state);
}

// Connected, and the latest calls did not reach it: it is not away for the session yet.
function isFailing(backend) {
  return backend.state === "ready" && backend.failing_since !== undefined;
}

function notReady(backends) {
  return backends.filter((backend) => isAway(backend.state) || isFailing(backend));
}

// --- the page

const panels = new Map();
const states = new Map(); // of backends as last told, for the list of changes
let told = null;
let timer = null;
let isAsking = false;
let isPaused = false;

function note(text) {
  at("unchanged").hidden = true;
  const list = at("changes");
  list.prepend(make("li", {}, make("time", {}, clock(new Date())), make("span", {}, text)));
  while (list.children.length > CHANGES_KEPT) list.lastElementChild.remove();
}

function noteChanges() {
  const isFirst = states.size === 0;
  const now = new Map();
  for (const session of told.sessions) {
    for (const backend of session.backends) {
      const key = `${session.tag} ${backend.id}`;
      now.set(key, backend.state);
      const before = states.get(key);
      // A backend that is away goes back and forth between two states for each attempt to reach it.
      if (!isFirst && before !== undefined && isAway(before) !== isAway(backend.state)) {
        note(`${backend.id} of ${session.tag}: ${before} → ${backend.state}`);
      }
    }
  }
  states.clear();
  for (const [key, state] of now) states.set(key, state);
}

function summarize() {
  const all = told.sessions.flatMap((session) => session.backends.filter((backend) => backend.state !== "removed"));
  const away = notReady(all);
  const names = [...new Set(away.map((backend) => backend.id))];
  const shown = names.slice(0, 5).join(", ") + (names.length > 5 ? ", …" : "");
  const some = `${away.length} of ${count(all.length, "backend connection")} not ready: ${shown}`;
  if (away.length > 0) showState(at("summary"), "degraded", "bad", some);
  else if (all.length > 0) showState(at("summary"), "ready", "good", "All backends are ready.");
  else showState(at("summary"), "stopped", "", "No backend is in use.");
  document.title = away.length > 0 ? `${away.length} not ready · trio-vmcp` : "trio-vmcp";
}

function show() {
  setText(at("version"), told.version);
  if (told.ready) showState(at("server"), "ready", "good", "takes requests");
  else showState(at("server"), "degraded", "bad", "takes no requests");
  setText(at("at"), clock(new Date(told.at)));
  at("at").dateTime = told.at;
  FIGURES.forEach(([label, value], place) => {
    const list = at("figures");
    if (list.children.length <= place) list.append(make("div", {}, make("dt", {}, label), make("dd")));
    setText(list.children[place].lastElementChild, value(told));
  });
  summarize();
  keep(at("sessions"), panels, told.sessions, (session) => session.tag, (session) => sessionPanel(session, () => told));
  at("none").hidden = told.sessions.length > 0;
  at("omitted").hidden = told.sessions_omitted === 0;
  setText(at("omitted"), `${count(told.sessions_omitted, "older session")} not shown.`);
  noteChanges();
}

function showProblem(text) {
  at("problem").hidden = text === "";
  setText(at("problem"), text);
  if (text !== "") showState(at("server"), "degraded", "bad", "not known");
}

async function ask() {
  timer = null;
  isAsking = true;
  try {
    const options = { headers: { accept: "application/json" }, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) };
    const answer = await fetch(STATUS, options);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    told = await answer.json();
    showProblem("");
    show();
  } catch (error) {
    const why = error.name === "TimeoutError" ? `none within ${PATIENCE / 1000} s` : error.message;
    showProblem(`No answer of the server (${why}). Below is its last one.`);
  }
  isAsking = false;
  plan(PACE);
}

function plan(delay) {
  if (timer === null && !isAsking && !isPaused && !document.hidden) timer = setTimeout(ask, delay);
}

function stop() {
  clearTimeout(timer);
  timer = null;
}

document.addEventListener("visibilitychange", () => (document.hidden ? stop() : plan(0)));
at("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  at("pause").setAttribute("aria-pressed", String(isPaused));
  setText(at("pace"), isPaused ? ", paused" : ", every 2 s");
  if (isPaused) stop();
  else plan(0);
});
plan(0);
