// The gallery, newest first: search, favourites, selection, download, delete with undo.

import { api, thumbnailUrl } from "./api.js";
import { announce, button, debounced, div, element, icon, on, p, pressed, refill, save, setPressed, toast } from "./dom.js";
import { heart } from "./image-tools.js";
import { openViewer } from "./viewer.js";

const PAGE = 60;
const UNDO = 6;

const leaving = new Map(); // id -> row: deleted for the eye, and on the server when the time to undo has passed

/** Delete images, with a few seconds to undo it. */
export function removeLater(rows) {
	rows.forEach((row) => leaving.set(row.id, row));
	document.dispatchEvent(new CustomEvent("removed"));
	const text = rows.length === 1 ? "Image deleted" : `${rows.length} images deleted`;
	const undo = () => {
		rows.forEach((row) => leaving.delete(row.id));
		document.dispatchEvent(new CustomEvent("removed"));
		announce("Nothing was deleted");
	};
	toast(text, { action: { label: "Undo", run: undo }, seconds: UNDO, over: () => rows.forEach((row) => removeNow(row.id)) });
}

export const isLeaving = (id) => leaving.has(id);

function removeNow(id) {
	if (!leaving.has(id)) return;
	api(`images/${id}`, { method: "DELETE", keepalive: true }).then(() => leaving.delete(id), (error) => {
		leaving.delete(id);
		if (error.status === 404) return;
		toast(error.message, { problem: true });
		document.dispatchEvent(new CustomEvent("removed"));
	});
}

on(window, "pagehide", () => [...leaving.keys()].forEach(removeNow));

export class Gallery {
	constructor(root, actions) {
		this.root = root;
		this.actions = actions;
		this.rows = [];
		this.selected = new Set();
		this.search = element("input", { type: "search", placeholder: "Search prompts, models, seeds", "aria-label": "Search the gallery", id: "search" });
		on(this.search, "input", debounced(() => this.load(), 200));
		this.favourites = button({ text: "Favourites", icon: "heart", "aria-pressed": "false", on: () => {
			setPressed(this.favourites, !pressed(this.favourites));
			this.load();
		} });
		this.select = button({ text: "Select", icon: "check", "aria-pressed": "false", id: "select", on: () => this.selecting(!this.choosing) });
		this.bar = element("div", { className: "selection", hidden: true, role: "toolbar", "aria-label": "Selected images" });
		this.makeBar();
		this.grid = element("ul", { className: "grid", "aria-label": "Images" });
		this.more = button({ text: "Show more", on: () => this.load(true) });
		this.nothing = element("div", { className: "empty small", hidden: true });
		const head = div("gallery-head", element("label", { className: "search" }, icon("search"), this.search), this.favourites, this.select);
		root.replaceChildren(element("h1", { className: "unseen", text: "Gallery" }), head, this.bar, this.grid, this.nothing, this.more);
		on(document, "removed", () => this.draw());
		new IntersectionObserver((seen) => {
			if (seen.some((one) => one.isIntersecting) && !this.more.hidden && !this.asked) this.load(true);
		}).observe(this.more);
	}

	get choosing() {
		return pressed(this.select);
	}

	get visible() {
		return this.rows.filter((row) => !isLeaving(row.id));
	}

	async load(further = false) {
		const query = new URLSearchParams({ limit: PAGE, search: this.search.value.trim() });
		if (pressed(this.favourites)) query.set("favourite", "true");
		if (further && this.rows.length) query.set("before", this.rows.at(-1).sequence);
		const asked = (this.asked = query.toString());
		try {
			const rows = await api(`images?${query}`);
			if (asked !== this.asked) return; // another search was typed meanwhile
			this.asked = null;
			this.rows = further ? [...this.rows, ...rows] : rows;
			this.more.hidden = rows.length < PAGE;
			this.draw();
		} catch (error) {
			this.more.hidden = true;
			toast(error.message, { problem: true });
		}
	}

	draw() {
		const known = new Map([...this.grid.children].map((one) => [one.dataset.id, one]));
		refill(this.grid, this.visible.map((row) => known.get(row.id) ?? this.item(row)));
		const searched = this.search.value.trim() || pressed(this.favourites);
		this.nothing.hidden = this.visible.length > 0;
		this.nothing.replaceChildren(
			p("lead", searched ? "Nothing here matches." : "No images yet."),
			p("soft", searched ? "Search for other words, or show all." : "What you generate is kept here, also when the server is started again."),
		);
		this.mark();
	}

	item(row) {
		const picture = element("img", { src: thumbnailUrl(row.id), alt: row.prompt, loading: "lazy", draggable: "false" });
		const open = element("button", { type: "button", className: "card", "aria-label": row.prompt || "image" }, picture, element("span", { className: "card-words", text: row.prompt, "aria-hidden": "true" }));
		on(open, "click", (event) => {
			if (this.choosing || event.shiftKey || event.ctrlKey || event.metaKey) this.toggle(row.id, event.shiftKey);
			else this.open(row.id);
		});
		return element("li", { "data-id": row.id }, open, heart(row));
	}

	open(id) {
		openViewer(this.visible.map((row) => row.id), id, this.actions);
	}

	selecting(on) {
		setPressed(this.select, on);
		if (!on) this.selected.clear();
		this.mark();
	}

	toggle(id, range) {
		if (!this.choosing) this.selecting(true);
		const ids = this.visible.map((row) => row.id);
		if (range && this.lastPicked) {
			const [from, to] = [ids.indexOf(this.lastPicked), ids.indexOf(id)].sort((a, b) => a - b);
			ids.slice(from, to + 1).forEach((one) => this.selected.add(one));
		} else if (!this.selected.delete(id)) this.selected.add(id);
		this.lastPicked = id;
		this.mark();
	}

	get picked() {
		return this.visible.filter((row) => this.selected.has(row.id));
	}

	makeBar() {
		this.many = element("span", { role: "status" });
		const all = () => {
			this.visible.forEach((row) => this.selected.add(row.id));
			this.mark();
		};
		const remove = () => {
			const rows = this.picked;
			this.selecting(false);
			removeLater(rows);
		};
		this.needing = [
			button({ text: "Download as .zip", icon: "download", className: "small", id: "zip", on: () => this.zip(this.picked) }),
			button({ text: "Delete", icon: "trash", className: "small", id: "delete-selected", on: remove }),
		];
		const done = button({ text: "Done", className: "small bare", on: () => this.selecting(false) });
		this.bar.append(this.many, button({ text: "All", className: "small bare", on: all }), ...this.needing, done);
	}

	mark() {
		const rows = this.picked;
		this.grid.classList.toggle("choosing", this.choosing);
		for (const one of this.grid.children) {
			const pick = one.firstElementChild;
			if (this.choosing) setPressed(pick, this.selected.has(one.dataset.id));
			else pick.removeAttribute("aria-pressed");
		}
		this.bar.hidden = !this.choosing;
		this.many.textContent = `${rows.length} selected`;
		for (const one of this.needing) one.disabled = rows.length === 0;
	}

	async zip(rows) {
		try {
			const response = await api("images/zip", { json: { ids: rows.map((row) => row.id) }, raw: true });
			save(URL.createObjectURL(await response.blob()), "diptych-images.zip");
		} catch (error) {
			toast(error.message, { problem: true });
		}
	}
}
