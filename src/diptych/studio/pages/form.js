// The panel: prompt, model, seed, and the options of the model, drawn from what the server says of them.

import { api, schemaOf, store, stored } from "./api.js";
import { Basics, simpleField } from "./basics.js";
import { BoxCanvas } from "./boxes.js";
import { announce, button, byId, choice, debounced, div, element, on, span, textInput, toast } from "./dom.js";
import { mark, optionField } from "./fields.js";
import { adopt, keep, nextSeed, promptKind, requestOf, state } from "./form-state.js";
import { InputSlots } from "./inputs.js";

const BASIC = ["steps", "guidance", "sampler", "schedule_type", "size", "temperature"];
const WITH_IMAGE = "from an image";

export class Form {
	/** `generate()` is called by the button and the keys. */
	constructor(models, generate) {
		this.models = models;
		this.generate = generate;
		this.options = [];
		this.compose = byId("compose");
		this.basics = new Basics(models, (name) => this.select(name));
		this.rest = div("rest");
		byId("fields").append(...this.basics.rows, this.rest);
		this.slots = new InputSlots(() => this.inputsChanged());
		this.check = debounced(() => this.checkPrompt(), 350);
		on(byId("panel"), "submit", (event) => {
			event.preventDefault();
			this.generate();
		});
		const settings = byId("settings");
		const wide = innerWidth >= 800;
		settings.open = stored(`settings-${wide}`, wide);
		on(settings, "toggle", () => store(`settings-${wide}`, settings.open));
		this.makePrompt();
	}

	makePrompt() {
		this.prompt = element("textarea", {
			dir: "auto",
			id: "prompt", rows: "3", autocomplete: "off", "aria-describedby": "prompt-error tokens warning",
			placeholder: "What should the image show?", enterkeyhint: "go",
		});
		on(this.prompt, "input", () => {
			state.prompts[this.kind] = this.prompt.value;
			this.boxes?.write(this.prompt.value);
			this.edited(this.promptField);
		});
		on(this.prompt, "keydown", (event) => {
			if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.ctrlKey || event.metaKey) return;
			event.preventDefault();
			this.generate();
		});
		this.classes = element("datalist", { id: "class-names" });
		this.className = element("input", { id: "class-name", list: "class-names", autocomplete: "off", "aria-label": "Class" });
		on(this.className, "input", () => {
			this.prompt.value = state.prompts.class = this.className.value;
			this.edited(this.promptField);
		});
		this.boxPlace = element("div", { id: "boxes" });
		this.tokens = element("span", { id: "tokens", className: "soft" });
		this.warning = element("p", { id: "warning", className: "warning", role: "status" });
		this.label = element("label", { for: "prompt", text: "Prompt" });
		const head = div("field-head", this.label, this.tokens);
		const problem = element("p", { id: "prompt-error", className: "error" });
		this.promptField = element("div", { className: "field", "data-field": "prompt" });
		this.promptField.append(head, this.prompt, this.className, this.classes, this.boxPlace, problem, this.warning);

		this.negative = textInput({ id: "negative", dir: "auto", placeholder: "what to steer away from" });
		this.negative.value = state.negative;
		on(this.negative, "input", () => {
			state.negative = this.negative.value;
			this.edited(this.negativeField);
		});
		this.negativeField = simpleField("negative", "Negative prompt", this.negative);
		this.button = button({ text: "Generate", className: "primary wide", type: "submit", id: "generate" });
		this.button.append(element("kbd", { text: "Enter", "aria-hidden": "true" }));
		this.problem = element("p", { className: "error general", role: "alert" });
		this.compose.replaceChildren(this.promptField, this.negativeField, this.button, this.problem);
	}

	/** Show the form of a model. */
	async select(name) {
		const fallback = this.models[0].name;
		const wanted = this.models.some((model) => model.name === name) ? name : fallback;
		state.model = wanted;
		keep();
		const panel = byId("panel");
		panel.setAttribute("aria-busy", "true");
		let schema;
		try {
			schema = await schemaOf(wanted);
		} catch (error) {
			if (!this.schema && wanted === fallback) throw error;
			toast(error.message, { problem: true });
			return this.select(this.schema?.name ?? fallback);
		} finally {
			panel.removeAttribute("aria-busy");
		}
		if (state.model !== wanted) return undefined;
		this.schema = schema;
		this.kind = promptKind(schema);
		this.basics.show();
		this.basics.offer(schema.styles);
		this.showPrompt();
		this.showOptions();
		this.inputsChanged();
		return this.checkPrompt();
	}

	showPrompt() {
		const { kind, schema } = this;
		this.prompt.value = state.prompts[kind] ?? "";
		this.prompt.hidden = kind === "class";
		this.className.hidden = kind !== "class";
		this.label.htmlFor = kind === "class" ? "class-name" : "prompt";
		this.label.textContent = { text: "Prompt", class: "Class", layout: "Boxes with words" }[kind];
		this.className.value = this.prompt.value;
		this.classes.replaceChildren(...(kind === "class" ? schema.classes : []).map((value) => choice(value)));
		this.boxes = null;
		this.boxPlace.replaceChildren();
		if (kind === "layout") {
			const drawn = (text) => {
				this.prompt.value = state.prompts.layout = text;
				this.edited(this.promptField);
			};
			this.boxes = new BoxCanvas(schema.layout_names ?? [], schema.size, drawn);
			this.boxes.write(this.prompt.value);
			this.boxPlace.append(this.boxes.root);
		}
		this.negative.value = state.negative;
		this.negativeField.hidden = !schema.features.negative;
		mark(this.promptField, null);
	}

	showOptions() {
		const saved = state.options[this.schema.name] ?? {};
		this.options = this.schema.options.map((option) => {
			const field = optionField(option, this.schema.stages ?? [], () => this.read(field));
			if (saved[option.name] !== undefined) field.write(saved[option.name]);
			return field;
		});
		const basic = BASIC.map((name) => this.options.find(({ option }) => option.name === name)).filter(Boolean);
		const groups = new Map();
		this.imageFields = [];
		for (const field of this.options) {
			if (basic.includes(field)) continue;
			const group = field.option.group || "more";
			if (group === WITH_IMAGE) this.imageFields.push(field);
			else groups.set(group, [...(groups.get(group) ?? []), field]);
		}
		this.slots.show(this.schema, this.imageFields);
		const more = [...groups].map(([name, fields]) => {
			const set = fields.some((field) => field.read() !== undefined);
			const summary = element("summary", { text: name[0].toUpperCase() + name.slice(1) });
			return element("details", { className: "group", open: set }, summary, ...fields.map((field) => field.root));
		});
		const reset = button({ text: "Reset to the model's own", className: "bare small", on: () => {
			delete state.options[this.schema.name];
			keep();
			this.showOptions();
			announce("Settings reset");
		} });
		this.rest.replaceChildren(...basic.map((field) => field.root), this.slots.root, ...more, reset);
	}

	read(field) {
		const set = { ...(state.options[this.schema.name] ?? {}) };
		const value = field.read();
		if (value === undefined) delete set[field.option.name];
		else set[field.option.name] = value;
		state.options[this.schema.name] = set;
		this.edited(field.root);
	}

	edited(root) {
		mark(root, null);
		this.problem.textContent = "";
		keep();
		this.check();
	}

	inputsChanged() {
		if (!this.schema) return;
		this.slots.refresh();
		keep();
	}

	async checkPrompt() {
		const { schema, kind } = this;
		const { size } = state.options[schema.name] ?? {};
		const body = { model: schema.name, prompt: state.prompts[kind] ?? "" };
		if (Array.isArray(size) && size.every(Number.isInteger)) body.size = size;
		this.checked = body;
		const row = await api("check", { json: body }).catch(() => null);
		if (!row || body !== this.checked || schema !== this.schema || body.prompt !== (state.prompts[kind] ?? "")) return;
		this.tokens.textContent = row.limit ? `${row.tokens ?? 0} of ${row.limit} tokens` : "";
		this.tokens.classList.toggle("over", Boolean(row.cut));
		const cut = row.cut ? [`Too long: the model would not read “${row.cut}”.`] : [];
		this.warning.replaceChildren(...[...cut, row.error, ...(row.warnings ?? [])].filter(Boolean).map((text) => span(text)));
	}

	/** The bodies of requests, one for each model. A new seed is drawn first, unless it is locked. */
	async requests() {
		nextSeed();
		this.basics.show();
		const bodies = [requestOf(this.schema)];
		if (state.second && state.second !== state.model) {
			const schema = await schemaOf(state.second);
			if (promptKind(schema) === this.kind) bodies.push(requestOf(schema));
		}
		return bodies;
	}

	clearErrors() {
		for (const root of document.querySelectorAll("#panel [data-field]")) mark(root, null);
		this.problem.textContent = "";
	}

	/** Show an error beside its field, or below the button. */
	fail(error) {
		const root = [...document.querySelectorAll("#panel [data-field]")].find((one) => one.dataset.field === error.field);
		if (!root || root.closest("[hidden]")) {
			this.problem.textContent = error.message;
			return;
		}
		mark(root, error.message);
		for (let place = root.parentElement; place; place = place.parentElement) if (place.tagName === "DETAILS") place.open = true;
		[...root.querySelectorAll("textarea, input:not([type=range]), select")].find((one) => !one.hidden)?.focus();
		announce(error.message);
	}

	/** Take over the fields of a request: of an image, or of a lost job. */
	async restore(fields) {
		const known = this.models.some((one) => one.name === fields.model);
		const model = known ? fields.model : state.model; // one that is not offered any more
		adopt({ ...fields, model }, promptKind(await schemaOf(model)));
		await this.select(model);
		this.clearErrors();
	}
}
