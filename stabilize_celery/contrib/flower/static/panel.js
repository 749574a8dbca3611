// Everything about one stage, or about the workflow while no stage is chosen.

import { badge, duration, el, linkTo, moment } from "./common.js";

const text = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
const isEmpty = (value) => !value || (typeof value === "object" && !Object.keys(value).length);

const section = (title, open, ...children) =>
  el("details", { class: "wf-section", open, "data-section": title }, el("summary", {}, title), ...children);

const json = (value) => el("pre", { class: "wf-pre", tabindex: "0" }, JSON.stringify(value, null, 2));

function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: "wf-facts" }, shown.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function errorBlock(error) {
  return el("div", { class: "wf-error" },
    el("p", {}, el("b", {}, error.type ? `${error.type}: ` : ""), error.error || "",
      error.where !== "stage" ? el("span", { class: "wf-quiet" }, ` (last failed attempt of ${error.where})`) : null),
    error.traceback ? el("details", {}, el("summary", {}, "Traceback"),
      el("pre", { class: "wf-pre", tabindex: "0" }, error.traceback)) : null);
}

const ORIGINS = { own: "this stage", parent: "context of", output: "output of", combined: "combined for" };

function seenTable(detail, choose) {
  const rows = Object.entries(detail.sees).sort(([a], [b]) => a.localeCompare(b)).map(([key, value]) => {
    const origin = detail.origins[key];
    const from = origin.kind === "own" ? "this stage" : [`${ORIGINS[origin.kind]} `, el("button", {
      type: "button", class: "btn btn-link btn-sm p-0 align-baseline", click: () => choose(origin.stage_id),
    }, origin.stage || origin.stage_id)];
    return el("tr", { "data-key": key }, el("th", { scope: "row" }, key),
      el("td", {}, el("pre", { class: "wf-value" }, text(value))), el("td", {}, from));
  });
  return el("div", { class: "wf-scroll" }, el("table", { class: "table table-sm" },
    el("thead", {}, el("tr", {}, ["Key", "Value", "From"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows)));
}

/** A timeline; `names` says what stages are called. */
export function timeline(entries, names) {
  return el("ol", { class: "wf-timeline" }, entries.map((entry) => el("li", { "data-status": entry.to || entry.from || "" },
    el("span", { class: "wf-quiet" }, moment(entry.at)), " ",
    el("b", {}, [names ? names(entry.stage_id) : "", entry.event].filter(Boolean).join(" · ")), " ",
    entry.to ? badge(entry.to) : null,
    entry.reason ? el("div", {}, entry.reason) : null,
    entry.actor ? el("div", { class: "wf-quiet" }, `by ${entry.actor}`) : null,
    entry.worker ? el("div", { class: "wf-quiet" }, `on ${entry.worker}`) : null)));
}

function waits(message) {
  const owner = message.lease_owner ? `runs on ${message.lease_owner}` : `due ${moment(message.due_at)}`;
  return el("li", {}, `${message.type} ${owner}`, message.attempts ? `, attempt ${message.attempts}` : "");
}

export function stagePanel(detail, history, { now, buttons, choose, close, more }) {
  const tasks = detail.tasks.map((task) => el("tr", {}, el("th", { scope: "row" }, task.name), el("td", {}, task.type),
    el("td", {}, badge(task.status)), el("td", {}, duration(task.start_time, task.end_time, now)),
    el("td", {}, String(task.attempts))));
  return [
    el("div", { class: "wf-toolbar" },
      el("h2", { class: "wf-subtitle", "data-stage": detail.id }, detail.name),
      el("button", { type: "button", class: "btn-close", "aria-label": "Back to the workflow", click: close })),
    el("p", {}, badge(detail.status), detail.phase ? ` ${detail.phase.replace("_", " ")}` : ""),
    el("div", { class: "wf-actions", role: "group", "aria-label": "Stage actions" }, buttons),
    detail.errors.map(errorBlock),
    facts([["Type", detail.type], ["Started", moment(detail.start_time)], ["Ended", moment(detail.end_time)],
      ["Took", duration(detail.start_time, detail.end_time, now)], ["Attempts", String(detail.attempts)],
      ["Pass", String(detail.generation + 1)], ["Ref", el("code", {}, detail.ref_id)]]),
    detail.waits_for.length ? section("Waits for", true, el("ul", {}, detail.waits_for.map(waits))) : null,
    detail.signals.length ? section("Signals that came early", true, json(detail.signals)) : null,
    section("Tasks", true, el("div", { class: "wf-scroll" }, el("table", { class: "table table-sm" },
      el("thead", {}, el("tr", {}, ["Task", "Type", "Status", "Took", "Attempts"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, tasks)))),
    section("Own context", false, isEmpty(detail.own_context) ? el("p", { class: "wf-quiet" }, "Empty.") : json(detail.own_context)),
    section("What it sees", false, detail.problem ? el("p", { class: "wf-error" }, detail.problem) : null,
      isEmpty(detail.sees) ? el("p", { class: "wf-quiet" }, "Nothing yet; what a stage sees is known once it starts.")
        : seenTable(detail, choose)),
    section("Outputs", true, isEmpty(detail.outputs) ? el("p", { class: "wf-quiet" }, "None.") : json(detail.outputs)),
    section("History", false, timeline(history.history),
      history.next ? el("button", { type: "button", class: "btn btn-sm btn-link", click: more }, "More") : null),
  ];
}

export function workflowPanel(workflow, history, { names, more }) {
  return [
    el("h2", { class: "wf-subtitle" }, "Workflow"),
    facts([["Id", el("code", {}, workflow.id)], ["Application", workflow.application],
      ["Made", moment(workflow.created_at)], ["Started by", workflow.started_by],
      ["Configuration", workflow.pipeline_config_id], ["Canceled by", workflow.canceled_by],
      ["Reason", workflow.cancellation_reason], ["Paused by", workflow.paused_by],
      ["Part of", workflow.parent_workflow_id && linkTo(workflow.parent_workflow_id, workflow.parent_workflow_id)]]),
    section("Context", false, isEmpty(workflow.context) ? el("p", { class: "wf-quiet" }, "Empty.") : json(workflow.context)),
    section("Trigger", false, json(workflow.trigger)),
    section("History", true, timeline(history.history, names),
      history.next ? el("button", { type: "button", class: "btn btn-sm btn-link", click: more }, "More") : null),
  ];
}

/** Show it, with the same sections open and the same place in sight as before. */
export function show(panel, children) {
  const open = new Map([...panel.querySelectorAll("details[data-section]")].map((each) => [each.dataset.section, each.open]));
  const same = panel.querySelector("h2")?.dataset.stage === children.flat().find((each) => each?.querySelector)
    ?.querySelector?.("h2")?.dataset.stage;
  const { scrollTop } = panel;
  const focus = document.activeElement && panel.contains(document.activeElement) ? document.activeElement.textContent : null;
  panel.replaceChildren(...children.flat().filter(Boolean));
  for (const each of panel.querySelectorAll("details[data-section]")) {
    if (open.has(each.dataset.section)) each.open = open.get(each.dataset.section);
  }
  if (same) panel.scrollTop = scrollTop;
  if (focus !== null) {
    [...panel.querySelectorAll("button, summary, a")].find((each) => each.textContent === focus)?.focus({ preventScroll: true });
  }
}
