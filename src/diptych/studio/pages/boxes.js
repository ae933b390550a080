// A canvas to draw boxes with words. Its text is what the model reads: "dog 0.1 0.2 0.5 0.9; house 0.5 0.3 1 1".

import { announce, button, choice, div, element, on, p, setPressed, span } from "./dom.js";

const NUMBER = String.raw`[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?`;
const BOX = new RegExp(String.raw`^(.*\S)\s+(${NUMBER})\s+(${NUMBER})\s+(${NUMBER})\s+(${NUMBER})$`);
const LEAST = 0.03; // of the canvas: a shorter drag is a click

/** The boxes of a text, and what of it is none (yet). */
function parseBoxes(text) {
	const parts = text.split(/[;\n]/).map((part) => part.trim()).filter(Boolean);
	const boxes = parts.map((part) => BOX.exec(part)).filter(Boolean);
	const rest = parts.filter((part) => !BOX.test(part));
	return { boxes: boxes.map(([, name, ...sides]) => ({ name, sides: sides.map(Number) })), rest };
}

const short = (number) => String(Math.round(number * 1000) / 1000);
const boxesText = (boxes) => boxes.map(({ name, sides }) => `${name} ${sides.map(short).join(" ")}`).join("; ");

export class BoxCanvas {
	/** `names` are the words that the model knows; `changed(text)` follows each edit. */
	constructor(names, size, changed) {
		this.names = names;
		this.changed = changed;
		this.boxes = [];
		this.rest = []; // parts of the text that are no boxes stay in it
		this.chosen = -1;
		this.field = element("div", { className: "box-canvas", role: "group", "aria-label": "Layout: drag to draw a box" });
		this.field.style.aspectRatio = `${size[0]} / ${size[1]}`;
		this.word = element("input", { type: "text", list: "box-names", autocomplete: "off", placeholder: names[0] ?? "a word", "aria-label": "Word of the next or chosen box", id: "box-word" });
		const list = element("datalist", { id: "box-names" }, ...names.map((value) => choice(value)));
		on(this.word, "input", () => this.rename());
		on(this.word, "keydown", (event) => {
			if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
			event.preventDefault();
			if (this.chosen >= 0) this.choose(-1);
			else this.add([0.25, 0.25, 0.75, 0.75]);
		});
		const add = button({ text: "Add", icon: "plus", className: "small", on: () => this.add([0.25, 0.25, 0.75, 0.75]) });
		const clear = button({ text: "Clear", className: "small bare", on: () => this.change([]) });
		const hint = p("soft hint", "Type a word, drag a box for it. Arrow keys move a chosen box, with Shift they size it, Delete removes it.");
		this.root = div("box-editor", div("box-tools", this.word, list, add, clear), this.field, hint);
		this.listen();
	}

	write(text) {
		Object.assign(this, parseBoxes(text));
		this.chosen = Math.min(this.chosen, this.boxes.length - 1);
		this.draw();
	}

	get text() {
		return [boxesText(this.boxes), ...this.rest].filter(Boolean).join("; ");
	}

	change(boxes) {
		this.boxes = boxes;
		this.chosen = Math.min(this.chosen, boxes.length - 1);
		this.draw();
		this.changed(this.text);
	}

	add(sides) {
		const name = this.word.value.trim() || this.names[0] || "thing";
		this.change([...this.boxes, { name, sides }]);
		this.choose(this.boxes.length - 1);
		announce(`A box for ${name}`);
	}

	choose(index) {
		this.chosen = index;
		if (index >= 0) this.word.value = this.boxes[index].name;
		this.draw();
		if (index >= 0) this.field.children[index]?.focus();
	}

	rename() {
		const name = this.word.value.trim();
		if (this.chosen < 0 || !name) return;
		this.boxes[this.chosen].name = name;
		this.field.children[this.chosen].querySelector("span").textContent = name;
		this.changed(this.text);
	}

	draw() {
		const focused = this.field.contains(document.activeElement);
		this.field.replaceChildren(...this.boxes.map((box, index) => {
			const made = element("div", { className: "box", tabindex: "0", role: "button", "data-index": index }, span(box.name));
			made.setAttribute("aria-label", `${box.name}: ${box.sides.map((side) => `${Math.round(side * 100)} %`).join(", ")}`);
			setPressed(made, index === this.chosen);
			made.dataset.tone = String(index % 6);
			made.append(element("i", { className: "handle", "aria-hidden": "true" }));
			place(made, box.sides);
			on(made, "keydown", (event) => this.key(event, index));
			on(made, "focus", () => {
				if (this.chosen === index) return;
				this.chosen = index;
				this.word.value = box.name;
				[...this.field.children].forEach((one, at) => setPressed(one, at === index));
			});
			return made;
		}));
		if (focused && this.chosen >= 0) this.field.children[this.chosen]?.focus();
	}

	key(event, index) {
		const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
		if (event.key === "Delete" || event.key === "Backspace") {
			event.preventDefault();
			this.change(this.boxes.filter((_, at) => at !== index));
			(this.field.children[this.chosen] ?? this.word).focus();
		} else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
			event.preventDefault();
			this.word.focus();
		} else if (by) {
			event.preventDefault();
			const step = by.map((part) => part * 0.02);
			const sides = this.boxes[index].sides;
			this.boxes[index].sides = event.shiftKey ? sized(sides, [sides[2] + step[0], sides[3] + step[1]]) : moved(sides, step);
			this.change(this.boxes);
		}
	}

	at(event) {
		const box = this.field.getBoundingClientRect();
		return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((part) => Math.min(1, Math.max(0, part)));
	}

	listen() {
		let drag = null;
		on(this.field, "pointerdown", (event) => {
			if (event.button !== 0) return;
			event.preventDefault();
			this.field.setPointerCapture(event.pointerId);
			const hit = event.target.closest(".box");
			const at = this.at(event);
			if (hit) {
				const index = Number(hit.dataset.index);
				this.choose(index);
				drag = { kind: event.target.className === "handle" ? "size" : "move", index, at, sides: [...this.boxes[index].sides] };
			} else {
				if (this.chosen >= 0) this.word.value = "";
				this.choose(-1);
				const ghost = div("box ghost");
				this.field.append(ghost);
				drag = { kind: "draw", at, ghost, sides: [...at, ...at] };
			}
		});
		on(this.field, "pointermove", (event) => {
			if (!drag) return;
			const to = this.at(event);
			if (drag.kind === "draw") {
				drag.sides = [Math.min(drag.at[0], to[0]), Math.min(drag.at[1], to[1]), Math.max(drag.at[0], to[0]), Math.max(drag.at[1], to[1])];
				place(drag.ghost, drag.sides);
				return;
			}
			const by = [to[0] - drag.at[0], to[1] - drag.at[1]];
			this.boxes[drag.index].sides = drag.kind === "move" ? moved(drag.sides, by) : sized(drag.sides, to);
			place(this.field.children[drag.index], this.boxes[drag.index].sides);
		});
		const end = () => {
			if (!drag) return;
			const { kind, sides, ghost } = drag;
			drag = null;
			ghost?.remove();
			if (kind !== "draw") this.change(this.boxes);
			else if (sides[2] - sides[0] > LEAST && sides[3] - sides[1] > LEAST) {
				this.add(sides);
				this.word.focus();
				this.word.select();
			}
		};
		on(this.field, "pointerup", end);
		on(this.field, "pointercancel", end);
	}
}

function place(made, [left, top, right, bottom]) {
	const percent = { left, top, width: right - left, height: bottom - top };
	for (const [name, value] of Object.entries(percent)) made.style[name] = `${value * 100}%`;
}

/** A box moved, within the image. */
function moved([left, top, right, bottom], [x, y]) {
	const across = Math.min(1 - right, Math.max(-left, x));
	const down = Math.min(1 - bottom, Math.max(-top, y));
	return [left + across, top + down, right + across, bottom + down];
}

/** A box with another corner at its bottom right. */
function sized([left, top], [right, bottom]) {
	return [left, top, Math.min(1, Math.max(left + LEAST, right)), Math.min(1, Math.max(top + LEAST, bottom))];
}
