// The study: one screen after the other, from the first that is not answered; keys 1, 2, 3 answer, arrows go back and on.

import { FileAnswers, ServerAnswers } from "./answers.js";
import { element, taskScreen } from "./screen.js";

const AHEAD = 2; // screens whose images are loaded in advance
const main = document.getElementById("main");
const large = document.getElementById("large");

class Flow {
  constructor(source, data) {
    this.source = source;
    this.tasks = data.tasks;
    this.answers = data.answers;
    this.given = new Set(Object.keys(data.answers)); // questions whose answer is saved or on its way
    this.saving = Promise.resolve();
    this.leaving = false; // whether the last answer of this screen is on its way
    this.place = 0;
    this.shownAt = 0;
    document.addEventListener("keydown", (event) => this.key(event));
  }

  answered(index) {
    return this.tasks[index].questions.every((question) => question.id in this.answers);
  }

  get firstOpen() {
    const index = this.tasks.findIndex((_, place) => !this.answered(place));
    return index < 0 ? this.tasks.length : index;
  }

  start() {
    if (this.firstOpen === 0 && Object.keys(this.answers).length === 0) this.welcome();
    else this.go(this.firstOpen);
  }

  report() {
    const done = this.tasks.filter((_, index) => this.answered(index)).length;
    const bar = document.getElementById("bar");
    bar.max = this.tasks.length;
    bar.value = done;
    bar.setAttribute("aria-valuetext", `${done} of ${this.tasks.length} answered`);
    const here = this.place < this.tasks.length ? `Question ${this.place + 1} of ${this.tasks.length}` : "";
    document.getElementById("count").textContent = here;
    document.title = here || "Image study";
  }

  say(text, problem = false) {
    const saved = document.getElementById("saved");
    saved.textContent = text;
    saved.classList.toggle("problem", problem);
  }

  welcome() {
    const begin = element("button", { type: "button", className: "primary", text: "Begin" });
    begin.addEventListener("click", () => this.go(0));
    const two = this.tasks[0].sides.length > 1;
    const many = this.tasks[0].sides[0].length > 1;
    const what = many ? "two sets of images, A and B" : two ? "two images, A and B" : "an image and a caption";
    const times = this.tasks.length === 1 ? "once" : `${this.tasks.length} times`;
    const items = [
      `You will see ${what} ${times}, and be asked what you think of them.`,
      "There is no time limit. Go by your own impression; images can be enlarged.",
      this.source.kept,
      "On a keyboard, 1, 2 and 3 answer, and the arrow keys go back and on.",
    ];
    const list = element("ul", {}, ...items.map((text) => element("li", { text })));
    main.replaceChildren(element("article", {}, element("h1", { text: "Image study" }), list, begin));
    this.preload(0);
    begin.focus();
  }

  async urls(index) {
    const task = this.tasks[index];
    return Promise.all(task.sides.map((side) => Promise.all(side.map((name) => this.source.image(name)))));
  }

  /** Load and decode the images of the next screens, and let go of those of long ago. */
  preload(index) {
    const near = this.tasks.slice(Math.max(0, index - 1), index + 1 + AHEAD);
    this.source.keep(new Set(near.flatMap((task) => task.sides.flat())));
    for (let next = index; next < Math.min(index + 1 + AHEAD, this.tasks.length); next += 1) {
      this.urls(next).then((sides) => decoded(sides.flat())).catch(() => {});
    }
  }

  /** Show a screen: all of its images appear at once. */
  async go(index) {
    this.place = index;
    if (index >= this.tasks.length) return this.end();
    this.report();
    try {
      const urls = await this.urls(index);
      await decoded(urls.flat());
      if (this.place !== index) return undefined;
      const enlarge = (url, name) => this.enlarge(url, name);
      const choose = (question, value) => this.choose(question, value);
      main.replaceChildren(...taskScreen(this.tasks[index], urls, this.answers, enlarge, choose), this.navigation());
    } catch (error) {
      return fail(error);
    }
    this.shownAt = performance.now();
    this.leaving = false;
    main.dataset.shown = String(index + 1);
    this.focusOpen();
    window.scrollTo(0, 0);
    this.preload(index + 1);
    return undefined;
  }

  navigation() {
    const back = element("button", { type: "button", className: "quiet", text: "← Back" });
    const on = element("button", { type: "button", className: "quiet", text: "Next →" });
    back.disabled = this.place === 0;
    on.disabled = !this.answered(this.place);
    back.addEventListener("click", () => this.step(-1));
    on.addEventListener("click", () => this.step(1));
    return element("nav", { "aria-label": "Questions" }, back, on);
  }

  step(by) {
    const target = this.place + by;
    if (!this.leaving && target >= 0 && target <= this.firstOpen && target <= this.tasks.length) this.go(target);
  }

  groups() {
    return [...main.querySelectorAll(".question")];
  }

  /** The question that keys answer: the one with the focus, else the first that is open. */
  current() {
    const groups = this.groups();
    const open = groups.find((group) => !this.given.has(group.dataset.question));
    return groups.find((group) => group.contains(document.activeElement)) ?? open ?? groups[0];
  }

  focusOpen() {
    const groups = this.groups();
    const open = groups.find((group) => !this.given.has(group.dataset.question)) ?? groups[0];
    open?.focus({ preventScroll: true });
  }

  /** Answers are saved one after the other; the next question can be answered meanwhile, the next screen not. */
  async choose(question, value) {
    if (this.leaving) return;
    const index = this.place;
    const group = this.groups().find((one) => one.dataset.question === question);
    for (const button of group.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.value === value));
    }
    const time = Math.min(Math.round(performance.now() - this.shownAt), 6 * 24 * 3600 * 1000);
    this.given.add(question);
    this.leaving = this.tasks[index].questions.every(({ id }) => this.given.has(id));
    if (!this.leaving) this.focusOpen();
    const waiting = () => this.say("Not saved yet: trying again …", true);
    this.saving = this.saving.then(() => this.source.save(question, value, time, waiting));
    try {
      await this.saving;
    } catch (error) {
      fail(error);
      return;
    }
    this.answers[question] = value;
    if (this.source.lasting === false) this.say("This browser keeps nothing: save your answers before you leave", true);
    else this.say("Saved");
    this.report();
    if (this.leaving && this.answered(index)) this.go(index + 1 < this.tasks.length ? index + 1 : this.firstOpen);
  }

  end() {
    this.report();
    const parts = [element("h1", { text: "Thank you" }), element("p", { text: "All questions are answered." })];
    if (this.source.download) {
      const save = element("button", { type: "button", className: "primary", text: "Save answers as a file" });
      save.addEventListener("click", () => this.source.download());
      parts.push(element("p", { text: "Save your answers and send the file back." }), save);
    } else {
      parts.push(element("p", { text: "Your answers are saved. You can close this page." }));
    }
    const article = element("article", { tabindex: "-1" }, ...parts);
    main.replaceChildren(article);
    article.focus();
  }

  enlarge(url, name) {
    large.querySelector("img")?.remove();
    large.append(element("img", { src: url, alt: name }));
    large.showModal();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || large.open) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      this.step(event.key === "ArrowLeft" ? -1 : 1);
    } else if (/^[1-9]$/.test(event.key)) {
      this.current()?.querySelectorAll("button")[Number(event.key) - 1]?.click();
    }
  }
}

async function decoded(urls) {
  await Promise.all(
    urls.map((url) => {
      const image = new Image();
      image.src = url;
      return image.decode();
    }),
  );
}

function fail(error) {
  const text = error instanceof DOMException ? "An image cannot be loaded. Reload this page to try again." : error.message;
  main.replaceChildren(element("article", { role: "alert" }, element("h1", { text: "Sorry" }), element("p", { text })));
}

async function begin() {
  document.getElementById("close").addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => event.target !== large.querySelector("#close") && large.close());
  const own = document.getElementById("study-data");
  const source = own ? new FileAnswers(JSON.parse(own.textContent)) : new ServerAnswers(location.hash.slice(1));
  try {
    const flow = new Flow(source, await source.open());
    if (source.download) {
      const save = element("button", { type: "button", className: "quiet", text: "Save answers so far" });
      save.addEventListener("click", () => source.download());
      document.querySelector("header .line").append(save);
    }
    flow.start();
  } catch (error) {
    fail(error);
  }
}

begin();
