// What stands in the form, kept in this browser: nothing typed is lost by a reload or an error.

import { randomSeed, store, stored } from "./api.js";

export const EXAMPLES = ["a red apple", "a sleepy cat", "a blue house with a garden", "a rainbow over the sea"];
const EMPTY = {
	prompts: { text: EXAMPLES[0], class: "", layout: "" },
	negative: "",
	style: "",
	model: null,
	second: null,
	seed: null,
	locked: false,
	count: 1,
	options: {},
	inputs: {},
};

export const state = { ...EMPTY, ...stored("form", {}) };
state.prompts = { ...EMPTY.prompts, ...state.prompts };
export const firstVisit = stored("form") === null;
state.seed ??= randomSeed();

export const keep = () => store("form", state);

/** What a model reads its subject as: "text", "class" or "layout". */
export function promptKind(schema) {
	if (schema.features.layout) return "layout";
	return schema.classes?.length ? "class" : "text";
}

/** The set options of a model that fit the form: what needs an image is left out without one. */
function optionsOf(schema) {
	const set = state.options[schema.name] ?? {};
	const offered = schema.options.filter(
		(option) => set[option.name] !== undefined && (option.needs ?? []).every((name) => state.inputs[name]),
	);
	return Object.fromEntries(offered.map((option) => [option.name, set[option.name]]));
}

/** The body of a request to generate by a model. */
export function requestOf(schema) {
	const body = { model: schema.name, prompt: state.prompts[promptKind(schema)], seed: state.seed, count: state.count };
	if (schema.features.negative && state.negative.trim()) body.negative = state.negative;
	if (schema.styles?.includes(state.style)) body.style = state.style;
	const options = optionsOf(schema);
	const inputs = ["image", "mask", "low_res"].filter((name) => state.inputs[name] && schema.features[name]);
	if (inputs.includes("low_res")) delete options.size;
	else delete options.start;
	for (const name of inputs) body[name] = state.inputs[name].id;
	return { ...body, options };
}

/** Take the fields of a request, such as those of an image; `kind` is its model's kind of prompt. */
export function adopt(fields, kind) {
	state.model = fields.model;
	state.prompts[kind] = fields.prompt ?? "";
	state.negative = fields.negative ?? "";
	state.style = ""; // the prompt has its words
	if (fields.seed !== undefined && fields.seed !== null) {
		state.seed = fields.seed;
		state.locked = true;
	}
	state.options[fields.model] = { ...(fields.options ?? {}) };
	state.inputs = {};
	for (const name of ["image", "mask", "low_res"]) {
		if (fields[name]) state.inputs[name] = { id: fields[name], url: `api/uploads/${fields[name]}` };
	}
	keep();
}

/** Before each generation: a new seed, unless it is locked. */
export function nextSeed() {
	if (!state.locked) state.seed = randomSeed();
	keep();
}
