// The mask brush: paint over an image what shall be generated anew. The result is a PNG, white there and black elsewhere.

import { alarm, announce, button, dialog, div, element, on, setPressed, span } from "./dom.js";

const LEAST = 256; // sides of the canvas: small images are painted on finer than their pixels
const SHADE = "#ff3d8b";

function load(url) {
	return new Promise((resolve, reject) => {
		const image = new Image();
		image.onload = () => resolve(image);
		image.onerror = () => reject(new Error("The image cannot be loaded."));
		image.src = url;
	});
}

class Painter {
	constructor(image, mask) {
		this.image = image;
		const scale = Math.max(1, Math.ceil(LEAST / Math.min(image.naturalWidth, image.naturalHeight)));
		this.canvas = element("canvas", { tabindex: "0", role: "application", "aria-label": "Mask. Arrow keys move the brush, space paints." });
		this.canvas.width = image.naturalWidth * scale;
		this.canvas.height = image.naturalHeight * scale;
		this.context = this.canvas.getContext("2d", { willReadFrequently: true });
		this.size = Math.round(Math.max(this.canvas.width, this.canvas.height) / 8);
		this.erasing = false;
		this.zoom = 1;
		this.done = [];
		this.undone = [];
		this.last = null;
		this.cursor = [this.canvas.width / 2, this.canvas.height / 2];
		if (mask) this.readMask(mask);
		this.listen();
	}

	/** White of a mask becomes paint. */
	readMask(mask) {
		const { width, height } = this.canvas;
		this.context.drawImage(mask, 0, 0, width, height);
		const data = this.pixels;
		for (let place = 0; place < data.data.length; place += 4) data.data[place + 3] = data.data[place] > 127 ? 255 : 0;
		this.context.putImageData(data, 0, 0);
		this.fill("source-in");
	}

	get pixels() {
		return this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
	}

	fill(how) {
		this.context.globalCompositeOperation = how;
		this.context.fillStyle = SHADE;
		this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
		this.context.globalCompositeOperation = "source-over";
	}

	remember() {
		this.done.push(this.pixels);
		if (this.done.length > 30) this.done.shift();
		this.undone = [];
	}

	/** Undo, or redo. */
	step(back) {
		const [from, to] = back ? [this.done, this.undone] : [this.undone, this.done];
		if (!from.length) return;
		to.push(this.pixels);
		this.context.putImageData(from.pop(), 0, 0);
		this.painted();
	}

	clear() {
		this.remember();
		this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
		this.painted();
	}

	invert() {
		this.remember();
		this.fill("xor");
		this.painted();
	}

	/** Where on the canvas an event is. */
	place(event) {
		const box = this.canvas.getBoundingClientRect();
		return [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
	}

	stroke(to) {
		const { context } = this;
		context.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
		context.strokeStyle = SHADE;
		context.lineWidth = this.size;
		context.lineCap = "round";
		context.lineJoin = "round";
		context.beginPath();
		context.moveTo(...(this.last ?? to));
		context.lineTo(to[0] + 0.01, to[1]);
		context.stroke();
		context.globalCompositeOperation = "source-over";
		this.last = to;
		this.painted();
	}

	listen() {
		on(this.canvas, "pointerdown", (event) => {
			if (event.button !== 0) return;
			this.canvas.setPointerCapture(event.pointerId);
			this.remember();
			this.stroke(this.place(event));
		});
		on(this.canvas, "pointermove", (event) => {
			this.moved(this.place(event));
			if (this.last) for (const part of event.getCoalescedEvents?.() ?? [event]) this.stroke(this.place(part));
		});
		for (const name of ["pointerup", "pointercancel"]) on(this.canvas, name, () => (this.last = null));
		on(this.canvas, "pointerleave", () => this.moved(null));
		on(this.canvas, "keydown", (event) => {
			const step = Math.max(2, this.size / 4);
			const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
			if (by) this.cursor = this.cursor.map((at, axis) => Math.min(Math.max(0, at + by[axis]), axis ? this.canvas.height : this.canvas.width));
			else if (event.key === " ") {
				this.remember();
				this.stroke(this.cursor);
				this.last = null;
			} else return;
			event.preventDefault();
			this.moved(this.cursor);
		});
	}

	get empty() {
		const { data } = this.pixels;
		for (let place = 3; place < data.length; place += 4) if (data[place] > 127) return false;
		return true;
	}

	/** The mask in the image's own size, as a PNG. */
	blob() {
		const made = new OffscreenCanvas(this.image.naturalWidth, this.image.naturalHeight);
		const context = made.getContext("2d");
		context.drawImage(this.canvas, 0, 0, made.width, made.height);
		const data = context.getImageData(0, 0, made.width, made.height);
		for (let place = 0; place < data.data.length; place += 4) {
			const white = data.data[place + 3] > 127 ? 255 : 0;
			data.data.set([white, white, white, 255], place);
		}
		context.putImageData(data, 0, 0);
		return made.convertToBlob({ type: "image/png" });
	}
}

/** Open the editor. Returns the mask as a blob, or null where it was left. */
export async function editMask(imageUrl, maskUrl) {
	const [image, mask] = await Promise.all([load(imageUrl), maskUrl ? load(maskUrl) : null]);
	const painter = new Painter(image, mask);
	const ring = element("div", { className: "ring", "aria-hidden": "true" });
	const picture = element("img", { src: imageUrl, alt: "The image under the mask", draggable: "false" });
	const paper = div("paper", picture, painter.canvas, ring);
	const desk = div("desk", paper);

	const fit = () => {
		const room = Math.min((desk.clientWidth - 32) / image.naturalWidth, (desk.clientHeight - 32) / image.naturalHeight);
		paper.style.width = `${Math.round(image.naturalWidth * room * painter.zoom)}px`;
		paper.style.height = `${Math.round(image.naturalHeight * room * painter.zoom)}px`;
	};
	const zoom = (by) => {
		painter.zoom = Math.min(8, Math.max(1, painter.zoom * by));
		fit();
		announce(`Zoom ${Math.round(painter.zoom * 100)} %`);
	};
	painter.moved = (at) => {
		ring.hidden = !at;
		if (!at) return;
		const scale = paper.clientWidth / painter.canvas.width;
		ring.style.width = ring.style.height = `${painter.size * scale}px`;
		ring.style.transform = `translate(${(at[0] - painter.size / 2) * scale}px, ${(at[1] - painter.size / 2) * scale}px)`;
	};
	painter.painted = () => {
		undo.disabled = painter.done.length === 0;
		redo.disabled = painter.undone.length === 0;
	};

	const longest = Math.max(painter.canvas.width, painter.canvas.height);
	const size = element("input", { type: "range", min: Math.ceil(longest / 100), max: Math.round(longest / 2), value: painter.size, "aria-label": "Brush size" });
	on(size, "input", () => (painter.size = Number(size.value)));
	const resize = (by) => {
		size.value = painter.size = Math.min(Number(size.max), Math.max(Number(size.min), Math.round(painter.size * by)));
	};
	const mode = (erasing) => {
		painter.erasing = erasing;
		setPressed(brush, !erasing);
		setPressed(eraser, erasing);
	};
	const brush = button({ text: "Paint", icon: "brush", "aria-pressed": "true", on: () => mode(false) });
	const eraser = button({ text: "Erase", icon: "erase", "aria-pressed": "false", on: () => mode(true) });
	const undo = button({ label: "Undo", icon: "undo", on: () => painter.step(true) });
	const redo = button({ label: "Redo", icon: "redo", on: () => painter.step(false) });
	const problem = alarm();
	const finish = button({ text: "Use this mask", className: "primary", id: "use-mask" });
	const tools = div("brushes",
		div("segments", brush, eraser),
		element("label", { className: "brush-size" }, span("Size"), size),
		div("segments", undo, redo),
		button({ text: "Clear", className: "bare", on: () => painter.clear() }),
		button({ text: "Invert", className: "bare", on: () => painter.invert() }),
		div("segments",
			button({ label: "Zoom out", text: "−", on: () => zoom(1 / 1.5) }),
			button({ label: "Zoom in", text: "+", on: () => zoom(1.5) })),
		problem, finish);

	return new Promise((resolve) => {
		const made = dialog("What shall be generated anew?", [desk, tools], { className: "editor", closed: () => resolve(null) });
		on(finish, "click", async () => {
			if (painter.empty) {
				problem.textContent = "Paint over a part of the image first.";
				return;
			}
			resolve(await painter.blob());
			made.close();
		});
		on(made, "keydown", (event) => {
			const key = event.key.toLowerCase();
			const command = event.ctrlKey || event.metaKey;
			if (command && key === "z") painter.step(!event.shiftKey);
			else if (command) return;
			else if (key === "b") mode(false);
			else if (key === "e") mode(true);
			else if (key === "[") resize(1 / 1.25);
			else if (key === "]") resize(1.25);
			else if (key === "+" || key === "=") zoom(1.5);
			else if (key === "-") zoom(1 / 1.5);
			else return;
			event.preventDefault();
		});
		on(desk, "wheel", (event) => {
			if (!event.ctrlKey && !event.metaKey) return;
			event.preventDefault();
			zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
		}, { passive: false });
		const watching = new ResizeObserver(fit);
		watching.observe(desk);
		on(made, "close", () => watching.disconnect());
		painter.painted();
		painter.moved(null);
		fit();
		painter.canvas.focus();
	});
}
