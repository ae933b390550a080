// The steps of an image, from noise to image: scrubbed by mouse and arrow keys, with guidance and threshold at work.

import { api } from "./api.js";
import { button, div, element, on, reducedMotion, setIcon, span, svg } from "./dom.js";

const WIDTH = 600;
const HEIGHT = 64;
const FRAMES = 12;
const percent = (value) => `${Math.round(value * 1000) / 10} %`;
const LINES = [
	{
		key: "guidance_delta",
		name: "Guidance",
		help: "How much the prompt pulls: the difference between the estimates with the prompt and without it, relative to the first.",
		show: percent,
	},
	{
		key: "clipped",
		name: "Threshold",
		help: "The share of values that lay outside the range of an image and were clipped.",
		show: percent,
	},
];

export class StepStrip {
	/** `scrub(preview)` shows a step large; null shows the image itself again. */
	constructor(scrub) {
		this.scrub = scrub;
		this.rows = [];
		this.play = button({ label: "Play the steps", icon: "play", className: "bare", on: () => (this.timer ? this.stop() : this.start()) });
		this.now = span("", "soft");
		this.film = element("div", { className: "film", "aria-hidden": "true" });
		this.range = element("input", { type: "range", min: "0", step: "1", className: "scrubber", id: "scrubber", "aria-label": "Step" });
		on(this.range, "input", () => {
			this.stop();
			this.at(Number(this.range.value));
		});
		this.charts = div("charts");
		const head = div("strip-head", element("h2", { text: "From noise to image" }), this.play, this.now);
		this.root = element("section", { className: "strip", hidden: true, "aria-label": "Steps of this image" }, head, this.film, this.range, this.charts);
		for (const name of ["pointerdown", "pointermove"]) {
			on(this.film, name, (event) => {
				if (name === "pointermove" && !event.buttons) return;
				const box = this.film.getBoundingClientRect();
				this.stop();
				this.at(Math.round(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * this.last));
			});
		}
	}

	get last() {
		return this.rows.length - 1;
	}

	hide() {
		this.stop();
		this.id = null;
		this.root.hidden = true;
	}

	async load(row) {
		if (this.id === row.id) return;
		this.hide();
		this.id = row.id;
		const rows = await api(`images/${row.id}/steps`).catch(() => []);
		if (this.id !== row.id) return;
		this.rows = rows.filter((step) => step.preview);
		if (this.rows.length < 2) return;
		this.film.replaceChildren(...this.shown().map((step) => element("img", { src: step.preview, alt: "", draggable: "false" })));
		this.range.max = this.last;
		this.draw();
		this.root.hidden = false;
		this.at(this.last);
	}

	/** Twelve frames, each the step that is nearest. */
	shown() {
		return Array.from({ length: FRAMES }, (_, place) => this.rows[Math.round((place * this.last) / (FRAMES - 1))]);
	}

	at(index) {
		const step = this.rows[index];
		if (!step) return;
		this.range.value = index;
		const stage = step.stage ? ` · ${step.stage} px` : "";
		this.now.textContent = `step ${step.step} of ${step.steps}${stage}`;
		this.range.setAttribute("aria-valuetext", this.now.textContent);
		const frames = [...this.film.children];
		frames.forEach((frame) => frame.classList.toggle("now", frame.getAttribute("src") === step.preview));
		if (!this.film.querySelector(".now")) frames[Math.round((index / this.last) * (FRAMES - 1))].classList.add("now");
		this.scrub(index === this.last ? null : step.preview);
		for (const line of this.lines ?? []) {
			const value = step[line.key];
			line.cursor.setAttribute("x1", line.x(index));
			line.cursor.setAttribute("x2", line.x(index));
			line.value.textContent = value === null || value === undefined ? "–" : line.show(value);
		}
	}

	draw() {
		this.lines = LINES.filter(({ key }) => this.rows.some((step) => typeof step[key] === "number")).map((line) => ({ ...line }));
		this.charts.replaceChildren(...this.lines.map((line) => this.chart(line)));
	}

	chart(line) {
		const values = this.rows.map((step) => step[line.key] ?? null);
		const most = Math.max(...values.filter((value) => value !== null), 1e-9);
		line.x = (index) => 6 + (index / this.last) * (WIDTH - 12);
		const y = (value) => HEIGHT - 4 - (value / most) * (HEIGHT - 10);
		const points = values.map((value, index) => (value === null ? null : `${line.x(index)},${y(value)}`)).filter(Boolean);
		line.cursor = svg("line", { y1: 0, y2: HEIGHT, class: "cursor" });
		line.value = element("strong", { text: "–" });
		const first = points[0].split(",")[0];
		const end = points.at(-1).split(",")[0];
		const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: `chart ${line.key}`, role: "img" },
			svg("polygon", { points: `${first},${HEIGHT} ${points.join(" ")} ${end},${HEIGHT}` }),
			svg("polyline", { points: points.join(" ") }), line.cursor);
		drawing.setAttribute("aria-label", `${line.name} in each step, at most ${line.show(most)}`);
		const legend = element("figcaption", {}, span(line.name), line.value, span(line.help, "soft"));
		return element("figure", { className: line.key }, drawing, legend);
	}

	start() {
		let index = Number(this.range.value) >= this.last ? 0 : Number(this.range.value);
		setIcon(this.play, "pause");
		this.at(index);
		const pace = reducedMotion() ? 600 : Math.max(60, Math.min(250, 3000 / this.rows.length));
		this.timer = setInterval(() => {
			index += 1;
			this.at(index);
			if (index >= this.last) this.stop();
		}, pace);
	}

	stop() {
		if (!this.timer) return;
		clearInterval(this.timer);
		this.timer = null;
		setIcon(this.play, "play");
	}
}
