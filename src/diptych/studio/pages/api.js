// What the server is asked, and this browser's storage. Every failure is an ApiError whose message is for the user.

import { alarm, button, dialog, element, on, span } from "./dom.js";

export class ApiError extends Error {
	constructor(message, { status = 0, field = null, code = null, wait = 0 } = {}) {
		super(message);
		Object.assign(this, { status, field, code, wait });
	}
}

/** A value in this browser's storage, or `other`; a browser that stores nothing is no failure. */
export function stored(name, other = null) {
	try {
		return JSON.parse(localStorage.getItem(`diptych-${name}`)) ?? other;
	} catch {
		return other;
	}
}

export function store(name, value) {
	try {
		localStorage.setItem(`diptych-${name}`, JSON.stringify(value));
	} catch {
		// private windows may keep nothing
	}
}

/** Random hexadecimal digits. */
function randomId() {
	return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const client = stored("client") ?? randomId();
store("client", client);

/** A whole number that one can read aloud. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 2 ** 31;

let signingIn = null;

/** Ask for the token until the server takes it. One dialog serves all requests that wait for it. */
function signIn() {
	signingIn ??= new Promise((resolve) => {
		const input = element("input", { type: "password", autocomplete: "current-password", required: true });
		const problem = alarm();
		const form = element("form", { className: "sign-in" });
		form.append(
			element("p", { text: "This server asks for its token: the word that was printed when it was started." }),
			element("label", {}, span("Token"), input),
			problem,
			button({ text: "Sign in", className: "primary", type: "submit" }),
		);
		on(form, "submit", async (event) => {
			event.preventDefault();
			if (await login(input.value.trim())) {
				signingIn = null;
				made.close();
				resolve();
			} else {
				problem.textContent = "That is not the token.";
				input.select();
			}
		});
		const made = dialog("Sign in", form);
		on(made, "cancel", (event) => event.preventDefault());
		input.focus();
	});
	return signingIn;
}

/** Whether the server takes a token; it then sets a cookie. */
export async function login(token) {
	const headers = { "Content-Type": "application/json" };
	const body = JSON.stringify({ token });
	const response = await fetch("api/login", { method: "POST", headers, body }).catch(() => null);
	return Boolean(response?.ok);
}

/** The answer to a request, read as JSON unless `raw`. `json` or `body` is what is sent. */
export async function api(path, { method = null, json, body, raw = false, keepalive = false } = {}) {
	const headers = { "X-Client": client };
	if (json !== undefined) headers["Content-Type"] = "application/json";
	const content = json !== undefined ? JSON.stringify(json) : body;
	const verb = method ?? (content === undefined ? "GET" : "POST");
	const response = await fetch(`api/${path}`, { method: verb, headers, body: content, keepalive }).catch(() => null);
	if (!response) throw new ApiError("The server cannot be reached. Is it still running?");
	if (response.status === 401) {
		await signIn();
		return api(path, { method, json, body, raw, keepalive });
	}
	if (!response.ok) throw await failure(response);
	if (raw) return response;
	return response.status === 204 ? null : response.json();
}

async function failure(response) {
	const text = await response.text().catch(() => "");
	let error = {};
	try {
		error = JSON.parse(text).error ?? {};
	} catch {
		error = { message: text.slice(0, 300) };
	}
	const wait = Number(response.headers.get("Retry-After")) || 0;
	const message = error.message || `The server answered with status ${response.status}.`;
	return new ApiError(message, { status: response.status, field: error.field ?? null, code: error.code, wait });
}

/** The form of a model, asked for once. */
const schemas = new Map();
export function schemaOf(name) {
	if (!schemas.has(name)) {
		const asked = api(`models/${encodeURIComponent(name)}`);
		asked.catch(() => schemas.delete(name));
		schemas.set(name, asked);
	}
	return schemas.get(name);
}

/** Upload an image file, a blob: {id, width, height}. */
export const upload = (blob) => api("uploads", { body: blob });

export const imageUrl = (id) => `api/images/${id}.png`;
export const thumbnailUrl = (id) => `api/images/${id}/thumbnail`;
