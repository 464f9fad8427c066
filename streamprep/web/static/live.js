// Keeps the page as the server would draw it now. Without this script everything works, but stands still.
//
// The server tells, by server-sent events, that something is new; the page is fetched again, and what differs in the
// parts marked data-live is altered in place, so that focus, selection and opened details stay. What the server sends
// is its own escaped HTML; a text never becomes markup here.

const connection = document.getElementById("connection");
let loaded = performance.now();
let source = null;
let fetching = false;
let again = false;
let stale = false;
let known = null;
let planned;
let renewed = -Infinity;
const overview = location.pathname === "/";
const PACE = overview ? 1000 : 5000;
const RETRY = 5000;
const PATIENCE = 20000;

function sameKind(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName
    && (one.nodeType !== Node.ELEMENT_NODE || (one.id === other.id && one.dataset?.key === other.dataset?.key));
}

function alter(shown, wanted) {
  if (shown.nodeType !== Node.ELEMENT_NODE) {
    if (shown.data !== wanted.data) shown.data = wanted.data;
    return;
  }
  for (const { name } of [...shown.attributes]) {
    if (!wanted.hasAttribute(name) && !(name === "open" && shown.nodeName === "DETAILS")) shown.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (shown.getAttribute(name) !== value && !(name === "hidden" && shown.nodeName === "BUTTON")) shown.setAttribute(name, value);
  }
  if (shown.classList.contains("copy")) return;
  const has = [...shown.childNodes];
  wanted.childNodes.forEach((child, place) => {
    const old = has[place];
    if (old && sameKind(old, child)) alter(old, child);
    else if (old) old.replaceWith(document.importNode(child, true));
    else shown.append(document.importNode(child, true));
  });
  has.slice(wanted.childNodes.length).forEach((rest) => rest.remove());
}

async function renew(address = location.href) {
  if (fetching) { again = true; return; }
  fetching = true;
  renewed = performance.now();
  try {
    const answer = await fetch(address, { credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (answer.status === 401) { location.reload(); return; }
    if (!answer.ok && answer.status !== 404) throw new Error(`status ${answer.status}`);
    const wanted = new DOMParser().parseFromString(await answer.text(), "text/html");
    loaded = performance.now();
    for (const part of document.querySelectorAll("[data-live]")) {
      const new_ = wanted.getElementById(part.id);
      if (new_) alter(part, new_);
    }
    document.title = wanted.title;
    if (stale) { stale = false; connection.textContent = ""; }
    showButtons();
    tick();
  } catch {
    stale = true;
    connection.textContent = "the dashboard does not answer, what is shown is older; trying again";
    setTimeout(soon, RETRY);
  } finally {
    fetching = false;
    if (again) { again = false; soon(); }
  }
}

// Fetched at most so often, and but for the overview only where what it shows is other than it was.
function soon() {
  clearTimeout(planned);
  planned = setTimeout(() => renew(), Math.max(0, renewed + PACE - performance.now()));
}

function heard(said) {
  const now = overview ? said.version : `${said.rows} ${said.daemon} ${said.mode}`;
  if (known === now) {
    loaded = performance.now();
    for (const part of document.querySelectorAll("[data-age]")) part.dataset.age = said.age;
    return;
  }
  known = now;
  soon();
}

// --- ages go on between two words of the daemon ---

function span(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  const hours = Math.floor(whole / 3600);
  return hours < 24 ? `${hours} h ${two(Math.floor(whole / 60) % 60)} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function tick() {
  const since = (performance.now() - loaded) / 1000;
  for (const part of document.querySelectorAll("[data-age]")) part.textContent = span(Number(part.dataset.age) + since);
}

// --- events ---

function listen() {
  if (source || document.hidden) return;
  source = new EventSource("/events");
  source.addEventListener("open", () => { if (!stale) connection.textContent = ""; });
  source.addEventListener("status", (event) => heard(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    connection.textContent = "no connection to the dashboard, trying again";
    if (source?.readyState === EventSource.CLOSED) { hush(); setTimeout(listen, 10000); }
  });
}

function hush() {
  source?.close();
  source = null;
}

// Browsers allow few connections to one server: only what is looked at keeps one.
document.addEventListener("visibilitychange", () => (document.hidden ? hush() : listen()));
addEventListener("pagehide", hush);
addEventListener("pageshow", listen);

// --- copying ---

function showButtons() {
  for (const button of document.querySelectorAll("button.copy[hidden]")) button.hidden = false;
}

async function copy(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch { // not allowed, as where the page came neither by https nor from this machine
    getSelection().selectAllChildren(code);
    if (!document.execCommand("copy")) return;
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button.copy");
  if (button) copy(button);
});

// --- searching as one types ---

const search = document.getElementById("search");
if (search) {
  let typed;
  const find = () => {
    clearTimeout(planned);
    const address = `/items?${new URLSearchParams(new FormData(search))}`;
    history.replaceState(null, "", address);
    renew(address);
  };
  search.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(find, 200); });
  search.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typed); find(); });
}

showButtons();
setInterval(tick, 1000);
listen();
