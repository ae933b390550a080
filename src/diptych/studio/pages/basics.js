// Model, a second model to compare with, seed with dice and lock, and the number of images.

import { randomSeed } from "./api.js";
import { button, choice, div, element, on, setIcon, setPressed, textInput } from "./dom.js";
import { mark } from "./fields.js";
import { keep, state } from "./form-state.js";

/** A labelled field, with a place for its error. */
export function simpleField(name, text, ...parts) {
	const { id } = parts[0];
	parts[0].setAttribute("aria-describedby", `${id}-error`);
	const head = div("field-head", element("label", { for: id, text }));
	const problem = element("p", { id: `${id}-error`, className: "error" });
	return element("div", { className: "field", "data-field": name }, head, div("field-body", ...parts), problem);
}

/** A select whose choice is kept by `take(value)`. */
function select(id, choices, value, take) {
	const made = element("select", { id }, ...choices.map((one) => choice(...one)));
	made.value = value ?? "";
	on(made, "change", () => {
		take(made.value);
		keep();
	});
	return made;
}

export class Basics {
	/** `choose(name)` follows the choice of a model. */
	constructor(models, choose) {
		const names = models.map(({ name, title }) => [name, title ?? name]);
		this.model = select("model", names, state.model, choose);
		const row = div(models.length > 1 ? "pair even" : "", simpleField("model", "Model", this.model));
		if (!models.some((model) => model.name === state.second)) state.second = null;
		if (models.length > 1) {
			const second = select("second", [["", "none"], ...names], state.second, (value) => (state.second = value || null));
			row.append(simpleField("second", "Side by side with", second));
		}
		this.style = select("style", [], "", (value) => (state.style = value));
		this.styleField = simpleField("style", "Style", this.style);
		this.seed = textInput({ id: "seed", inputmode: "numeric", placeholder: "random" });
		on(this.seed, "input", () => {
			const text = this.seed.value.trim();
			state.seed = /^\d{1,15}$/.test(text) ? Number(text) : text;
			mark(this.field, null);
			this.lock(text !== "");
		});
		const roll = () => {
			state.seed = randomSeed();
			keep();
			this.show();
		};
		const dice = button({ label: "Another seed", icon: "dice", className: "bare", id: "dice", on: roll });
		this.locker = button({ label: "Keep this seed", icon: "unlock", className: "bare", id: "lock", on: () => this.lock(!state.locked) });
		this.field = simpleField("seed", "Seed", this.seed, dice, this.locker);
		const counts = [1, 2, 3, 4, 6, 8].map((one) => [one]);
		const count = select("count", counts, state.count, (value) => (state.count = Number(value)));
		this.rows = [row, this.styleField, div("pair", this.field, simpleField("count", "Images", count))];
	}

	lock(locked) {
		state.locked = locked;
		setPressed(this.locker, locked);
		this.locker.title = locked ? "The seed stays: click for a new one each time" : "Each time a new seed: click to keep this one";
		setIcon(this.locker, locked ? "lock" : "unlock");
		keep();
	}

	/** Offer the styles of a model. */
	offer(styles = []) {
		this.styleField.hidden = !styles.length;
		this.style.replaceChildren(choice("", "none"), ...styles.map((one) => choice(one)));
		this.style.value = styles.includes(state.style) ? state.style : "";
	}

	/** What the state says, after it was changed elsewhere. */
	show() {
		this.model.value = state.model;
		this.seed.value = state.seed;
		this.lock(state.locked);
		mark(this.field, null);
	}
}
