// The list of keys.

import { dialog, div, element } from "./dom.js";

const KEYS = [
	["Everywhere", [
		["Ctrl or ⌘ + Enter", "generate"],
		["Esc", "cancel what is being generated"],
		["/", "go to the prompt, or to the search of the gallery"],
		["c, g", "create, gallery"],
		["d", "another seed"],
		["l", "keep the seed, or not"],
		["?", "this list"],
	]],
	["Prompt", [["Enter", "generate"], ["Shift + Enter", "a new line"], ["↑ ↓", "in a number: more, less"]]],
	["Steps of an image, and images shown large", [["← →", "back and on"]]],
	["Boxes", [["drag, Enter", "add a box"], ["arrows", "move it"], ["Shift + arrows", "size it"], ["Delete", "remove it"]]],
	["Mask", [
		["b, e", "brush, eraser"],
		["[ ]", "smaller, larger"],
		["Ctrl or ⌘ + Z", "undo; with Shift redo"],
		["+ −", "zoom"],
		["arrows, space", "move the brush, paint"],
	]],
];

export function showHelp() {
	const parts = KEYS.map(([title, keys]) => {
		const rows = keys.flatMap(([key, text]) => [element("dt", {}, element("kbd", { text: key })), element("dd", { text })]);
		return element("section", {}, element("h3", { text: title }), element("dl", { className: "keys" }, ...rows));
	});
	dialog("Keyboard shortcuts", div("help", ...parts), { className: "sheet" });
}
