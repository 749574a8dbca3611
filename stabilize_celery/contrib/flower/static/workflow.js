// One workflow: keeps what the database says, and lets the graph, the table and the panel show it.

import { button, stageActions, workflowActions } from "./actions.js";
import { badge, duration, el, moment, problem, read, STATUSES, symbol, whileVisible } from "./common.js";
import { Graph } from "./graph.js";
import { show, stagePanel, workflowPanel } from "./panel.js";

const FEW = 200;
const id = document.getElementById("wf-one").dataset.workflow;
const $ = (name) => document.getElementById(name);
const panel = $("wf-panel");

const state = { workflow: null, stages: new Map(), edges: new Map(), jumps: [], mark: "", chosen: null, everything: false };
// After an action the workflow is looked at for a while, even if it had ended: a restart revives it.
let lookUntil = 0;
let offset = 0;
let shownFor = "";
let historyLimit = 200;

const now = () => Date.now() + offset;
const describe = (stage) => [duration(stage.start_time, stage.end_time, now()),
  stage.attempts > 1 ? `${stage.attempts} attempts` : "", stage.generation ? `pass ${stage.generation + 1}` : ""]
  .filter(Boolean).join(" · ") || stage.status.toLowerCase().replace("_", " ");

const graph = new Graph($("wf-graph"), {
  chosen: (stageId) => choose(stageId),
  open: () => panel.focus(),
  spoken: (text) => { $("wf-spoken").textContent = text; },
});

function take(answer) {
  state.mark = answer.mark;
  if (!answer.changed) return [];
  state.workflow = answer.workflow;
  state.jumps = answer.jumps;
  offset = Date.parse(answer.workflow.now) - Date.now();
  const present = new Set(answer.synthetic_ids);
  for (const stage of [...state.stages.values()]) {
    if (stage.parent_id && !present.has(stage.id)) {
      state.stages.delete(stage.id);
      for (const [key, edge] of state.edges) if (edge.includes(stage.id)) state.edges.delete(key);
    }
  }
  for (const stage of answer.stages) state.stages.set(stage.id, stage);
  for (const edge of answer.edges) state.edges.set(edge.join(), edge);
  return answer.stages.map((stage) => stage.id);
}

async function look() {
  const first = !state.mark;
  const changed = take(await read(`/${id}`, { since: state.mark }));
  render();
  if (first) {
    performance.mark("wf-drawn");
    readAddress();
  }
  const current = state.chosen || "";
  if (first || shownFor !== current || (changed.length && (!current || changed.includes(current)))) await renderPanel();
}

const goesOn = () => !state.workflow || !state.workflow.complete || Date.now() < lookUntil;
const run = whileVisible(look, goesOn, () => (state.stages.size > 500 ? 2000 : 1000));
const done = () => {
  lookUntil = Date.now() + 15000;
  run();
};

function render() {
  const { workflow } = state;
  document.title = `${workflow.name} ${symbol(workflow.status)} · Flower`;
  $("wf-name").textContent = workflow.name || "(no name)";
  if ($("wf-status").textContent !== badge(workflow.status).textContent) $("wf-status").replaceChildren(badge(workflow.status));
  $("wf-facts").textContent = [workflow.application, workflow.id, `made ${moment(workflow.created_at)}`,
    workflow.start_time ? `took ${duration(workflow.start_time, workflow.end_time, now())}` : ""].filter(Boolean).join(" · ");
  const wanted = workflowActions(workflow);
  const there = [...$("wf-actions").children].map((each) => each.dataset.action);
  if (wanted.join() !== there.join()) $("wf-actions").replaceChildren(...wanted.map((name) => button(name, id, null, done)));
  graph.draw(state.stages, [...state.edges.values()], state.jumps, describe);
  renderLegend();
  renderTable();
}

function renderLegend() {
  const counts = new Map();
  for (const stage of state.stages.values()) counts.set(stage.status, (counts.get(stage.status) || 0) + 1);
  const wanted = STATUSES.filter((status) => counts.has(status));
  $("wf-legend").replaceChildren(...wanted.map((status) =>
    el("span", { class: "wf-badge", "data-status": status }, `${symbol(status)} ${status} ${counts.get(status)}`)));
}

function stageRow(stage) {
  const inside = depth(stage);
  const name = el("button", {
    type: "button", class: "btn btn-link btn-sm wf-stage-name", "data-stage": stage.id,
    "aria-pressed": String(stage.id === state.chosen), style: inside ? `margin-left:${inside}rem` : null,
    click: () => choose(stage.id, true),
  }, stage.name || stage.type);
  return el("tr", { "data-stage-row": stage.id, class: stage.id === state.chosen ? "table-active" : null },
    el("th", { scope: "row" }, name), el("td", {}, badge(stage.status)), el("td", { class: "wf-wide" }, stage.type),
    el("td", {}, duration(stage.start_time, stage.end_time, now())),
    el("td", { class: "wf-wide" }, stage.attempts ? String(stage.attempts) : ""));
}

function depth(stage) {
  let found = 0;
  for (let each = state.stages.get(stage.parent_id); each; each = state.stages.get(each.parent_id)) found += 1;
  return found;
}

/** Stages in the order they were made with, each with its synthetic stages under it. */
function inOrder() {
  const inside = new Map();
  for (const stage of state.stages.values()) {
    const parent = state.stages.has(stage.parent_id) ? stage.parent_id : null;
    if (!inside.has(parent)) inside.set(parent, []);
    inside.get(parent).push(stage);
  }
  const found = [];
  const walk = (parent) => (inside.get(parent) || []).forEach((stage) => {
    found.push(stage);
    walk(stage.id);
  });
  walk(null);
  return found;
}

function renderTable() {
  const wanted = $("wf-stage-filter").value.trim().toLowerCase();
  const matching = inOrder().filter((stage) =>
    !wanted || [stage.name, stage.ref_id, stage.type, stage.status].some((text) => text.toLowerCase().includes(wanted)));
  const shown = state.everything ? matching : matching.slice(0, FEW);
  const focused = document.activeElement?.dataset?.stage;
  const body = $("wf-stages");
  body.replaceChildren(...shown.map(stageRow));
  if (focused && !body.contains(document.activeElement)) body.querySelector(`button[data-stage="${focused}"]`)?.focus({ preventScroll: true });
  $("wf-all-stages").hidden = shown.length === matching.length;
  $("wf-all-stages").textContent = `Show all ${matching.length} stages`;
}

async function renderPanel() {
  const stageId = state.chosen;
  const limit = historyLimit;
  const more = () => {
    historyLimit = Math.min(historyLimit * 5, 5000);
    renderPanel();
  };
  let children;
  if (stageId) {
    const [detail, history] = await Promise.all([
      read(`/${id}/stages/${stageId}`), read(`/${id}/history`, { stage: stageId, limit })]);
    const names = stageActions(state.workflow, detail, [detail.type, ...detail.tasks.map((task) => task.type)]);
    children = stagePanel(detail, history, {
      now: now(), buttons: names.map((name) => button(name, id, detail, done)), choose: (other) => choose(other, true),
      close: () => choose(null), more,
    });
  } else {
    const history = await read(`/${id}/history`, { limit });
    children = workflowPanel(state.workflow, history, { names: (each) => state.stages.get(each)?.name || "", more });
  }
  if (stageId !== state.chosen) return;
  shownFor = stageId || "";
  show(panel, children);
}

function choose(stageId, focus = false) {
  if (stageId !== null && !state.stages.has(stageId)) return;
  state.chosen = stageId;
  historyLimit = 200;
  history.replaceState(null, "", stageId ? `#${stageId}` : location.pathname);
  graph.select(stageId || "");
  for (const row of document.querySelectorAll("[data-stage-row]")) {
    const chosen = row.dataset.stageRow === stageId;
    row.classList.toggle("table-active", chosen);
    row.querySelector("button").setAttribute("aria-pressed", String(chosen));
  }
  renderPanel().then(() => focus && panel.focus(), (error) => problem(error.message));
}

function readAddress() {
  const wanted = location.hash.slice(1);
  if (wanted && state.stages.has(wanted)) {
    state.chosen = wanted;
    graph.select(wanted);
    renderTable();
  }
}

$("wf-fit").addEventListener("click", () => graph.fit());
$("wf-in").addEventListener("click", () => graph.zoom(1.3));
$("wf-out").addEventListener("click", () => graph.zoom(1 / 1.3));
$("wf-stage-filter").addEventListener("input", renderTable);
$("wf-all-stages").addEventListener("click", () => {
  state.everything = true;
  renderTable();
});
run();
