// The drawing: Cytoscape on a canvas, coloured by the page's own custom properties, so that both schemes fit.
/* global cytoscape */

import { STATUSES, symbol } from "./common.js";
import { EdgeLayer } from "./edges.js";
import { arrange, HEIGHT, PADDING, WIDTH } from "./layout.js";

const LARGE = 400;
const LONGEST_NAME = 20;
const short = (text) => (text.length > LONGEST_NAME ? `${text.slice(0, LONGEST_NAME - 1)}…` : text);

function style() {
  const values = getComputedStyle(document.getElementById("workflows-app"));
  const of = (name) => values.getPropertyValue(name).trim();
  const text = of("--wf-text");
  const line = of("--wf-line");
  return [
    { selector: "node", style: {
      shape: "round-rectangle", width: WIDTH, height: HEIGHT, label: "data(label)", "text-wrap": "wrap",
      "text-valign": "center", "text-halign": "center", "font-size": 13, "font-family": "system-ui, sans-serif",
      "border-width": 1.5, "min-zoomed-font-size": 6, "text-max-width": WIDTH - 8,
    } },
    { selector: "node:parent", style: {
      "text-valign": "top", "text-margin-y": 16, padding: `${PADDING - 6}px`, "background-opacity": 0.35,
      "text-max-width": 1000, "text-wrap": "none",
    } },
    ...STATUSES.map((status) => ({ selector: `node[status="${status}"]`, style: {
      "background-color": of(`--wf-${status}-fill`), "border-color": of(`--wf-${status}-line`),
      color: of(`--wf-${status}-text`),
    } })),
    { selector: 'node[status="NOT_STARTED"]', style: { "border-style": "dashed" } },
    { selector: "node:selected", style: { "border-width": 4, "border-color": of("--wf-focus") } },
    { selector: "edge", style: {
      width: 1.5, "line-color": line, "target-arrow-color": line, "target-arrow-shape": "triangle",
      "curve-style": "straight", "arrow-scale": 0.9,
    } },
    { selector: "edge.inner", style: { "line-style": "dotted", "target-arrow-shape": "none" } },
    { selector: "edge.jump", style: {
      "curve-style": "unbundled-bezier", "control-point-distances": [-90], "control-point-weights": [0.5],
      "line-style": "dashed", "line-color": of("--wf-jump"), "target-arrow-color": of("--wf-jump"),
      label: "data(label)", "font-size": 11, color: text, "text-background-color": of("--wf-surface"),
      "text-background-opacity": 0.9, "text-background-padding": 2,
    } },
  ];
}

/** The graph in an element; `chosen(id)` is called when a stage is chosen, `spoken(text)` with what to read out. */
export class Graph {
  constructor(element, { chosen, open, spoken }) {
    this.element = element;
    this.chosen = chosen;
    this.open = open;
    this.spoken = spoken;
    this.shape = "";
    this.cy = null;
    new MutationObserver(() => this.restyle()).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
    element.addEventListener("keydown", (event) => this.key(event));
  }

  /** Draw stages (a Map by id) as they stand; the layout is made anew only when the graph itself has changed. */
  draw(stages, edges, jumps, describe) {
    this.stages = stages;
    this.edges = edges;
    const all = [...stages.values()];
    const label = (stage) => `${symbol(stage.status)} ${short(stage.name)}\n${describe(stage)}`;
    const flat = (stage) => `${symbol(stage.status)} ${stage.name}  ${describe(stage)}`;
    const parents = new Set(all.map((stage) => stage.parent_id));
    const text = (stage) => (parents.has(stage.id) ? flat(stage) : label(stage));
    const shape = JSON.stringify([all.map((stage) => [stage.id, stage.parent_id]), edges, jumps.length]);
    if (this.cy && shape === this.shape) {
      this.cy.batch(() => {
        for (const stage of all) {
          const node = this.cy.getElementById(stage.id);
          if (node.data("status") !== stage.status) node.data("status", stage.status);
          if (node.data("label") !== text(stage)) node.data("label", text(stage));
        }
      });
      return;
    }
    this.shape = shape;
    const positions = arrange(all, edges);
    const elements = all.map((stage) => ({
      data: {
        id: stage.id, label: text(stage), status: stage.status,
        parent: stages.has(stage.parent_id) ? stage.parent_id : undefined,
      },
      position: positions.get(stage.id) && { ...positions.get(stage.id) },
      grabbable: false,
    }));
    elements.push(...this.inner(all, edges), ...jumpEdges(all, jumps));
    if (!this.cy) this.fitHeight(positions);
    const selected = this.cy?.$("node:selected").id();
    const view = this.cy && { zoom: this.cy.zoom(), pan: this.cy.pan() };
    this.lines?.remove();
    this.cy?.destroy();
    const large = all.length > LARGE;
    this.cy = cytoscape({
      container: this.element, elements, style: style(), layout: { name: "preset", fit: false },
      minZoom: 0.02, maxZoom: 2.5, autoungrabify: true, boxSelectionEnabled: false,
      textureOnViewport: large, pixelRatio: large ? 1 : "auto",
    });
    this.cy.on("tap", "node", (event) => {
      event.stopPropagation();
      this.chosen(event.target.id());
    });
    this.lines = new EdgeLayer(this.cy, this.lineEnds(edges), () => {
      const values = getComputedStyle(document.getElementById("workflows-app"));
      return { line: values.getPropertyValue("--wf-line"), chosen: values.getPropertyValue("--wf-focus") };
    });
    if (view) this.cy.viewport(view);
    else this.first();
    if (selected) this.select(selected, false);
    // For tests and for people who write extensions.
    this.element.cytoscape = this.cy;
  }

  /** No higher than the graph needs at the width there is. */
  fitHeight(positions) {
    const xs = [...positions.values()].map(({ x }) => x);
    const ys = [...positions.values()].map(({ y }) => y);
    const extent = (all, more) => all.reduce((most, each) => Math.max(most, each), -Infinity)
      - all.reduce((least, each) => Math.min(least, each), Infinity) + more;
    const zoom = Math.min(1, this.element.clientWidth / (extent(xs, WIDTH) + 60));
    const wanted = Math.max(0.35, zoom) * (extent(ys, HEIGHT) + 2 * PADDING) + 90;
    this.element.style.height = `${Math.max(220, Math.min(wanted, window.innerHeight * 0.6))}px`;
  }

  /** From the middle of the right side of each upstream to that of the left side of the stage. */
  lineEnds(edges) {
    const boxes = new Map();
    const box = (id) => {
      if (!boxes.has(id)) {
        const node = this.cy.getElementById(id);
        const { x, y } = node.position();
        const half = node.isParent() ? node.outerWidth() / 2 : WIDTH / 2;
        boxes.set(id, { x1: x - half, x2: x + half, y });
      }
      return boxes.get(id);
    };
    return edges.filter(([source, target]) => this.stages.has(source) && this.stages.has(target)).map(([source, target]) => {
      const [from, to] = [box(source), box(target)];
      return { source, target, x1: from.x2, y1: from.y, x2: to.x1, y2: to.y };
    });
  }

  /** What happens inside a stage follows in phases; a thin line from one to the next. */
  inner(all, edges) {
    const order = { before: 0, after: 1, on_failure: 2 };
    const targets = new Set(edges.map(([, target]) => target));
    const sources = new Set(edges.map(([source]) => source));
    const groups = new Map();
    for (const stage of all) {
      if (!stage.parent_id) continue;
      if (!groups.has(stage.parent_id)) groups.set(stage.parent_id, [[], [], []]);
      groups.get(stage.parent_id)[order[stage.phase] ?? 1].push(stage.id);
    }
    const found = [];
    for (const phases of groups.values()) {
      const used = phases.filter((phase) => phase.length);
      for (let i = 1; i < used.length; i += 1) {
        const ends = used[i - 1].filter((id) => !sources.has(id)).slice(0, 3);
        const begins = used[i].filter((id) => !targets.has(id)).slice(0, 3);
        for (const source of ends) {
          for (const target of begins) found.push({ data: { id: `${source}.${target}`, source, target }, classes: "inner" });
        }
      }
    }
    return found;
  }

  /** At first everything if it can be read, else the part where something is going on or went wrong. */
  first() {
    this.cy.fit(undefined, 24);
    if (this.cy.zoom() > 1.1) this.cy.zoom(1.1) && this.cy.center();
    if (this.cy.zoom() >= 0.35 || this.cy.nodes().length < 12) return;
    const pick = ["TERMINAL", "STOPPED", "SUSPENDED", "RUNNING", "PAUSED"].map((status) =>
      this.cy.$(`node[status="${status}"]`)[0]).find(Boolean) || this.cy.nodes()[0];
    this.cy.zoom(0.7);
    this.cy.center(pick);
  }

  fit() {
    this.cy.fit(undefined, 24);
  }

  zoom(factor) {
    const middle = { x: this.element.clientWidth / 2, y: this.element.clientHeight / 2 };
    this.cy.zoom({ level: this.cy.zoom() * factor, renderedPosition: middle });
  }

  select(id, show = true) {
    this.cy.$(":selected").unselect();
    const node = this.cy.getElementById(id);
    if (!node.length) return;
    node.select();
    const { x1, y1, x2, y2 } = node.renderedBoundingBox();
    const outside = x1 < 0 || y1 < 0 || x2 > this.element.clientWidth || y2 > this.element.clientHeight;
    if (show && outside) {
      if (this.cy.zoom() < 0.35) this.cy.zoom(0.7);
      this.cy.center(node);
    }
  }

  restyle() {
    // The style sheet is read when the new scheme is in force.
    requestAnimationFrame(() => this.cy?.style().fromJson(style()).update());
  }

  key(event) {
    const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    const current = this.cy?.$("node:selected").id();
    if (event.key === "Enter" && current) {
      event.preventDefault();
      this.open(current);
      return;
    }
    if (!moves[event.key] || !this.cy) return;
    event.preventDefault();
    const id = current ? this.neighbour(current, ...moves[event.key]) : this.stages.keys().next().value;
    if (!id) return;
    this.chosen(id);
    const stage = this.stages.get(id);
    this.spoken(`${stage.name}, ${stage.status}`);
  }

  neighbour(id, along, across) {
    const stage = this.stages.get(id);
    if (along) {
      const near = this.edges.filter((edge) => edge[along > 0 ? 0 : 1] === id).map((edge) => edge[along > 0 ? 1 : 0]);
      if (near.length) return near[0];
      if (along < 0) return stage.parent_id;
      return [...this.stages.values()].find((each) => each.parent_id === id)?.id;
    }
    const place = this.cy.getElementById(id).position();
    let best = null;
    for (const each of this.stages.values()) {
      if (each.parent_id !== stage.parent_id || each.id === id) continue;
      const there = this.cy.getElementById(each.id).position();
      const ahead = (there.y - place.y) * across;
      if (ahead <= 1) continue;
      const far = ahead + 3 * Math.abs(there.x - place.x);
      if (!best || far < best.far) best = { far, id: each.id };
    }
    return best?.id;
  }
}

function jumpEdges(all, jumps) {
  const ids = new Map(all.map((stage) => [stage.ref_id, stage.id]));
  const counts = new Map();
  for (const jump of jumps) {
    const key = `${ids.get(jump.from)}~${ids.get(jump.to)}`;
    if (ids.has(jump.from) && ids.has(jump.to)) counts.set(key, (counts.get(key) || 0) + 1);
  }
  return [...counts].map(([key, count]) => {
    const [source, target] = key.split("~");
    return { data: { id: `jump:${key}`, source, target, label: count > 1 ? `jump × ${count}` : "jump" }, classes: "jump" };
  });
}
