// Dropped or pasted files: a PNG restores its settings, or is the init image.

import { api } from "./api.js";
import { announce, byId, element, on, span, toast } from "./dom.js";
import { dropTarget, send } from "./inputs.js";

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

export class Drops {
	constructor(form) {
		this.form = form;
		const zone = (name, title, text) => {
			const made = element("div", { className: "zone", "data-zone": name }, element("strong", { text: title }), span(text));
			dropTarget(made, (file) => (name === "restore" ? this.restore(file) : this.start(file)));
			return made;
		};
		this.zones = element("div", { className: "zones", hidden: true, id: "zones" },
			zone("restore", "Restore its settings", "of a PNG that diptych made"),
			zone("start", "Start from this image", "the model changes it"));
		document.body.append(this.zones);
		dropTarget(document, (file) => this.restore(file));
		on(document, "dragenter", (event) => hasFiles(event) && this.show());
		on(document, "dragleave", (event) => event.relatedTarget === null && this.hide());
		on(document, "dropped", () => this.hide());
		on(document, "paste", (event) => {
			const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
			if (!file) return;
			event.preventDefault();
			this.start(file);
		});
	}

	show() {
		if (document.querySelector("dialog[open]")) return;
		this.zones.hidden = false;
	}

	hide() {
		this.zones.hidden = true;
	}

	/** Fill the form with the settings in a PNG. */
	async restore(file) {
		const canStart = this.form.schema?.features.image;
		const action = canStart ? { label: "Start from it instead", run: () => this.start(file) } : null;
		try {
			const { missing = [], ...fields } = await api("read", { body: file });
			await this.form.restore(fields);
			location.hash = "#/";
			const without = missing.length ? `, but for ${missing.join(" and ")}` : "";
			toast(`Settings restored from ${file.name || "the image"}${without}`, { action });
			announce("Settings restored");
			byId("prompt").focus();
		} catch (error) {
			toast(error.message, { problem: true, action, seconds: 10 });
		}
	}

	/** Start from an image. */
	async start(file) {
		location.hash = "#/";
		try {
			this.form.slots.set("image", await send(file));
			announce("The model will start from this image");
		} catch (error) {
			toast(error.message, { problem: true });
		}
	}
}
