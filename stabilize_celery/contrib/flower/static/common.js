// What every page needs: fetching, building elements without ever parsing text as HTML, times.

const app = document.getElementById("workflows-app");
export const pages = app.dataset.pages;
export const whyNot = app.dataset.whyNot;

const SYMBOLS = {
  NOT_STARTED: "○", RUNNING: "▶", PAUSED: "‖", SUSPENDED: "◌", BUFFERED: "◔", REDIRECT: "↷", SUCCEEDED: "✔",
  SKIPPED: "»", FAILED_CONTINUE: "!", TERMINAL: "✘", STOPPED: "■", CANCELED: "⊘",
};
export const STATUSES = Object.keys(SYMBOLS);
export const symbol = (status) => SYMBOLS[status] || "?";

/** An element. Attributes that are functions are listeners; children are elements or text, never HTML. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export const badge = (status) => el("span", { class: "wf-badge", "data-status": status }, `${symbol(status)} ${status}`);

export const linkTo = (id, ...children) => el("a", { href: `${pages}/${encodeURIComponent(id)}` }, ...children);

export class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options) {
  let answer;
  try {
    // With the origin, because an address with a name and password in it cannot be fetched from.
    answer = await fetch(location.origin + app.dataset.data + path, { credentials: "same-origin", ...options });
  } catch {
    throw new Problem("Flower cannot be reached", 0);
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(body.error || `${answer.status} ${answer.statusText}`, answer.status);
  return body;
}

/** Read data; parameters that are empty are left out. */
export function read(path, parameters = {}) {
  const chosen = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(chosen).toString();
  return ask(path + (query && `?${query}`), {});
}

export function post(path, body) {
  const token = document.cookie.match(/(?:^|;\s*)_xsrf=([^;]*)/);
  return ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-XSRFToken": token ? decodeURIComponent(token[1]) : "" },
    body: JSON.stringify(body),
  });
}

/** Say what is wrong, or with nothing to say that all is well again. */
export function problem(message) {
  const place = document.getElementById("wf-problem");
  place.textContent = message || "";
  place.classList.toggle("d-none", !message);
}

export const moment = (text) => (text ? new Date(text).toLocaleString(undefined, { hour12: false }) : "");

export function duration(start, end, now) {
  if (!start) return "";
  const seconds = Math.max(0, ((end ? Date.parse(end) : now) - Date.parse(start)) / 1000);
  if (seconds < 9.995) return `${seconds.toFixed(2)}s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)}s`;
  const whole = Math.round(seconds);
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}h ${two(Math.floor((whole % 3600) / 60))}m`;
  return `${Math.floor(whole / 86400)}d ${two(Math.floor((whole % 86400) / 3600))}h`;
}

/** Call `look` again and again while the page can be seen and `wanted` says so; `poke` looks at once. */
export function whileVisible(look, wanted, pause = () => 1000) {
  let timer = null;
  let busy = false;
  let again = false;
  const plan = () => {
    clearTimeout(timer);
    timer = !document.hidden && wanted() ? setTimeout(run, pause()) : null;
  };
  async function run() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      await look();
      problem("");
    } catch (error) {
      problem(error.message);
    }
    busy = false;
    if (again) {
      again = false;
      run();
    } else plan();
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : wanted() && run()));
  plan();
  return run;
}
