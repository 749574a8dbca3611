import { badge, duration, el, linkTo, moment, problem, read, STATUSES, symbol, whileVisible } from "./common.js";

const form = document.getElementById("wf-filter");
const rows = document.getElementById("wf-rows");
const older = document.getElementById("wf-older");
const newest = document.getElementById("wf-newest");
const state = document.getElementById("wf-state");
let before = "";
let next = null;

const chosen = () => Object.fromEntries(new FormData(form));

function row(workflow) {
  const name = linkTo(workflow.id, workflow.name || "(no name)");
  return el("tr", { "data-id": workflow.id },
    el("td", {}, name, el("div", { class: "wf-quiet wf-narrow-only" }, workflow.application)),
    el("td", {}, badge(workflow.status)),
    el("td", { class: "wf-wide" }, workflow.application),
    el("td", {}, moment(workflow.created_at)),
    el("td", { class: "wf-wide" }, duration(workflow.start_time, workflow.end_time, Date.parse(workflow.now))),
    el("td", { class: "wf-wide" }, el("code", {}, workflow.id)));
}

async function load() {
  const page = await read("", { ...chosen(), before, limit: 50 });
  next = page.next;
  const focused = document.activeElement?.closest?.("tr[data-id]")?.dataset.id;
  rows.replaceChildren(...page.workflows.map(row));
  if (focused) rows.querySelector(`tr[data-id="${focused}"] a`)?.focus();
  older.hidden = !next;
  newest.hidden = !before;
  state.textContent = page.workflows.length ? "" : "No workflow matches.";
}

async function count() {
  const { status, ...others } = chosen();
  const found = await read("/counts", others);
  const buttons = STATUSES.filter((each) => found.counts[each] || each === status).map((each) =>
    el("button", {
      type: "button", class: "wf-count", "data-status": each, "aria-pressed": String(each === status),
      click: () => choose(each === status ? "" : each),
    }, `${symbol(each)} ${each} `, el("b", {}, `${found.counts[each]}${found.more.includes(each) ? "+" : ""}`)));
  document.getElementById("wf-counts").replaceChildren(...buttons);
  document.getElementById("wf-applications").replaceChildren(
    ...found.applications.map((name) => el("option", { value: name })));
}

function choose(status) {
  form.elements.status.value = status;
  find();
}

/** Start from the newest again, with the filter in the address so that it can be passed on. */
function find() {
  before = "";
  show();
}

async function show() {
  const query = new URLSearchParams(Object.entries({ ...chosen(), before }).filter(([, value]) => value)).toString();
  history.replaceState(null, "", query ? `?${query}` : location.pathname);
  await refresh();
}

const refresh = whileVisible(async () => {
  await Promise.all([load(), count()]);
}, () => !before, () => 5000);

for (const [name, value] of new URLSearchParams(location.search)) {
  if (name === "before") before = value;
  else if (form.elements[name]) form.elements[name].value = value;
}
form.addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});
form.addEventListener("reset", () => setTimeout(find));
form.elements.status.addEventListener("change", find);
older.addEventListener("click", () => {
  before = next;
  show();
});
newest.addEventListener("click", find);
refresh().catch((error) => problem(error.message));
