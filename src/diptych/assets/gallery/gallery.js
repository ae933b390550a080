"use strict";
// Filters by category, and enlarges an image beside that of the other model with the same prompt and number.
const articles = [...document.querySelectorAll("article")];
const buttons = [...document.querySelectorAll("nav button")];
const dialog = document.querySelector("dialog");
const pair = dialog.querySelector(".pair");
const title = dialog.querySelector("h3");
let current = null;

function show(category) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.category === category));
  for (const article of articles) article.hidden = category !== "" && article.dataset.category !== category;
}

function enlarge(image) {
  current = image;
  const article = image.closest("article");
  title.textContent = article.querySelector("h3").textContent;
  pair.replaceChildren();
  for (const one of article.querySelectorAll(`.image[data-copy="${image.dataset.copy}"]`)) {
    const figure = document.createElement("figure");
    const large = document.createElement("img");
    const text = document.createElement("figcaption");
    large.src = one.querySelector("img").getAttribute("src");
    large.alt = one.querySelector("img").alt;
    text.textContent = one.title;
    figure.append(large, text);
    pair.append(figure);
  }
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const first = current.closest(".images");
  const all = articles.filter((article) => !article.hidden)
    .flatMap((article) => [...article.querySelector(".images").children]);
  const number = [...first.children].indexOf(current);
  const here = current.closest("article").querySelector(".images").children[number];
  const next = all[all.indexOf(here) + by];
  if (next) enlarge(next);
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    show(button.dataset.category);
    document.querySelector("main").scrollIntoView(); // the one that was looked at may be hidden now
  });
}
document.addEventListener("click", (event) => {
  const image = event.target.closest(".image");
  if (image) enlarge(image);
  else if (event.target === dialog) dialog.close();
});
dialog.querySelector("[data-step='-1']").addEventListener("click", () => step(-1));
dialog.querySelector("[data-step='1']").addEventListener("click", () => step(1));
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
show("");
