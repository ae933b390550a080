// Images that a request starts from: an image, its mask, an image to enlarge.

import { upload } from "./api.js";
import { announce, button, byId, div, element, on, toast } from "./dom.js";
import { mark } from "./fields.js";
import { state } from "./form-state.js";
import { editMask } from "./mask.js";

const NAMES = { image: "Start from an image", low_res: "Enlarge an image" };
const HINTS = {
	image: "Drop, paste or choose an image: the model changes it.",
	low_res: "Drop or choose a small image: the model makes it large.",
};
const TYPES = "image/png,image/jpeg,image/webp";

/** Send an image to the server: {id, url, width, height}. */
export async function send(blob) {
	const { id, width, height } = await upload(blob);
	return { id, url: `api/uploads/${id}`, width, height };
}

/** Ask for a file. */
export function chooseFile(types = TYPES) {
	return new Promise((resolve) => {
		const input = element("input", { type: "file", accept: types });
		on(input, "change", () => resolve(input.files[0] ?? null));
		on(input, "cancel", () => resolve(null));
		input.click();
	});
}

/** Make an element take a dropped file. */
export function dropTarget(root, take) {
	on(root, "dragover", (event) => {
		event.preventDefault();
		root.classList?.add("over");
	});
	on(root, "dragleave", () => root.classList?.remove("over"));
	on(root, "drop", (event) => {
		root.classList?.remove("over");
		const file = event.dataTransfer?.files?.[0];
		if (!file) return;
		event.preventDefault();
		event.stopPropagation();
		document.dispatchEvent(new Event("dropped"));
		take(file);
	});
}

export class InputSlots {
	constructor(changed) {
		this.changed = changed;
		this.root = element("section", { className: "inputs", "aria-label": "Images to start from" });
		this.fields = [];
		this.slots = {};
	}

	/** Slots for what a model takes, and the options that go with an image. */
	show(schema, fields) {
		this.schema = schema;
		this.fields = fields;
		this.slots = {};
		for (const name of ["image", "low_res"]) if (schema.features[name]) this.slots[name] = this.slot(name);
		this.root.replaceChildren(...Object.values(this.slots));
		this.refresh();
	}

	slot(name) {
		const body = div("slot-body");
		const problem = element("p", { className: "error" });
		const root = element("div", { className: "field slot", "data-field": name, "data-slot": name });
		root.append(div("field-head", element("span", { className: "label", text: NAMES[name] })), body, problem);
		dropTarget(root, (file) => this.take(name, file));
		return root;
	}

	async take(name, file) {
		const root = this.slots[name];
		if (!root) return toast(`The model ${this.schema.title} does not take such an image.`, { problem: true });
		mark(root, null);
		root.classList.add("busy");
		try {
			this.set(name, await send(file));
			announce("The image is here");
		} catch (error) {
			mark(root, error.message);
			announce(error.message);
		} finally {
			root.classList.remove("busy");
		}
		return undefined;
	}

	set(name, image) {
		state.inputs = name === "image" ? { image } : { [name]: image };
		this.changed();
	}

	remove(name) {
		delete state.inputs[name];
		if (name === "image") delete state.inputs.mask;
		this.changed();
		this.slots[name === "mask" ? "image" : name]?.querySelector("button")?.focus();
	}

	refresh() {
		for (const [name, root] of Object.entries(this.slots)) {
			const image = state.inputs[name];
			const body = root.querySelector(".slot-body");
			body.replaceChildren(image ? this.filled(name, image) : this.empty(name));
			if (name !== "image" || !image) continue;
			const fits = ({ option }) => (option.needs ?? []).every((needed) => state.inputs[needed]);
			body.append(...this.fields.filter(fits).map((field) => field.root));
		}
	}

	empty(name) {
		const choose = async () => {
			const file = await chooseFile();
			if (file) this.take(name, file);
		};
		const made = button({ text: HINTS[name], icon: "image", className: "drop", on: choose });
		made.setAttribute("aria-label", `${NAMES[name]}: choose a file`);
		return made;
	}

	filled(name, image) {
		const picture = div("slot-image", element("img", { src: image.url, alt: NAMES[name] }));
		if (name === "image" && state.inputs.mask) {
			picture.append(element("img", { className: "mask", src: state.inputs.mask.url, alt: "Mask: white is generated anew" }));
		}
		const tools = div("slot-tools");
		if (name === "image" && this.schema.features.mask) {
			const text = state.inputs.mask ? "Edit the mask" : "Paint a mask";
			tools.append(button({ text, icon: "brush", className: "small", id: "paint-mask", on: () => this.paint(image) }));
			if (state.inputs.mask) tools.append(button({ text: "Remove the mask", className: "small bare", on: () => this.remove("mask") }));
		}
		tools.append(button({ text: "Remove", icon: "close", className: "small bare", on: () => this.remove(name) }));
		return div("slot-filled", picture, tools);
	}

	async paint(image) {
		const blob = await editMask(image.url, state.inputs.mask?.url ?? null);
		if (!blob) return;
		try {
			const first = !state.inputs.mask;
			state.inputs.mask = await send(blob);
			this.changed();
			if (first) this.root.querySelector("[data-field=paste] input:not(:checked)")?.click();
			byId("prompt").focus();
		} catch (error) {
			mark(this.slots.image, error.message);
		}
	}
}
