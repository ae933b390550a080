// An image alone, large, with all its parameters.

import { api, imageUrl } from "./api.js";
import { button, dialog, div, element, on, p } from "./dom.js";
import { imageTools, parameters } from "./image-tools.js";

/** Open images, `ids`, at `id`; arrow keys go on and back. */
export function openViewer(ids, id, actions) {
	let place = Math.max(0, ids.indexOf(id));
	const picture = element("img", { alt: "", draggable: "false" });
	const view = div("view", picture);
	const side = element("aside", { "aria-label": "Parameters" });
	const turn = (by) => {
		const next = place + by;
		if (next < 0 || next >= ids.length) return;
		place = next;
		show();
	};
	const back = button({ label: "Previous image", icon: "back", className: "turn back", on: () => turn(-1) });
	const forth = button({ label: "Next image", icon: "next", className: "turn next", on: () => turn(1) });
	view.append(back, forth);
	const { open: _, ...others } = actions;
	const leaving = Object.fromEntries(Object.entries(others).map(([name, run]) => [name, (...values) => {
		made.close();
		return run(...values);
	}]));
	const made = dialog("Image", [view, side], { className: "viewer" });
	on(made, "keydown", (event) => {
		if (event.target.matches?.("input, textarea, select")) return;
		const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
		if (!by) return;
		event.preventDefault();
		turn(by);
	});

	async function show() {
		const id = ids[place];
		back.disabled = place === 0;
		forth.disabled = place === ids.length - 1;
		picture.src = imageUrl(id);
		const row = await api(`images/${id}`).catch(() => null);
		if (ids[place] !== id) return;
		if (!row) {
			side.replaceChildren(p("", "This image was deleted."));
			return;
		}
		picture.alt = row.prompt;
		picture.style.maxWidth = `${Math.max(row.width * 8, 384)}px`;
		const list = element("dl", {}, ...parameters(row).flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: String(value) })]));
		const negative = row.request.negative ? [p("soft", `without: ${row.request.negative}`)] : [];
		side.replaceChildren(p("prompt-words", row.prompt), ...negative, imageTools(row, leaving), list);
	}
	show();
}
