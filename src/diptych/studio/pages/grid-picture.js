// A comparison grid as one picture, with its labels.

import { imageUrl } from "./api.js";
import { labelOf } from "./fields.js";

const GAP = 8;
const FONT = '500 15px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const TITLE = '18px "Iowan Old Style", Palatino, Georgia, serif';

function load(id) {
	return new Promise((resolve) => {
		if (!id) return resolve(null);
		const image = new Image();
		image.onload = () => resolve(image);
		image.onerror = () => resolve(null);
		image.src = imageUrl(id);
		return undefined;
	});
}

/** A PNG of `made`: {xs, ys, x, y, prompt, cells: [{image}]}, row by row. */
export async function gridPicture({ xs, ys, x, y, prompt, cells }) {
	const images = await Promise.all(cells.map((cell) => load(cell.image)));
	const sides = images.filter(Boolean).map((image) => Math.max(image.naturalWidth, image.naturalHeight));
	const side = Math.min(512, Math.max(160, ...sides));
	const canvas = document.createElement("canvas");
	const context = canvas.getContext("2d");
	const label = (axis, value) => (axis === "prompt" || !axis ? value : `${labelOf(axis)} ${value}`);
	context.font = FONT;
	const left = Math.min(300, Math.max(0, ...ys.map((value) => context.measureText(label(y, value)).width)) + (y ? 24 : 0));
	const top = 84;
	canvas.width = Math.ceil(left + xs.length * (side + GAP) + GAP);
	canvas.height = Math.ceil(top + ys.length * (side + GAP) + GAP);
	context.fillStyle = "#ffffff";
	context.fillRect(0, 0, canvas.width, canvas.height);
	context.fillStyle = "#1b1b1a";
	context.font = TITLE;
	context.fillText(prompt, GAP + 4, 32, canvas.width - 2 * GAP);
	context.font = FONT;
	context.textAlign = "center";
	xs.forEach((value, place) => context.fillText(label(x, value), left + GAP + place * (side + GAP) + side / 2, 68, side));
	context.textAlign = "right";
	ys.forEach((value, place) => context.fillText(label(y, value), left - 8, top + place * (side + GAP) + side / 2 + 5, left - 12));
	images.forEach((image, index) => {
		const across = left + GAP + (index % xs.length) * (side + GAP);
		const down = top + Math.floor(index / xs.length) * (side + GAP);
		context.fillStyle = "#ececea";
		context.fillRect(across, down, side, side);
		if (!image) return;
		const scale = side / Math.max(image.naturalWidth, image.naturalHeight);
		const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
		context.imageSmoothingQuality = "high";
		context.drawImage(image, across + (side - width) / 2, down + (side - height) / 2, width, height);
	});
	return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
