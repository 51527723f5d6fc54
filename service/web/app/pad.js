// A canvas to draw on: a dark pen on white paper, as wide as Omniglot's.

import { h } from "./dom.js";
import { icon } from "./icons.js";

const SIDE = 420;
/** Of the side; Omniglot's pen is about 3 of 105 pixels wide. */
const PEN = 0.032;
/** Side of the image that is made: twice Omniglot's, so that it looks sharp as a thumbnail too. */
const MADE = 210;
const STEP = SIDE / 28;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** `ondraw(pad)` is called whenever the drawing has changed. */
export class Pad {
  constructor(label, ondraw = () => {}) {
    this.strokes = [];
    this.ondraw = ondraw;
    this.drawing = null;
    this.at = { x: SIDE / 2, y: SIDE / 2 };
    this.keyboard = false;
    this.canvas = h("canvas", {
      class: "pad", width: SIDE, height: SIDE, tabIndex: 0, role: "img",
      "aria-label": `${label}: draw here. With the keyboard: arrow keys move the pen, Space puts it `
        + "down or lifts it, Backspace takes the last stroke back.",
    });
    this.undoButton = h("button", { type: "button", class: "quiet", onclick: () => this.undo() },
      icon("undo"), "Undo");
    this.clearButton = h("button", { type: "button", class: "quiet", onclick: () => this.clear() },
      "Clear");
    this.listen();
    this.show();
  }

  get empty() {
    return this.strokes.length === 0;
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      this.keyboard = false;
      this.drawing = [this.place(event)];
      this.strokes.push(this.drawing);
      this.show();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.drawing || this.keyboard) return;
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.drawing.push(this.place(each));
      this.show();
      this.ondraw(this);
    });
    const lift = () => {
      if (!this.drawing || this.keyboard) return;
      this.drawing = null;
      this.ondraw(this);
    };
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.keyboard = false; this.drawing = null; this.show(); });
  }

  key(event) {
    const move = MOVES[event.key];
    if (move) {
      this.keyboard = true;
      this.at = { x: clamp(this.at.x + move[0] * STEP), y: clamp(this.at.y + move[1] * STEP) };
      if (this.drawing) {
        this.drawing.push(this.at);
        this.ondraw(this);
      }
    } else if (event.key === " ") {
      this.keyboard = true;
      this.drawing = this.drawing ? null : [this.at];
      if (this.drawing) this.strokes.push(this.drawing);
      this.ondraw(this);
    } else if (event.key === "Backspace") this.undo();
    else return;
    event.preventDefault();
    this.show();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * SIDE,
      y: ((event.clientY - box.top) / box.height) * SIDE,
    };
  }

  undo() {
    this.strokes.pop();
    this.drawing = null;
    this.show();
    this.ondraw(this);
  }

  clear() {
    this.strokes = [];
    this.drawing = null;
    this.show();
    this.ondraw(this);
  }

  show() {
    const pen = this.canvas.getContext("2d");
    write(pen, this.strokes, SIDE);
    if (this.keyboard) {
      pen.fillStyle = this.drawing ? "#d3320a" : "#1f6feb";
      pen.beginPath();
      pen.arc(this.at.x, this.at.y, 7, 0, 2 * Math.PI);
      pen.fill();
    }
    this.undoButton.disabled = this.clearButton.disabled = this.empty;
  }

  /** The drawing as a PNG file. */
  async file(name = "drawing.png") {
    const canvas = h("canvas", { width: MADE, height: MADE });
    write(canvas.getContext("2d"), this.strokes, MADE);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    return new File([blob], name, { type: "image/png" });
  }
}

const clamp = (value) => Math.min(Math.max(value, STEP), SIDE - STEP);

function write(pen, strokes, side) {
  const scale = side / SIDE;
  pen.fillStyle = "white";
  pen.fillRect(0, 0, side, side);
  pen.strokeStyle = "black";
  pen.lineWidth = PEN * side;
  pen.lineCap = pen.lineJoin = "round";
  for (const stroke of strokes) {
    const points = stroke.map(({ x, y }) => ({ x: x * scale, y: y * scale }));
    pen.beginPath();
    pen.moveTo(points[0].x, points[0].y);
    // Through the middles, with the points as handles: round where the hand was sampled coarsely.
    for (let i = 1; i < points.length - 1; i += 1) {
      const middle = { x: (points[i].x + points[i + 1].x) / 2, y: (points[i].y + points[i + 1].y) / 2 };
      pen.quadraticCurveTo(points[i].x, points[i].y, middle.x, middle.y);
    }
    pen.lineTo(points.at(-1).x, points.at(-1).y);
    pen.stroke();
  }
}
