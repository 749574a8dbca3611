import { el, linkTo, moment, post, problem, read, whileVisible, whyNot } from "./common.js";

const empty = (columns, text) => [el("tr", {}, el("td", { colspan: columns, class: "wf-quiet" }, text))];
let before = "";
const older = document.getElementById("wf-dead-older");

const slot = (each) => el("tr", {},
  el("td", {}, each.pipeline_config_id),
  el("td", {}, each.max_concurrent === null ? `${each.taken} (no limit)` : `${each.taken} of ${each.max_concurrent}`),
  el("td", {}, String(each.waiting)),
  el("td", {}, each.oldest_waiting ? linkTo(each.oldest_waiting, each.oldest_waiting) : ""));

const letter = (each) => el("tr", {},
  el("td", {}, el("b", {}, each.type), el("div", { class: "wf-quiet" }, each.label)),
  el("td", {}, each.workflow_id ? linkTo(each.workflow_id, each.workflow_id) : ""),
  el("td", {}, String(each.attempts)),
  el("td", {}, moment(each.died_at)),
  el("td", {}, each.error
    ? el("details", {}, el("summary", {}, `${each.error.type || "Error"}: ${each.error.error || ""}`),
      el("pre", { class: "wf-pre" }, each.error.traceback || ""))
    : ""),
  el("td", {}, el("div", { class: "wf-actions" }, button(each, "retry", "Retry", "Try this message again?"),
    button(each, "drop", "Drop", "Forget this message? Its workflow stays as it is."))));

const button = (each, action, label, question) => el("button", {
  type: "button", class: `btn btn-sm btn-outline-${action === "drop" ? "danger" : "primary"}`, "data-action": action,
  "data-letter": each.id, disabled: Boolean(whyNot), title: whyNot || null,
  click: async () => {
    if (!window.confirm(question)) return;
    try {
      await post(`/dead-letters/${each.id}/${action}`, {});
    } catch (error) {
      problem(error.message);
      return;
    }
    run();
  },
}, label);

async function look() {
  const [waiting, dead] = await Promise.all([read("/waiting"), read("/dead-letters", { before })]);
  document.getElementById("wf-slots").replaceChildren(
    ...(waiting.configurations.length ? waiting.configurations.map(slot) : empty(4, "No configuration has a limit.")));
  document.getElementById("wf-dead").replaceChildren(
    ...(dead.dead_letters.length ? dead.dead_letters.map(letter) : empty(6, "None.")));
  older.hidden = !dead.next;
  older.onclick = () => {
    before = dead.next;
    run();
  };
}

// An open traceback is being read: leave it alone.
const run = whileVisible(look, () => !document.querySelector("#wf-dead details[open]"), () => 5000);
run();
