// Buttons for a finished image, and how it is described.

import { api, imageUrl } from "./api.js";
import { button, div, on, save, setPressed } from "./dom.js";
import { labelOf } from "./fields.js";

const number = (value) => (typeof value === "number" ? String(Math.round(value * 1000) / 1000) : String(value));

/** A value of the metadata as words. */
export function words(value) {
	if (value === null || value === undefined || value === "") return "";
	if (Array.isArray(value)) return value.map((part) => words(part) || "–").join(" · ");
	if (typeof value === "object") {
		const parts = Object.entries(value).map(([name, part]) => `${name} ${words(part)}`);
		return value.file ?? value.name ?? value.source ?? parts.join(", ");
	}
	return typeof value === "boolean" ? (value ? "yes" : "no") : number(value);
}

/** One line below an image. */
export function metaLine(row) {
	const { metadata = {} } = row;
	const stages = metadata.stages ?? [];
	const of = (name) => words(stages.length ? stages.map((stage) => stage[name] ?? null) : metadata[name]);
	const parts = [row.model, `seed ${row.seed}`, of("steps") && `${of("steps")} steps`, stages.length ? "" : of("sampler")];
	parts.push(of("guidance") && `guidance ${of("guidance")}`, `${row.width} × ${row.height}`);
	return parts.filter(Boolean).join("  ·  ");
}

/** All parameters, as rows of [name, value]. */
export function parameters(row) {
	const { metadata = {} } = row;
	const rows = [["Model", row.model], ["Seed", row.seed], ["Size", `${row.width} × ${row.height}`]];
	const skip = new Set(["model", "seed", "prompt", "negative", "size", "stages", "cost"]);
	for (const [name, value] of Object.entries(metadata)) if (!skip.has(name) && words(value)) rows.push([labelOf(name), words(value)]);
	for (const [index, stage] of (metadata.stages ?? []).entries()) {
		const values = Object.entries(stage).filter(([name, value]) => words(value) && typeof value !== "object" && name !== "name");
		rows.push([`Stage ${index + 1}`, values.map(([name, value]) => `${name} ${words(value)}`).join(", ")]);
	}
	if (metadata.cost?.calls) rows.push(["Network calls", metadata.cost.calls]);
	rows.push(["Made", new Date(row.created * 1000).toLocaleString()]);
	return rows;
}

function fileName(row) {
	const base = row.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "image";
	return `${base}-s${row.seed}.png`;
}

async function setFavourite(row, favourite) {
	row.favourite = favourite;
	await api(`images/${row.id}`, { method: "PATCH", json: { favourite } });
	document.dispatchEvent(new CustomEvent("favourite", { detail: row }));
}

export function heart(row) {
	const made = button({ label: "Favourite", icon: "heart", className: "bare heart" });
	const show = () => setPressed(made, row.favourite);
	on(made, "click", async () => {
		await setFavourite(row, !row.favourite).catch(() => (row.favourite = !row.favourite));
		show();
	});
	show();
	return made;
}

/** Buttons for one image. */
export function imageTools(row, actions) {
	const tools = [
		button({ text: "Vary", icon: "vary", on: () => actions.vary(row) }),
		button({ text: "Start from it", icon: "image", on: () => actions.startFrom(row) }),
		button({ text: "Inpaint", icon: "brush", on: () => actions.inpaint(row) }),
		button({ text: "Enlarge", icon: "enlarge", on: () => actions.enlarge(row) }),
		button({ text: "Use these settings", icon: "settings", on: () => actions.useSettings(row) }),
	];
	const more = [
		heart(row),
		actions.open ? button({ label: "Open large", icon: "search", className: "bare", on: () => actions.open(row.id) }) : null,
		button({ label: "Download", icon: "download", className: "bare", on: () => save(imageUrl(row.id), fileName(row)) }),
		button({ label: "Delete", icon: "trash", className: "bare", on: () => actions.remove([row]) }),
	];
	return div("image-tools", div("row", ...tools), div("row", ...more));
}

