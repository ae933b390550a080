// Comparison grids: one image for each pair of two settings' values, all else equal.

import { api, imageUrl, schemaOf, store, stored } from "./api.js";
import { alarm, announce, button, choice, div, element, on, p, save, textInput, toast } from "./dom.js";
import { labelOf, mark } from "./fields.js";
import { promptKind, requestOf, state } from "./form-state.js";
import { gridPicture } from "./grid-picture.js";
import { submit, watch } from "./jobs.js";

const MOST = 100;
const WAITING = 8; // cells that are in the server's queue at a time: others get their turn

const HINTS = {
	prompt: "the first is looked for in the prompt, and replaced by each: apple, pear, plum",
	seed: "seeds: 0, 1, 2 (or 0-4)",
	model: "models by name",
	negative: "negative prompts",
	size: "sizes: 64x64, 96x64",
};

/** The values in a text: with commas between them; of numbers also "0-4". */
function split(axis, text) {
	const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
	if (axis !== "seed") return parts;
	return parts.flatMap((part) => {
		const [, from, to] = /^(\d+)\s*-\s*(\d+)$/.exec(part) ?? [];
		if (from === undefined || Number(to) - Number(from) > MOST) return [part];
		return Array.from({ length: Math.max(0, Number(to) - Number(from) + 1) }, (_, index) => String(Number(from) + index));
	});
}

/** A copy of a body with one value of an axis. Throws an Error that says what is wrong with it. */
function withValue(body, axis, value, first) {
	const made = { ...body, options: { ...body.options } };
	if (axis === "prompt") {
		if (!body.prompt.includes(first)) throw new Error(`“${first}” does not stand in the prompt “${body.prompt}”`);
		made.prompt = body.prompt.replaceAll(first, value);
	} else if (axis === "seed") {
		if (!/^\d{1,15}$/.test(value)) throw new Error(`a seed is a whole number, not “${value}”`);
		made.seed = Number(value);
	} else if (axis === "model" || axis === "negative") made[axis] = value;
	else if (axis === "size") {
		const sides = /^(\d+)\s*[x×]\s*(\d+)$/.exec(value);
		if (!sides) throw new Error(`a size is such as 64x64, not “${value}”`);
		made.options.size = [Number(sides[1]), Number(sides[2])];
	} else made.options[axis] = /^(true|yes|false|no)$/.test(value) ? /^(true|yes)$/.test(value) : value !== "" && Number.isFinite(Number(value)) ? Number(value) : value;
	return made;
}

export class Compare {
	constructor(root, actions, form) {
		Object.assign(this, { root, actions, form, cells: [], jobs: new Map() });
		this.plan = stored("grid", { x: { axis: "steps", text: "4, 8, 16" }, y: { axis: "guidance", text: "1, 4, 8" }, made: null });
		this.axes = { x: this.axisField("x", "Across"), y: this.axisField("y", "Down") };
		this.say = element("p", { className: "soft", id: "grid-words" });
		this.problem = alarm();
		this.start = button({ text: "Make the grid", className: "primary", type: "submit", id: "make-grid" });
		this.halt = button({ text: "Cancel", id: "cancel-grid", hidden: true, on: () => this.cancel() });
		this.file = button({ text: "Download as PNG", icon: "download", id: "grid-png", hidden: true, on: () => this.download() });
		const panel = element("form", { className: "axes", novalidate: true }, this.axes.x.root, this.axes.y.root);
		panel.append(div("axes-run", this.start, this.halt, this.file), this.say, this.problem);
		on(panel, "submit", (event) => {
			event.preventDefault();
			this.run().catch((error) => (this.problem.textContent = error.message));
		});
		this.place = element("div", { className: "table-place", tabindex: "0", role: "region", "aria-label": "Comparison grid" });
		root.replaceChildren(element("h1", { text: "Compare" }), p("soft", "Two settings, their values separated by commas. Everything else is as it stands under Create."), panel, this.place);
	}

	axisField(name, text) {
		const id = `axis-${name}`;
		const select = element("select", { "aria-label": `${text}: setting`, id });
		const input = textInput({ "aria-label": `${text}: values`, id: `${id}-values`, "aria-describedby": `${id}-hint ${id}-error` });
		const hint = element("p", { className: "soft hint", id: `${id}-hint` });
		const changed = () => {
			this.plan[name] = { axis: select.value, text: input.value };
			mark(root, null);
			this.describe();
			store("grid", this.plan);
		};
		on(select, "change", changed);
		on(input, "input", changed);
		const root = element("fieldset", { className: "axis", "data-axis": name }, element("legend", { text }), select, input, hint, element("p", { className: "error", id: `${id}-error` }));
		return { root, select, input, hint };
	}

	/** The settings of the model that is chosen under Create. */
	async show() {
		this.schema = await schemaOf(state.model);
		const names = ["prompt", "seed"];
		if (this.form.models.length > 1) names.push("model");
		if (this.schema.features.negative) names.push("negative");
		names.push(...this.schema.options.map((option) => option.name));
		for (const [name, field] of Object.entries(this.axes)) {
			const label = (axis) => ({ prompt: "Prompt words", negative: "Negative prompt" })[axis] ?? labelOf(axis);
			const nothing = name === "y" ? [choice("", "nothing")] : [];
			field.select.replaceChildren(...nothing, ...names.map((value) => choice(value, label(value))));
			const wanted = this.plan[name].axis;
			field.select.value = names.includes(wanted) || (wanted === "" && name === "y") ? wanted : names[0];
			field.input.value = this.plan[name].text;
		}
		this.describe();
		if (this.plan.made && !this.cells.length) this.resume();
	}

	values(name) {
		const { axis, text } = this.plan[name];
		return axis === "" ? [""] : split(axis, text);
	}

	describe() {
		for (const [name, field] of Object.entries(this.axes)) {
			const axis = field.select.value;
			this.plan[name].axis = axis;
			const option = this.schema?.options.find((one) => one.name === axis);
			const own = [option?.default].flat().filter((one) => one !== null && one !== undefined);
			const such = option?.choices?.slice(0, 4) ?? own.slice(0, 1);
			const help = option ? `${option.help}${such.length ? `, such as ${such.join(", ")}` : ""}` : "one row";
			field.hint.textContent = HINTS[axis] ?? help;
			field.input.disabled = axis === "";
		}
		const many = this.values("x").length * this.values("y").length;
		this.say.textContent = `“${state.prompts[this.schema ? promptKind(this.schema) : "text"]}” · seed ${state.seed}`;
		this.start.querySelector("span").textContent = many ? `Make the grid: ${many} ${many === 1 ? "image" : "images"}` : "Make the grid";
	}

	/** Bodies of all cells, row by row; an axis whose values are wrong is marked. */
	bodies() {
		const base = { ...requestOf(this.schema), count: 1 };
		const [xs, ys] = ["x", "y"].map((name) => {
			const values = this.values(name);
			const root = this.root.querySelector(`[data-axis=${name}]`);
			try {
				if (!values.length) throw new Error("give values, separated by commas");
				values.forEach((value) => this.plan[name].axis && withValue(base, this.plan[name].axis, value, values[0]));
			} catch (error) {
				mark(root, error.message);
				root.querySelector("input").focus();
				throw error;
			}
			return values;
		});
		if (xs.length * ys.length > MOST) throw new Error(`at most ${MOST} images in a grid`);
		if (this.plan.x.axis === this.plan.y.axis) throw new Error("Choose two different settings.");
		const bodies = ys.map((y) => xs.map((x) => {
			const row = this.plan.y.axis ? withValue(base, this.plan.y.axis, y, ys[0]) : base;
			return withValue(row, this.plan.x.axis, x, xs[0]);
		}));
		return { xs, ys, bodies };
	}

	async run() {
		this.problem.textContent = "";
		await this.cancel();
		const { xs, ys, bodies } = this.bodies();
		const cells = bodies.flat().map((body) => ({ body }));
		const turn = (this.turn = Symbol("a grid"));
		this.plan.made = { xs, ys, x: this.plan.x.axis, y: this.plan.y.axis, prompt: cells[0].body.prompt, cells };
		store("grid", this.plan);
		this.table();
		this.halt.hidden = false;
		announce(`A grid of ${cells.length} images`);
		await this.submitAll(turn);
	}

	/** Submit the cells that have no job yet, a few at a time. */
	async submitAll(turn) {
		for (const [index, cell] of this.plan.made.cells.entries()) {
			if (cell.job || cell.image) continue;
			while (this.turn === turn && this.open.length >= WAITING) await Promise.race(this.open.map((job) => job.end));
			if (this.turn !== turn) return;
			try {
				this.follow(index, await submit(cell.body));
			} catch (error) {
				if (error.status === 429) {
					await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(20, error.wait || 2)));
					return this.submitAll(turn);
				}
				cell.error = error.message;
				this.cell(index);
				if (error.field) this.problem.textContent = error.message;
			}
			store("grid", this.plan);
		}
		await Promise.all(this.open.map((job) => job.end));
		if (this.turn === turn) this.finished();
		return undefined;
	}

	get open() {
		return [...this.jobs.values()].filter((job) => !job.ended);
	}

	finished() {
		this.halt.hidden = true;
		this.file.hidden = !this.plan.made?.cells.some((cell) => cell.image);
		announce("The grid is complete");
	}

	follow(index, job) {
		const cell = this.plan.made.cells[index];
		const { made } = this.plan;
		cell.job = job.id;
		this.jobs.set(index, job);
		const look = () => {
			if (this.plan.made !== made) return;
			if (job.images[0]?.id) cell.image = job.images[0].id;
			if (job.ended && job.state !== "done") cell.error = job.error?.message ?? job.state;
			this.cell(index);
			if (job.ended) store("grid", this.plan);
		};
		on(job, "change", look);
		look();
	}

	/** After a reload: show what there is, and go on. */
	async resume() {
		this.table();
		const turn = (this.turn = Symbol("a grid"));
		this.halt.hidden = false;
		for (const [index, cell] of this.plan.made.cells.entries()) {
			if (!cell.job || cell.image) continue;
			const row = await api(`jobs/${cell.job}`).catch(() => null);
			if (row) this.follow(index, watch(row));
			else delete cell.job;
		}
		await this.submitAll(turn);
	}

	async cancel() {
		this.turn = null;
		const stopped = this.open.map((job) => job.cancel().catch(() => null));
		this.jobs.clear();
		if (this.plan.made) for (const cell of this.plan.made.cells) if (!cell.image) cell.error ??= "cancelled";
		this.halt.hidden = true;
		store("grid", this.plan);
		await Promise.all(stopped);
	}

	table() {
		const { xs, ys, x, y, cells } = this.plan.made;
		const head = element("tr", {}, element("td"), ...xs.map((text) => element("th", { scope: "col", text: x === "prompt" ? text : `${labelOf(x)} ${text}` })));
		this.cells = cells.map(() => element("td", { className: "cell" }));
		const rows = ys.map((text, place) => element("tr", {}, element("th", { scope: "row", text: y ? (y === "prompt" ? text : `${labelOf(y)} ${text}`) : "" }), ...this.cells.slice(place * xs.length, (place + 1) * xs.length)));
		this.place.replaceChildren(element("table", { className: "comparison" }, element("caption", { className: "unseen", text: this.plan.made.prompt }), element("thead", {}, head), element("tbody", {}, ...rows)));
		cells.forEach((_, index) => this.cell(index));
		this.file.hidden = !cells.some((cell) => cell.image);
	}

	cell(index) {
		const place = this.cells[index];
		const cell = this.plan.made.cells[index];
		const row = this.jobs.get(index)?.images[0];
		const url = cell.image ? imageUrl(cell.image) : row?.preview;
		if (cell.error && !cell.image) {
			place.replaceChildren(p("error", cell.error));
			return;
		}
		if (!place.firstElementChild?.matches?.(".frame")) {
			const open = () => cell.image && this.actions.open(cell.image, this.plan.made.cells.map((one) => one.image).filter(Boolean));
			place.replaceChildren(button({ label: "Waiting", className: "frame", on: open }));
			place.firstElementChild.append(element("img", { alt: "", hidden: true }));
		}
		const frame = place.firstElementChild;
		frame.disabled = !cell.image;
		frame.classList.toggle("waiting", !url);
		frame.classList.toggle("done", Boolean(cell.image));
		frame.title = "";
		frame.setAttribute("aria-label", cell.image ? `Image ${index + 1}: open large` : row?.state === "running" ? "Generating" : "Waiting");
		const picture = frame.firstElementChild;
		if (url && picture.getAttribute("src") !== url) {
			picture.src = url;
			picture.hidden = false;
			picture.alt = cell.body.prompt;
		}
	}

	async download() {
		try {
			save(URL.createObjectURL(await gridPicture(this.plan.made)), "diptych-grid.png");
		} catch (error) {
			toast(error.message, { problem: true });
		}
	}
}
