// Buttons for what can be done, and the dialog that asks once more.

import { el, post, problem, whyNot } from "./common.js";

const ASKS = {
  cancel: { title: "Cancel this workflow?", fields: ["reason", "force"], danger: true },
  pause: { title: "Pause this workflow?", fields: [] },
  resume: { title: "Resume this workflow?", fields: [] },
  restart: { title: "Run this stage, and everything after it, again?", fields: [] },
  skip: { title: "Skip this stage?", fields: ["reason"] },
  "cancel-stage": { title: "Cancel this stage?", fields: ["reason"], danger: true },
  approve: { title: "Approve?", fields: ["data"] },
  reject: { title: "Reject?", fields: ["data"], danger: true },
  signal: { title: "Send a signal", fields: ["name", "data"] },
};
const LABELS = {
  cancel: "Cancel", pause: "Pause", resume: "Resume", restart: "Restart from here", skip: "Skip",
  "cancel-stage": "Cancel stage", approve: "Approve", reject: "Reject", signal: "Signal…",
};
const FIELDS = {
  reason: () => el("label", {}, "Reason", el("input", { class: "form-control", name: "reason", maxlength: "500" })),
  force: () => el("label", { class: "wf-check" }, el("input", { type: "checkbox", name: "force" }),
    " End the process of a task that does not stop"),
  name: () => el("label", {}, "Name", el("input", { class: "form-control", name: "name", required: true })),
  data: () => el("label", {}, "Data (a JSON object)",
    el("textarea", { class: "form-control", name: "data", rows: "3", placeholder: "{}" })),
};

/** A button for an action on a workflow, or on one of its stages; `done` is called when the engine has taken it on. */
export function button(name, workflowId, stage, done) {
  const { danger } = ASKS[name];
  return el("button", {
    type: "button", class: `btn btn-sm btn-outline-${danger ? "danger" : "primary"}`, "data-action": name,
    disabled: Boolean(whyNot), title: whyNot || null, click: () => ask(name, workflowId, stage, done),
  }, LABELS[name]);
}

export const workflowActions = (workflow) => [
  !workflow.complete && workflow.status !== "PAUSED" ? "pause" : null,
  workflow.status === "PAUSED" ? "resume" : null,
  !workflow.complete ? "cancel" : null,
].filter(Boolean);

export function stageActions(workflow, stage, types) {
  const running = !workflow.complete && !stage.complete;
  const approval = types.some((type) => type === "approval" || type === "ApprovalTask");
  return [
    running && approval ? "approve" : null,
    running && approval ? "reject" : null,
    running && !approval && stage.status === "SUSPENDED" ? "signal" : null,
    stage.complete && !workflow.is_canceled ? "restart" : null,
    running ? "skip" : null,
    running ? "cancel-stage" : null,
  ].filter(Boolean);
}

function ask(name, workflowId, stage, done) {
  const dialog = document.getElementById("wf-dialog");
  const { title, fields, danger } = ASKS[name];
  const wrong = el("p", { class: "text-danger", role: "alert" });
  const form = el("form", { method: "dialog" },
    el("h2", { class: "wf-subtitle", id: "wf-dialog-title" }, title),
    stage ? el("p", { class: "wf-quiet" }, stage.name) : null,
    fields.map((field) => FIELDS[field]()), wrong,
    el("div", { class: "wf-actions" },
      el("button", { class: `btn btn-${danger ? "danger" : "primary"}`, type: "submit", "data-confirm": name }, LABELS[name].replace("…", "")),
      el("button", { class: "btn btn-outline-secondary", type: "button", click: () => dialog.close() }, "Do nothing")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = stage ? { stage_id: stage.id } : {};
    try {
      for (const field of fields) {
        const input = form.elements[field];
        const value = input.type === "checkbox" ? input.checked : input.value.trim();
        if (!value) continue;
        body[field] = field === "data" ? JSON.parse(value) : value;
      }
    } catch {
      wrong.textContent = "The data is not JSON.";
      return;
    }
    try {
      await post(`/${workflowId}/${name}`, body);
    } catch (error) {
      wrong.textContent = error.message;
      return;
    }
    dialog.close();
    problem("");
    done();
  });
  dialog.replaceChildren(form);
  dialog.showModal();
}
