// Jobs: their events, followed across reloads and restarts of the server.

import { api } from "./api.js";
import { on } from "./dom.js";

const ENDED = new Set(["done", "failed", "cancelled", "lost"]);
const STREAMS = 2; // a browser has six connections for all tabs: other jobs are polled
const PERIOD = 1500;

const watched = new Map();

/** One job. Dispatches "change" with `detail` = the index of the image that changed, or null for the whole. */
class Job extends EventTarget {
	constructor(row) {
		super();
		this.images = [];
		this.take(row);
	}

	take(row) {
		if (this.ended && !ENDED.has(row.state)) return; // answers may overtake each other
		Object.assign(this, { id: row.id, request: row.request, warnings: row.warnings ?? [], error: row.error ?? null });
		if (row.position !== undefined) this.position = row.position;
		this.secondsLeft = row.seconds_left ?? null;
		for (const image of row.images) this.images[image.index] = { ...this.images[image.index], ...image };
		this.state = row.state;
		this.changed(null);
	}

	changed(index) {
		this.dispatchEvent(new CustomEvent("change", { detail: index }));
	}

	get ended() {
		return ENDED.has(this.state);
	}

	/** Resolves with the job when it has ended. */
	get end() {
		return new Promise((resolve) => {
			const look = () => this.ended && resolve(this);
			on(this, "change", look);
			look();
		});
	}

	event(type, data) {
		if (this.ended) return;
		const image = this.images[data.image];
		if (type === "queued") this.position = data.position;
		else if (type === "started") this.state = "running";
		else if (type === "step" && image) {
			this.state = "running";
			this.secondsLeft = data.seconds_left;
			if (image.state !== "done") image.state = "running";
			const { step, steps, stage = null, preview } = data;
			const before = image.previews ?? {};
			Object.assign(image, { step, steps, stage, preview: preview ?? image.preview });
			if (preview && stage !== null) image.previews = { ...before, [stage]: preview };
			return this.changed(data.image);
		} else if (type === "image" && image) {
			Object.assign(image, { state: "done", id: data.id });
			return this.changed(data.image);
		} else if (ENDED.has(type)) {
			this.state = type;
			if (data.error) this.error = data.error;
		}
		return this.changed(null);
	}

	cancel() {
		return api(`jobs/${this.id}`, { method: "DELETE" }).then((row) => this.take({ ...row, images: row.images ?? [], request: this.request }));
	}
}

/** Ask for images. Returns the job, already followed. */
export async function submit(body) {
	return watch(await api("jobs", { json: body }));
}

/** Follow a job of which a row is known. */
export function watch(row) {
	const known = watched.get(row.id);
	if (known) return known;
	const job = new Job(row);
	if (!job.ended) {
		watched.set(job.id, job);
		schedule();
	}
	return job;
}

export const openJobs = () => [...watched.values()].filter((job) => !job.ended);

/** The first jobs are followed by their events, the others are asked for. */
function schedule() {
	for (const [id, job] of watched) if (job.ended) close(id, job);
	const open = [...watched.values()];
	open.slice(0, STREAMS).forEach(stream);
	if (open.length > STREAMS && !polling) polling = setTimeout(poll, PERIOD);
}

function close(id, job) {
	job.source?.close();
	job.source = null;
	watched.delete(id);
}

let polling = null;
async function poll() {
	polling = null;
	for (const job of [...watched.values()].slice(STREAMS, STREAMS + 12)) if (!job.source) await refresh(job);
	schedule();
}

async function refresh(job) {
	try {
		job.take(await api(`jobs/${job.id}`));
	} catch (error) {
		if (error.status === 404) job.event("lost", {});
	}
}

function stream(job) {
	if (job.source) return;
	const source = (job.source = new EventSource(`api/jobs/${job.id}/events`));
	for (const type of ["queued", "started", "step", "image", ...ENDED]) {
		on(source, type, (event) => {
			job.event(type, JSON.parse(event.data));
			if (job.ended) {
				close(job.id, job);
				refresh(job).finally(schedule); // warnings and errors in full
			}
		});
	}
	on(source, "open", () => connection(true));
	on(source, "error", () => {
		connection(false);
		if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
		job.source = null;
		setTimeout(() => refresh(job).finally(schedule), PERIOD);
	});
}

let connected = true;
/** Tells the page whether the server answers. */
function connection(now) {
	if (connected === now) return;
	connected = now;
	document.dispatchEvent(new CustomEvent("connection", { detail: now }));
}
