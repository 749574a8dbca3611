// Where each stage stands: layers from left to right along the dependencies, synthetic stages inside their parent.
// Linear but for sorting, because a workflow may have thousands of stages.

export const WIDTH = 160;
export const HEIGHT = 46;
const LAYER_GAP = 48;
const ROW_GAP = 18;
// A compound node is as large as what is in it, and that much more on each side.
export const PADDING = 26;
// More stages than that side by side are folded into columns.
const MOST_ROWS = 40;
const PHASES = ["before", "after", "on_failure"];

/** Positions of the stages without stages inside: Map of id to {x, y}, the centre. */
export function arrange(stages, edges) {
  const inside = new Map();
  const known = new Map(stages.map((stage) => [stage.id, stage]));
  for (const stage of stages) {
    const parent = known.has(stage.parent_id) ? stage.parent_id : null;
    if (!inside.has(parent)) inside.set(parent, []);
    inside.get(parent).push(stage);
  }
  const before = new Map(stages.map((stage) => [stage.id, []]));
  for (const [upstream, downstream] of edges) {
    if (known.has(upstream) && known.has(downstream)) before.get(downstream).push(upstream);
  }

  const placed = new Map();
  /** Size of a group, and where its members' boxes stand in it. */
  function measure(parent) {
    const members = inside.get(parent) || [];
    const boxes = new Map();
    for (const member of members) {
      const content = inside.has(member.id) ? measure(member.id) : null;
      boxes.set(member.id, content
        ? { w: content.w + 2 * PADDING, h: content.h + 2 * PADDING, content }
        : { w: WIDTH, h: HEIGHT, content: null });
    }
    const phases = PHASES.map((phase) => members.filter((member) => member.phase === phase));
    const groups = parent === null ? [members] : phases.filter((group) => group.length);
    const layers = groups.flatMap((group) => layersOf(group, before));
    return place(layers, boxes, before);
  }
  function settle(group, x, y) {
    for (const [id, box] of group.boxes) {
      if (box.content) settle(box.content, x + box.x + PADDING, y + box.y + PADDING);
      else placed.set(id, { x: x + box.x + box.w / 2, y: y + box.y + box.h / 2 });
    }
  }
  settle(measure(null), 0, 0);
  return placed;
}

/** Ids by the length of the longest way that leads to them; within a layer in the order of their upstreams. */
function layersOf(members, before) {
  const ids = new Set(members.map((member) => member.id));
  const after = new Map(members.map((member) => [member.id, []]));
  const open = new Map();
  for (const member of members) {
    const upstreams = before.get(member.id).filter((id) => ids.has(id));
    open.set(member.id, upstreams.length);
    for (const id of upstreams) after.get(id).push(member.id);
  }
  const depth = new Map();
  const ready = members.filter((member) => !open.get(member.id)).map((member) => member.id);
  for (const id of ready) depth.set(id, 0);
  for (let i = 0; i < ready.length; i += 1) {
    for (const id of after.get(ready[i])) {
      depth.set(id, Math.max(depth.get(id) ?? 0, depth.get(ready[i]) + 1));
      open.set(id, open.get(id) - 1);
      if (!open.get(id)) ready.push(id);
    }
  }
  const layers = [];
  for (const { id } of members) (layers[depth.get(id) ?? 0] ||= []).push(id);

  const rank = new Map();
  const note = (layer) => layer.forEach((id, index) => rank.set(id, index / Math.max(1, layer.length - 1)));
  layers.forEach(note);
  const mean = (found) => (found.length ? found.reduce((sum, id) => sum + rank.get(id), 0) / found.length : null);
  const sweep = (layer, near) => {
    const wish = new Map(layer.map((id) => [id, mean(near(id)) ?? rank.get(id)]));
    layer.sort((a, b) => wish.get(a) - wish.get(b));
    note(layer);
  };
  for (let round = 0; round < 4; round += 1) {
    layers.slice(1).forEach((layer) => sweep(layer, (id) => before.get(id).filter((each) => ids.has(each))));
    layers.slice(0, -1).reverse().forEach((layer) => sweep(layer, (id) => after.get(id)));
  }
  return layers.filter(Boolean);
}

/** Columns of boxes next to each other, each box as near to the height of its upstreams as the others let it. */
function place(layers, boxes, before) {
  let x = 0;
  let top = 0;
  let bottom = 0;
  const centre = new Map();
  for (const layer of layers) {
    const columns = layer.length > MOST_ROWS ? Math.ceil(Math.sqrt(layer.length / 2.5)) : 1;
    const rows = Math.ceil(layer.length / columns);
    for (let column = 0; column < columns; column += 1) {
      const ids = layer.slice(column * rows, (column + 1) * rows);
      if (!ids.length) break;
      const wishes = ids.map((id) => {
        const near = before.get(id).filter((each) => centre.has(each));
        return near.length ? near.reduce((sum, each) => sum + centre.get(each), 0) / near.length : null;
      });
      let next = -Infinity;
      const starts = ids.map((id, index) => {
        const { h } = boxes.get(id);
        const wish = wishes[index] === null ? (next === -Infinity ? -h / 2 : next) : wishes[index] - h / 2;
        const start = Math.max(wish, next);
        next = start + h + ROW_GAP;
        return start;
      });
      // Pushing down pushed all too far down: move the column back by what it is off on average.
      const off = ids.map((id, index) => (wishes[index] === null ? null : starts[index] + boxes.get(id).h / 2 - wishes[index]))
        .filter((each) => each !== null);
      const middle = (starts[0] + next - ROW_GAP) / 2;
      const shift = off.length ? off.reduce((sum, each) => sum + each, 0) / off.length : middle;
      const width = Math.max(...ids.map((id) => boxes.get(id).w));
      ids.forEach((id, index) => {
        const box = boxes.get(id);
        box.x = x + (width - box.w) / 2;
        box.y = starts[index] - shift;
        centre.set(id, box.y + box.h / 2);
        top = Math.min(top, box.y);
        bottom = Math.max(bottom, box.y + box.h);
      });
      x += width + (column < columns - 1 ? ROW_GAP * 2 : LAYER_GAP);
    }
  }
  const used = new Map();
  for (const layer of layers) for (const id of layer) used.set(id, boxes.get(id));
  for (const box of used.values()) box.y -= top;
  return { w: Math.max(0, x - LAYER_GAP), h: bottom - top, boxes: used };
}
