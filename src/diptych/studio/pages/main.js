// The studio: the page starts here.

import { api, ApiError, imageUrl, login, randomSeed, schemaOf, store, stored } from "./api.js";
import { Compare } from "./compare.js";
import { announce, button, byId, element, on, setIcon, span, toast } from "./dom.js";
import { Drops } from "./drop.js";
import { Form } from "./form.js";
import { firstVisit, promptKind, state } from "./form-state.js";
import { Gallery, isLeaving, removeLater } from "./gallery.js";
import { showHelp } from "./help.js";
import { chooseFile } from "./inputs.js";
import { submit, watch } from "./jobs.js";
import { Stage } from "./stage.js";
import { openViewer } from "./viewer.js";

let form, stage, gallery, compare, drops;
let recent = [];

/** Generate what the form asks for. */
async function generate() {
	form.clearErrors();
	location.hash = "#/";
	try {
		const bodies = await form.requests();
		await run(bodies);
	} catch (error) {
		if (!(error instanceof ApiError)) throw error;
		form.fail(error);
	}
}

async function run(bodies) {
	const jobs = [];
	let problem = null; // of one of two models: the other goes on
	for (const body of bodies) await submit(body).then((job) => jobs.push(job), (error) => (problem = error));
	jobs.forEach((job) => job.end.then(loadRecent));
	if (jobs.length) await stage.show(jobs);
	if (jobs.length && innerWidth < 800) byId("hero").scrollIntoView({ behavior: "smooth" });
	if (problem) throw problem;
}

const showRecent = () => stage.showRecent(recent.filter((row) => !isLeaving(row.id)));

let asked;
async function loadRecent() {
	const turn = (asked = {});
	const rows = await api("images?limit=24").catch(() => recent);
	if (turn !== asked) return; // answers may overtake each other
	recent = rows;
	showRecent();
}

/** The form of a model that can do something: of those named if one can, else of any; null where none can. */
async function modelWith(feature, ...names) {
	for (const one of new Set([...names, ...form.models.map((model) => model.name)])) {
		const schema = await schemaOf(one).catch(() => null);
		if (schema?.features[feature]) return schema;
	}
	toast("None of the models here can do this.", { problem: true });
	return null;
}

/** Make an image what the model starts from; where the model takes none, another that does is chosen. */
async function startFrom(row, feature = "image") {
	const schema = await modelWith(feature, state.model, row.model);
	if (!schema) return false;
	if (promptKind(schema) === "text") state.prompts.text = row.prompt;
	if (schema.name !== state.model) await form.select(schema.name);
	else form.showPrompt();
	form.slots.set("image", { id: row.id, url: imageUrl(row.id), width: row.width, height: row.height });
	location.hash = "#/";
	return true;
}

/** Generate from an image, whatever stands in the form. */
function runFrom(row, body) {
	location.hash = "#/";
	const { prompt, negative } = row.request;
	return run([{ prompt, negative, seed: randomSeed(), ...body }]).catch(actions.problem);
}

const actions = {
	open: (id, ids = null) => openViewer(ids ?? (recent.some((row) => row.id === id) ? recent.map((row) => row.id) : [id]), id, actions),
	example: (text) => {
		state.prompts.text = text;
		form.showPrompt();
		generate();
	},
	again: (request) => run([request]).catch(actions.problem),
	moved: () => showRecent(),
	problem: (error) => toast(error.message, { problem: true }),
	vary: async (row) => {
		const schema = await modelWith("image", row.model);
		if (!schema) return;
		const { paste, fit, start, ...options } = schema.name === row.model ? row.request.options : {};
		runFrom(row, { model: schema.name, image: row.id, options: { ...options, strength: 0.6 } });
	},
	startFrom: async (row) => {
		if (await startFrom(row)) byId("prompt").focus();
	},
	inpaint: async (row) => {
		if (await startFrom(row, "mask")) form.slots.paint(state.inputs.image);
	},
	enlarge: async (row) => {
		const schema = await modelWith("low_res", state.model);
		if (!schema) return;
		const { name, low_sizes: lows, stages } = schema;
		const fits = lows.filter((side) => side <= Math.max(row.width, row.height)).length;
		const options = stages.length > 1 && fits ? { start: stages.length - lows.length + fits - 1 } : {}; // the stage for this size
		runFrom(row, { model: name, low_res: row.id, options });
	},
	useSettings: async (row) => {
		await form.restore(row.request);
		location.hash = "#/";
		announce("Settings taken over");
		byId("prompt").focus();
	},
	remove: (rows) => {
		removeLater(rows);
		if (!rows.some((row) => row.id === stage.chosen)) return;
		const next = recent.find((row) => !isLeaving(row.id));
		if (next) stage.showImage(next);
		else stage.empty();
	},
};

function show() {
	const view = { "#/gallery": "gallery", "#/compare": "compare" }[location.hash] ?? "create";
	for (const page of document.querySelectorAll("[data-page]")) page.hidden = page.dataset.page !== view;
	for (const link of document.querySelectorAll("[data-view]")) {
		if (link.dataset.view === view) link.setAttribute("aria-current", "page");
		else link.removeAttribute("aria-current");
	}
	if (view === "gallery") gallery.load();
	if (view === "compare") compare.show();
}

const systemDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

/** Follow the system, or what was chosen; returns whether it is dark. */
function theme() {
	const wanted = stored("theme");
	document.documentElement.dataset.theme = wanted ?? "";
	return wanted ? wanted === "dark" : systemDark();
}

function makeTools() {
	const light = button({ label: "Dark or light", icon: theme() ? "sun" : "moon", className: "bare", id: "theme", on: () => {
		const dark = !theme();
		store("theme", dark === systemDark() ? null : dark ? "dark" : "light");
		setIcon(light, theme() ? "sun" : "moon");
	} });
	const open = button({ label: "Open a PNG and restore its settings", icon: "image", className: "bare", id: "open-png", on: async () => {
		const file = await chooseFile("image/png");
		if (file) drops.restore(file);
	} });
	const help = button({ label: "Keyboard shortcuts", icon: "help", className: "bare", id: "help", on: showHelp });
	byId("tools").replaceChildren(open, light, help);
}

function keys(event) {
	const typing = event.target.matches?.("input:not([type=range]), textarea, select");
	if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
		if (document.querySelector("dialog[open]")) return;
		event.preventDefault();
		if (byId("compare").hidden) generate();
		else byId("make-grid").click();
	} else if (event.key === "Escape" && stage.busy && !document.querySelector("dialog[open]")) stage.stop();
	else if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
	else if (event.key === "?") showHelp();
	else if (event.key === "/") {
		event.preventDefault();
		const search = byId("search");
		(byId("gallery").hidden ? byId("prompt") : search).focus();
	} else if (event.key === "c") location.hash = "#/";
	else if (event.key === "g") location.hash = "#/gallery";
	else if (event.key === "d") byId("dice").click();
	else if (event.key === "l") byId("lock").click();
}

/** Jobs of before a reload: those that go on, and those that were lost with the server. */
async function resume() {
	const rows = await api("jobs").catch(() => []);
	const jobs = rows.filter((row) => row.state !== "lost").map(watch);
	const shown = jobs.filter((job) => !stored("grid", {})?.made?.cells?.some((cell) => cell.job === job.id));
	jobs.forEach((job) => job.end.then(loadRecent));
	if (shown.length) await stage.show(shown.slice(-1));
	const lost = rows.filter((row) => row.state === "lost");
	if (lost.length) showLost(lost);
	return shown.length > 0;
}

function showLost(rows) {
	const forget = (row) => api(`jobs/${row.id}`, { method: "DELETE" }).catch(() => null);
	const items = rows.map((row) => {
		const again = button({ text: "Run again", className: "small", on: () => {
			forget(row);
			item.remove();
			if (!list.children.length) notice.remove();
			actions.again(row.request);
		} });
		const item = element("li", {}, span(row.request.prompt || "(no prompt)"), again);
		return item;
	});
	const list = element("ul", {}, ...items);
	const close = button({ text: "Dismiss", className: "small bare", on: () => {
		rows.forEach(forget);
		notice.remove();
	} });
	const text = rows.length === 1 ? "The server stopped before this was done:" : `The server stopped before these ${rows.length} were done:`;
	const notice = element("section", { className: "notice", id: "lost", role: "status" }, element("p", { text }), list, close);
	byId("notices").append(notice);
}

function connectionNotice() {
	let made = null;
	on(document, "connection", (event) => {
		made?.remove();
		if (event.detail) return;
		made = element("p", { className: "notice", role: "status", text: "The server does not answer. Trying again …" });
		byId("notices").append(made);
	});
}

async function start() {
	theme();
	makeTools();
	const word = /^#(?:token=)?([A-Za-z0-9_-]{16,})$/.exec(location.hash);
	if (word) {
		await login(word[1]);
		history.replaceState(null, "", location.pathname);
	}
	const models = await api("models");
	form = new Form(models, generate);
	stage = new Stage(byId("hero"), actions);
	gallery = new Gallery(byId("gallery"), actions);
	compare = new Compare(byId("compare"), actions, form);
	drops = new Drops(form);
	on(window, "hashchange", show);
	on(window, "keydown", keys);
	on(document, "removed", showRecent);
	connectionNotice();
	await form.select(state.model);
	show();
	await loadRecent();
	const going = await resume();
	if (!going && recent.length) await stage.showImage(recent[0]);
	const prompt = byId("prompt");
	if (!byId("create").hidden && innerWidth >= 800) {
		prompt.focus();
		if (firstVisit) prompt.select();
	}
	document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
	const text = error instanceof ApiError ? error.message : `The page could not start: ${error.message}`;
	const again = button({ text: "Try again", className: "small", on: () => location.reload() });
	byId("notices").append(element("p", { className: "notice problem", role: "alert", text }), again);
	if (!(error instanceof ApiError)) throw error;
});

