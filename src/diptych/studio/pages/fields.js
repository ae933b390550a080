// One option of a model as a labelled field. An empty field is the model's own value, which its placeholder shows.

import { button, choice, div, element, on, setPressed, span, textInput } from "./dom.js";

const LABELS = {
	s_churn: "Churn", s_noise: "Noise factor", s_tmin: "Churn from", s_tmax: "Churn up to", schedule_type: "Schedule",
};
const SOFT = { steps: [1, 50], guidance: [0, 15], temperature: [0.1, 2] }; // bounds of sliders, where an option's own are far
let numbers = 0;

export function labelOf(name) {
	return LABELS[name] ?? (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");
}

const isNumber = (option) => option.type === "integer" || option.type === "number";

/** The number that a text begins with, such as "0.8, or 1 with a mask". */
function numberIn(text) {
	const number = Number.parseFloat(text);
	return Number.isNaN(number) ? null : number;
}

/** Lowest and highest of a slider; none where a slider would not help. */
function range(option, own) {
	if (!isNumber(option)) return null;
	const soft = SOFT[option.name];
	if (soft) return [Math.max(option.min ?? soft[0], soft[0]), Math.max(soft[1], Math.ceil(2 * (own ?? 0)))];
	const near = option.min !== null && option.max !== null && option.max - option.min <= 2;
	return near ? [option.min, option.max] : null;
}

/** A control for one value: {parts, read(), write(value), main}. `read` gives undefined where it is empty. */
function control(option, own, id, changed) {
	if (option.type === "choice") return oneOf(option, own, id, changed);
	if (option.type === "boolean") return flag(option, own, id, changed);
	if (option.type === "size") return size(option, own, id, changed);
	const input = textInput({ id, spellcheck: "false" });
	if (isNumber(option)) input.inputMode = option.type === "integer" ? "numeric" : "decimal";
	input.placeholder = own ?? option.unset ?? "";
	const parts = [input];
	const bounds = own == null ? null : range(option, own); // stages that differ, or a default that is no number
	let slider = null;
	if (bounds) {
		const step = option.type === "integer" ? 1 : bounds[1] - bounds[0] > 3 ? 0.5 : 0.01;
		slider = element("input", { type: "range", min: bounds[0], max: bounds[1], step, tabindex: "-1", "aria-hidden": "true" });
		slider.value = own;
		on(slider, "input", () => {
			input.value = slider.value;
			changed();
		});
		parts.unshift(slider);
	}
	const follow = () => {
		if (slider) slider.value = input.value.trim() === "" ? own : input.value;
	};
	on(input, "input", () => {
		follow();
		changed();
	});
	if (isNumber(option)) on(input, "keydown", (event) => nudge(event, input, option, own));
	return {
		parts,
		main: input,
		read: () => readText(input.value.trim(), option),
		write: (value) => {
			input.value = value ?? "";
			follow();
		},
	};
}

/** A number where the text is one; a text that is none is sent as it is, and the server says what is wrong with it. */
function readText(text, option) {
	if (text === "") return undefined;
	const number = Number(text);
	return isNumber(option) && Number.isFinite(number) ? number : text;
}

/** Arrow keys change a number, as in an input of type number, which would not keep what else is typed. */
function nudge(event, input, option, own) {
	const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
	if (!by) return;
	event.preventDefault();
	const step = option.type === "integer" ? 1 : option.max <= 2 ? 0.05 : 0.5;
	const next = (Number(input.value || own) || 0) + by * step;
	input.value = Math.round(Math.min(option.max ?? next, Math.max(option.min ?? next, next)) * 1e6) / 1e6;
	input.dispatchEvent(new Event("input", { bubbles: true }));
}

function oneOf(option, own, id, changed) {
	const select = element("select", { id, on: { change: changed } });
	const known = own ?? (/own/.test(option.unset) ? null : option.unset);
	select.append(choice("", known ? `${known} (default)` : "the model's own"), ...option.choices.map((one) => choice(one)));
	return {
		parts: [select],
		main: select,
		read: () => select.value || undefined,
		write: (value) => (select.value = value ?? ""),
	};
}

function flag(option, own, id, changed) {
	const input = element("input", { id, type: "checkbox", className: "switch", on: { change: changed } });
	input.checked = Boolean(own);
	return {
		parts: [input],
		main: input,
		read: () => (input.checked === Boolean(own) ? undefined : input.checked),
		write: (value) => (input.checked = Boolean(value ?? own)),
	};
}

function size(option, own, id, changed) {
	const sides = ["Width", "Height"].map((name, place) => {
		const input = textInput({ inputmode: "numeric", "aria-label": name });
		input.placeholder = own?.[place] ?? "";
		on(input, "input", changed);
		return input;
	});
	sides[0].id = id;
	return {
		parts: [div("sides", sides[0], span("×"), sides[1])],
		main: sides[0],
		read: () => {
			const texts = sides.map((side) => side.value.trim());
			if (texts.every((text) => text === "")) return undefined;
			return texts.map((text, place) => readText(text || String(own?.[place] ?? ""), { type: "integer" }) ?? "");
		},
		write: (value) => sides.forEach((side, place) => (side.value = value?.[place] ?? "")),
	};
}

/** An option's field. `stages` are those of a cascade; `changed()` follows each edit. */
export function optionField(option, stages, changed) {
	const id = `option-${(numbers += 1)}`;
	const owns = option.per_stage ? stages.map((_, place) => option.default?.[place] ?? null) : [option.default ?? null];
	const alike = option.type !== "size" && owns.every((own) => own === owns[0]);
	const stated = alike && owns[0] === null && isNumber(option) ? numberIn(option.unset) : null;
	const one = control(option, option.type === "size" ? option.default : alike ? (owns[0] ?? stated) : null, id, changed);
	if (option.per_stage && !alike && one.main.tagName === "INPUT") one.main.placeholder = owns.map((own) => own ?? "–").join(" · ");
	const describe = (main) => main.setAttribute("aria-describedby", `${id}-tip ${id}-error`);
	describe(one.main);
	const head = div("field-head", element("label", { for: id, text: labelOf(option.name) }));
	const body = div("field-body", ...one.parts);
	const tip = element("span", { id: `${id}-tip`, className: "tip", role: "tooltip", text: option.help });
	const problem = element("p", { id: `${id}-error`, className: "error" });
	const root = element("div", { className: `field of-${option.type}`, "data-field": option.name }, head, body, tip, problem);
	let many = null; // the controls of the stages, while each has its own
	const split = button({ text: "each stage", className: "bare small split", "aria-pressed": "false" });

	function spread(wanted) {
		setPressed(split, wanted);
		many = wanted ? stages.map((_, place) => control(option, owns[place], `${id}-${place}`, changed)) : null;
		many?.forEach((part) => describe(part.main));
		const rows = many?.map((part, place) => {
			const label = element("label", { for: `${id}-${place}`, text: stages[place].size ? `${stages[place].size} px` : stages[place].name });
			return div("stage-row", label, div("field-body", ...part.parts));
		});
		body.replaceChildren(...(rows ?? one.parts));
	}

	if (option.per_stage && stages.length > 1) {
		head.append(split);
		on(split, "click", () => {
			const value = one.read();
			spread(!many);
			many?.forEach((part) => part.write(value));
			changed();
		});
	}
	const write = (value) => {
		const list = Array.isArray(value) && option.type !== "size";
		if (list && option.per_stage && stages.length > 1 && value.some((part) => part !== value[0])) {
			spread(true);
			return many.forEach((part, place) => part.write(value[place] ?? undefined));
		}
		if (many) spread(false);
		return one.write((list ? value[0] : value) ?? undefined);
	};
	const read = () => {
		if (!many) return one.read();
		const values = many.map((part) => part.read() ?? null);
		return values.every((value) => value === null) ? undefined : values;
	};
	return { root, option, read, write };
}

/** Put a message beside a field, or take it away. `root` is an element with data-field. */
export function mark(root, message) {
	const problem = root.querySelector(".error");
	problem.textContent = message ?? "";
	for (const input of root.querySelectorAll("input:not([type=range]), select, textarea")) {
		if (message) input.setAttribute("aria-invalid", "true");
		else input.removeAttribute("aria-invalid");
	}
}
