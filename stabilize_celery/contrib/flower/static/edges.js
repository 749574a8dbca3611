// The lines between stages, on a canvas of their own under Cytoscape's: as elements of the graph they would cost more
// than everything else together, and nobody chooses a line.

const ARROW = 7;

export class EdgeLayer {
  /** `lines` are {source, target, x1, y1, x2, y2} in the graph's own coordinates; `colours` gives {line, chosen}. */
  constructor(cy, lines, colours) {
    this.cy = cy;
    this.lines = lines;
    this.colours = colours;
    this.canvas = document.createElement("canvas");
    this.canvas.className = "wf-edges";
    this.canvas.setAttribute("aria-hidden", "true");
    cy.container().prepend(this.canvas);
    cy.on("render", () => this.draw());
  }

  remove() {
    this.canvas.remove();
  }

  draw() {
    const { canvas, cy } = this;
    const { clientWidth: width, clientHeight: height } = cy.container();
    const dots = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * dots) || canvas.height !== Math.round(height * dots)) {
      canvas.width = Math.round(width * dots);
      canvas.height = Math.round(height * dots);
    }
    const zoom = cy.zoom();
    const pan = cy.pan();
    const sight = { x1: -pan.x / zoom, y1: -pan.y / zoom, x2: (width - pan.x) / zoom, y2: (height - pan.y) / zoom };
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(dots * zoom, 0, 0, dots * zoom, dots * pan.x, dots * pan.y);
    const seen = this.lines.filter((line) => Math.max(line.x1, line.x2) >= sight.x1
      && Math.min(line.x1, line.x2) <= sight.x2 && Math.max(line.y1, line.y2) >= sight.y1
      && Math.min(line.y1, line.y2) <= sight.y2);
    const chosen = cy.$("node:selected").id();
    const isChosen = (line) => line.source === chosen || line.target === chosen;
    const colours = this.colours();
    stroke(context, seen.filter((line) => !isChosen(line)), colours.line, Math.max(1.3, 0.6 / zoom), zoom);
    stroke(context, seen.filter(isChosen), colours.chosen, Math.max(2.6, 1.2 / zoom), zoom);
  }
}

function stroke(context, lines, colour, width, zoom) {
  context.strokeStyle = colour;
  context.fillStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  for (const { x1, y1, x2, y2 } of lines) {
    context.moveTo(x1, y1);
    const bend = Math.max(20, Math.abs(x2 - x1) / 2);
    if (zoom < 0.25) context.lineTo(x2, y2);
    else context.bezierCurveTo(x1 + bend, y1, x2 - ARROW - bend, y2, x2 - ARROW, y2);
  }
  context.stroke();
  if (zoom < 0.25) return;
  context.beginPath();
  for (const { x2, y2 } of lines) {
    context.moveTo(x2, y2);
    context.lineTo(x2 - ARROW - 1, y2 - 4);
    context.lineTo(x2 - ARROW - 1, y2 + 4);
    context.closePath();
  }
  context.fill();
}
