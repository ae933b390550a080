// Elements, icons, dialogs, short messages. Text is only ever set as text: a prompt is never read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Icons of 24 x 24, as strokes. */
const ICONS = {
	back: "M15 5l-7 7l7 7",
	brush: "M20 4c-5 2-9 6-11 10l2 2c4-2 8-6 10-11zM8 15c-3 0-3 4-5 5c4 1 8 0 7-4",
	check: "M5 13l4 4L19 7",
	close: "M6 6l12 12M18 6L6 18",
	dice: "M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1zM8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
	download: "M12 4v11M7 11l5 5l5-5M5 20h14",
	enlarge: "M14 4h6v6M10 20H4v-6M20 4l-7 7M4 20l7-7",
	erase: "M9 20h11M5 13l8-8l6 6l-9 9H8l-4-4z",
	help: "M9 9a3 3 0 1 1 4 3c-1 .5-1 1-1 2M12 18h.01",
	heart: "M12 20C5 15 3 12 3 8.5a4.5 4.5 0 0 1 9-1a4.5 4.5 0 0 1 9 1C21 12 19 15 12 20z",
	image: "M4 5h16v14H4zM4 16l5-5l5 5l3-3l3 3M15 9h.01",
	lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
	moon: "M20 14A8 8 0 1 1 10 4a7 7 0 0 0 10 10z",
	next: "M9 5l7 7l-7 7",
	pause: "M8 5v14M16 5v14",
	play: "M7 5l12 7l-12 7z",
	plus: "M12 5v14M5 12h14",
	redo: "M15 5l5 5l-5 5M20 10H9a5 5 0 0 0 0 10h3",
	search: "M11 4a7 7 0 1 0 0 14a7 7 0 1 0 0-14M16 16l5 5",
	settings: "M4 7h9M19 7h1M4 17h1M11 17h9M16 4.5a2.5 2.5 0 1 0 0 5a2.5 2.5 0 1 0 0-5M8 14.5a2.5 2.5 0 1 0 0 5a2.5 2.5 0 1 0 0-5",
	sun: "M12 8a4 4 0 1 0 0 8a4 4 0 1 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.5 1.5M17.5 17.5L19 19M19 5l-1.5 1.5M6.5 17.5L5 19",
	trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
	undo: "M9 5l-5 5l5 5M4 10h11a5 5 0 0 1 0 10h-3",
	unlock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 6.8-1",
	vary: "M4 8c4 0 5 8 9 8h7M4 16c4 0 5-8 9-8h7M17 5l3 3l-3 3M17 13l3 3l-3 3",
};

/** An element. `options`: className, text, on {event: listener}, attributes (true is a bare one, false or null is none). */
export function element(name, options = {}, ...children) {
	const { className, text, on, ...attributes } = options;
	const made = document.createElement(name);
	if (className) made.className = className;
	if (text !== undefined && text !== null) made.textContent = text;
	for (const [key, value] of Object.entries(attributes)) {
		if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value === true ? "" : value);
	}
	for (const [event, listener] of Object.entries(on ?? {})) made.addEventListener(event, listener);
	made.append(...children.filter((child) => child !== null && child !== undefined));
	return made;
}

export const byId = (id) => document.getElementById(id);
export const div = (className, ...children) => element("div", { className }, ...children);
export const p = (className, text) => element("p", { className, text });

export const alarm = (text) => element("p", { className: "error", role: "alert", text });
export const span = (text, className = "") => element("span", { className, text });
export const choice = (value, text = value) => element("option", { value, text });
export const textInput = (options) => element("input", { type: "text", autocomplete: "off", ...options });
export const on = (target, event, run, how) => target.addEventListener(event, run, how);

export const pressed = (target) => target.getAttribute("aria-pressed") === "true";
export const setPressed = (target, value) => target.setAttribute("aria-pressed", String(value));

export function svg(name, attributes = {}, ...children) {
	const made = document.createElementNS(SVG, name);
	for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
	made.append(...children);
	return made;
}

export function icon(name) {
	return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

/** A button with an icon, text, or both; without text its `label` is what a screen reader says and a tooltip shows. */
export function button({ label, text, icon: name, className = "", on, ...attributes }) {
	const made = element("button", { type: "button", className, title: text ? null : label, ...attributes });
	if (name) made.append(icon(name));
	if (text) made.append(span(text));
	if (label && label !== text) made.setAttribute("aria-label", label);
	if (on) made.addEventListener("click", on);
	return made;
}

/** Change the icon of a button. */
export function setIcon(target, name) {
	target.querySelector("svg.icon")?.replaceWith(icon(name));
}

/** Say something to screen readers only. */
export function announce(text) {
	byId("live").textContent = text;
}

/** A short message at the bottom, with a button such as "Undo" where `action` is {label, run}. */
export function toast(text, { action = null, problem = false, seconds = 6, over = null } = {}) {
	const close = () => {
		clearTimeout(timer);
		if (!made.isConnected) return;
		made.remove();
		over?.();
	};
	const made = element("div", { className: problem ? "toast problem" : "toast", role: problem ? "alert" : "status" });
	made.append(span(text));
	if (action) {
		const act = () => {
			over = null;
			close();
			action.run();
		};
		made.append(button({ text: action.label, on: act }));
	}
	made.append(button({ label: "Close this message", icon: "close", className: "bare", on: close }));
	const timer = setTimeout(close, seconds * 1000);
	byId("toasts").append(made);
	return close;
}

/** A modal dialog that is removed when it closes. Returns the dialog; Escape and its cross close it. */
export function dialog(title, content, { className = "", closed = null } = {}) {
	const cross = button({ label: "Close", icon: "close", className: "bare cross", on: () => made.close() });
	const head = element("div", { className: "dialog-head" }, element("h2", { text: title }), cross);
	const made = element("dialog", { className, "aria-label": title, tabindex: "-1", autofocus: true }, head, ...[content].flat());
	const before = document.activeElement;
	made.addEventListener("close", () => {
		made.remove();
		closed?.();
		if (before?.isConnected) before.focus({ preventScroll: true });
	});
	made.addEventListener("click", (event) => {
		if (event.target === made && className !== "editor") made.close(); // its backdrop
	});
	document.body.append(made);
	made.showModal();
	return made;
}

/** Replace all within an element; what had the focus keeps it, by its data-id. */
export function refill(place, made) {
	const { id } = (place.contains(document.activeElement) && document.activeElement.closest("[data-id]")?.dataset) || {};
	place.replaceChildren(...made);
	const one = id && [...place.children].find((child) => child.dataset.id === id);
	if (one) (one.querySelector("button") ?? one).focus({ preventScroll: true });
}

/** Offer a URL as a file. */
export function save(url, name) {
	const link = element("a", { href: url, download: name });
	document.body.append(link);
	link.click();
	link.remove();
	if (url.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(url), 30_000);
}

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** `run` at most once in so many milliseconds, with the last arguments. */
export function debounced(run, milliseconds) {
	let timer;
	return (...values) => {
		clearTimeout(timer);
		timer = setTimeout(() => run(...values), milliseconds);
	};
}
