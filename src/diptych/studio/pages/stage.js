// The result: images as they come to be, and what one may do next.

import { api, imageUrl, schemaOf, thumbnailUrl } from "./api.js";
import { alarm, announce, button, div, element, on, p, reducedMotion, refill, span } from "./dom.js";
import { EXAMPLES } from "./form-state.js";
import { imageTools, metaLine } from "./image-tools.js";
import { openJobs } from "./jobs.js";
import { StepStrip } from "./strip.js";

function seconds(left) {
	if (left === null || left === undefined) return "";
	if (left < 1) return "less than a second left";
	return left < 90 ? `about ${Math.round(left)} s left` : `about ${Math.round(left / 60)} min left`;
}

/** One image of a job while it is made and afterwards. */
class Tile {
	constructor(stage, job, index, size) {
		Object.assign(this, { stage, job, index });
		this.picture = element("img", { alt: "", hidden: true, draggable: "false" });
		this.button = element("button", { type: "button", className: "frame" }, this.picture);
		this.button.style.aspectRatio = `${size[0]} / ${size[1]}`;
		on(this.button, "click", () => this.pick());
		on(this.button, "dblclick", () => this.open());
		this.update();
	}

	get row() {
		return this.job.images[this.index];
	}

	update() {
		const { row, job, picture } = this;
		const prompt = job.request.prompt;
		const url = row.id ? imageUrl(row.id) : row.preview;
		if (url && picture.getAttribute("src") !== url) {
			picture.src = url;
			picture.hidden = false;
		}
		const done = Boolean(row.id);
		picture.alt = done ? prompt : `Preview: ${prompt}`;
		this.button.classList.toggle("done", done);
		this.button.classList.toggle("waiting", !url && !job.ended);
		this.button.setAttribute("aria-label", done ? `Image ${this.index + 1}: ${prompt}` : `Image ${this.index + 1}, ${row.state}`);
		this.button.disabled = !done;
	}

	pick() {
		if (this.row.id) this.stage.choose(this.row.id);
	}

	open() {
		if (this.row.id) this.stage.actions.open(this.row.id);
	}
}

export class Stage {
	constructor(root, actions) {
		this.root = root;
		this.actions = actions;
		this.strip = new StepStrip((preview) => this.scrub(preview));
		this.tiles = [];
		this.jobs = [];
		this.chosen = null;
		this.panes = div("panes");
		this.bar = element("progress", { max: "1", value: "0", "aria-label": "Progress" });
		this.words = element("span", { className: "progress-words" });
		this.cancel = button({ text: "Cancel", className: "small", id: "cancel", on: () => this.stop() });
		this.cancel.append(element("kbd", { text: "Esc", "aria-hidden": "true" }));
		this.progress = element("div", { className: "progress", hidden: true }, this.bar, div("progress-line", this.words, this.cancel));
		this.notes = div("notes");
		this.caption = div("caption");
		this.recent = element("div", { className: "recent", role: "group", "aria-label": "Latest images" });
		root.replaceChildren(this.panes, this.progress, this.notes, this.caption, this.strip.root, this.recent);
		this.empty();
	}

	empty() {
		this.jobs = [];
		this.chosen = null;
		this.strip.hide();
		this.caption.replaceChildren();
		const chips = EXAMPLES.map((text) => button({ text, className: "chip", on: () => this.actions.example(text) }));
		const words = [
			p("lead", "Press Enter, and an image appears."),
			p("soft", "Or try one of these:"),
			div("chips", ...chips),
		];
		const leaf = () => element("div", { className: "leaf", "aria-hidden": "true" });
		this.panes.replaceChildren(div("empty", div("leaves", leaf(), leaf()), ...words));
	}

	turnTo(jobs) {
		for (const job of this.jobs) job.removeEventListener("change", this.listener);
		this.jobs = jobs;
		this.chosen = null;
		this.notes.replaceChildren();
	}

	/** Show jobs side by side. */
	async show(jobs) {
		this.turnTo(jobs);
		this.strip.hide();
		this.caption.replaceChildren();
		this.quarter = -1;
		const sizes = await Promise.all(jobs.map((job) => sizeOf(job.request)));
		if (this.jobs !== jobs) return;
		this.actions.moved();
		this.tiles = jobs.map((job, place) => job.images.map((_, index) => new Tile(this, job, index, sizes[place])));
		this.panes.replaceChildren(...jobs.map((job, place) => this.pane(job, this.tiles[place], jobs.length > 1)));
		this.panes.dataset.count = String(jobs.length);
		this.listener = (event) => this.changed(event.target, event.detail);
		for (const job of jobs) on(job, "change", this.listener);
		jobs.forEach((job) => this.changed(job, null));
	}

	pane(job, tiles, named) {
		const grid = element("div", { className: "tiles", "data-count": tiles.length }, ...tiles.map((tile) => tile.button));
		const stages = element("ol", { className: "stages", "aria-label": "Stages so far", hidden: true });
		const name = named ? [element("h2", { text: job.request.model })] : [];
		return element("div", { className: "pane", "data-job": job.id }, ...name, grid, stages);
	}

	changed(job, index) {
		const place = this.jobs.indexOf(job);
		if (place < 0) return;
		const tiles = this.tiles[place];
		(index === null ? tiles : [tiles[index]]).forEach((tile) => tile?.update());
		this.showStages(job, place);
		this.showProgress();
		if (!job.ended) return;
		const finished = job.images.find((image) => image.id);
		if (job.state === "done" && finished && !this.chosen && place === 0) this.choose(finished.id);
		this.showNotes();
	}

	/** The last preview of each stage of a cascade, from small to large. */
	showStages(job, place) {
		const list = this.panes.children[place]?.querySelector(".stages");
		const { previews = {}, id } = job.images[0];
		const names = Object.keys(previews);
		if (!list || names.length + (id ? 1 : 0) < 2) return;
		list.hidden = false;
		const shown = names.map((name) => [`${name} px`, previews[name]]);
		list.replaceChildren(...shown.map(([name, url]) =>
			element("li", {}, element("img", { src: url, alt: `Stage of ${name}` }), span(name))));
	}

	showProgress() {
		const open = this.jobs.filter((job) => !job.ended);
		this.progress.hidden = open.length === 0;
		this.root.setAttribute("aria-busy", String(open.length > 0));
		document.title = open.length ? "… diptych" : "diptych";
		if (!open.length) return;
		const rows = this.jobs.flatMap((job) => job.images);
		const total = rows.reduce((sum, row) => sum + (row.id ? 1 : row.steps ? row.step / row.steps : 0), 0);
		const part = total / rows.length;
		const job = open.find((one) => one.state === "running") ?? open[0];
		if (job.state === "queued") {
			this.bar.removeAttribute("value");
			const before = job.position ?? 0;
			this.words.textContent = before ? `Waiting: ${before} ${before === 1 ? "image" : "images"} before yours` : "Starting";
			return;
		}
		this.bar.value = part;
		const row = job.images.find((image) => image.state === "running" && image.steps) ?? job.images[0];
		const stage = row.stage ? `${row.stage} px` : "";
		const step = row.steps ? `Step ${row.step} of ${row.steps}` : "Starting";
		this.words.textContent = [step, stage, seconds(job.secondsLeft)].filter(Boolean).join(" · ");
		const quarter = Math.floor(part * 4);
		if (quarter > (this.quarter ?? -1)) {
			this.quarter = quarter;
			announce(quarter === 0 ? "Generating" : `${Math.round(part * 100)} % done`);
		}
	}

	showNotes() {
		const notes = [];
		for (const job of this.jobs.filter((one) => one.ended)) {
			const named = this.jobs.length > 1 ? `${job.request.model}: ` : "";
			if (job.state === "failed") notes.push(alarm(named + (job.error?.message ?? "failed")));
			if (job.state === "cancelled") notes.push(p("soft", `${named}Cancelled.`));
			if (job.state === "lost") notes.push(p("error", `${named}The server stopped before this was done.`));
			if (["failed", "cancelled", "lost"].includes(job.state)) {
				notes.push(button({ text: "Run again", className: "small", on: () => this.actions.again(job.request) }));
			}
			for (const text of job.warnings) notes.push(p("warning", named + text));
		}
		this.notes.replaceChildren(...notes);
	}

	stop() {
		this.jobs.filter((job) => !job.ended).forEach((job) => job.cancel().catch((error) => this.actions.problem(error)));
	}

	get busy() {
		return this.jobs.some((job) => !job.ended);
	}

	/** Make an image the chosen one: its caption, tools and steps are shown. */
	async choose(id, focus = false) {
		this.chosen = id;
		for (const tile of this.tiles.flat()) tile.button.setAttribute("aria-current", String(tile.row.id === id));
		for (const one of this.recent.children) one.setAttribute("aria-current", String(one.dataset.id === id));
		const row = await api(`images/${id}`).catch(() => null);
		if (this.chosen !== id || !row) return;
		const caption = p("prompt-words", row.prompt);
		const line = p("meta", metaLine(row));
		this.caption.replaceChildren(caption, line, imageTools(row, this.actions));
		if (focus) this.caption.querySelector("button")?.focus();
		if (!this.busy) announce(`Done: ${row.prompt}`);
		this.strip.load(row);
	}

	/** Show an image of the history alone. */
	async showImage(row) {
		const images = [{ index: 0, seed: row.seed, state: "done", id: row.id, step: 0 }];
		const job = Object.assign(new EventTarget(), { id: row.job, request: row.request, images, state: "done", ended: true, warnings: [] });
		this.turnTo([job]);
		this.actions.moved();
		this.tiles = [[new Tile(this, job, 0, [row.width, row.height])]];
		this.panes.replaceChildren(this.pane(job, this.tiles[0], false));
		this.panes.dataset.count = "1";
		this.showProgress();
		if (row.stages) this.earlierStages(row);
		await this.choose(row.id);
	}

	/** The kept images of a cascade's earlier stages. */
	earlierStages(row) {
		const list = this.panes.querySelector(".stages");
		list.hidden = false;
		for (let stage = 1; stage <= row.stages; stage += 1) {
			const picture = element("img", { src: `${imageUrl(row.id)}?stage=${stage}`, alt: `Stage ${stage}` });
			list.append(element("li", {}, picture, span(`stage ${stage}`)));
		}
	}

	/** Show an estimate of a step in place of the image; null shows the image again. */
	scrub(preview) {
		const tile = this.tiles.flat().find((one) => one.row.id === this.chosen);
		if (!tile) return;
		tile.picture.src = preview ?? imageUrl(this.chosen);
		tile.button.classList.toggle("scrubbed", preview !== null);
	}

	/** Jobs that go on out of sight, and the latest images. */
	showRecent(rows) {
		const jobs = openJobs().filter((job) => !this.jobs.includes(job));
		const waiting = jobs.map((job) => button({ label: `Being generated: ${job.request.prompt}`, className: "thumb frame waiting", on: () => this.show([job]) }));
		this.recent.hidden = rows.length + jobs.length === 0;
		const images = rows.map((row) => {
			const made = button({ label: row.prompt, className: "thumb", "data-id": row.id, on: () => this.showImage(row) });
			made.setAttribute("aria-current", String(row.id === this.chosen));
			made.append(element("img", { src: thumbnailUrl(row.id), alt: "", loading: "lazy" }));
			return made;
		});
		refill(this.recent, [...waiting, ...images]);
		if (this.chosen && !reducedMotion()) this.recent.scrollTo({ left: 0, behavior: "smooth" });
	}
}

async function sizeOf(request) {
	if (request.options?.size) return request.options.size;
	const schema = await schemaOf(request.model).catch(() => null);
	return schema?.size ?? [1, 1];
}
