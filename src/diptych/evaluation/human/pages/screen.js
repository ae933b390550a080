// The elements of one screen. Text is only ever set as text: a prompt is never read as HTML.

export function element(name, options = {}, ...children) {
  const { className, text, ...attributes } = options;
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Letter of a side, where there are two. */
function letter(task, side) {
  return task.sides.length > 1 ? "AB"[side] : "";
}

function imageName(task, side, index) {
  const images = task.sides[side];
  if (images.length === 1) return ["Image", letter(task, side)].filter(Boolean).join(" ");
  return `Image ${index + 1} of ${images.length} in set ${letter(task, side)}`;
}

/** A side: its images, each of which can be enlarged, and its letter. `urls` are as `task.sides`. */
function sideFigure(task, side, urls, enlarge) {
  const images = urls[side].map((url, index) => {
    const name = imageName(task, side, index);
    const button = element("button", { type: "button", className: "image", "aria-label": `${name}: enlarge` });
    button.append(element("img", { src: url, alt: name, draggable: "false" }));
    button.addEventListener("click", () => enlarge(url, name));
    return button;
  });
  const figure = element("figure", {}, element("div", { className: `images of-${images.length}` }, ...images));
  if (task.sides.length > 1) {
    const text = `${task.sides[side].length > 1 ? "Set" : "Image"} ${letter(task, side)}`;
    figure.append(element("figcaption", { text }));
  }
  return figure;
}

/** A question with a button for each answer; `choose(value)` is called with the answer. */
function questionGroup(question, answered, choose) {
  const heading = element("h2", { text: question.text, id: `text-${question.id}` });
  const buttons = question.choices.map(({ value, label }, index) => {
    const pressed = String(answered === value);
    const key = element("kbd", { text: String(index + 1), "aria-hidden": "true" });
    const button = element(
      "button",
      { type: "button", "aria-pressed": pressed, "aria-keyshortcuts": String(index + 1), "data-value": value },
      key,
      element("span", { text: label }),
    );
    button.addEventListener("click", () => choose(value));
    return button;
  });
  return element(
    "section",
    {
      className: "question",
      role: "group",
      tabindex: "-1",
      "aria-labelledby": heading.id,
      "data-question": question.id,
    },
    heading,
    element("div", { className: `choices of-${buttons.length}` }, ...buttons),
  );
}

/** All of a task. `answers` maps questions to choices; `choose(question, value)` takes an answer. */
export function taskScreen(task, urls, answers, enlarge, choose) {
  const sides = task.sides.map((_, side) => sideFigure(task, side, urls, enlarge));
  const parts = [element("div", { className: `sides of-${sides.length}` }, ...sides)];
  if (task.prompt !== null) {
    const caption = element("blockquote", { text: task.prompt });
    parts.push(element("div", { className: "prompt" }, element("span", { text: "Caption" }), caption));
  }
  const questions = task.questions.map((question) =>
    questionGroup(question, answers[question.id], (value) => choose(question.id, value)),
  );
  parts.push(element("div", { className: "questions" }, ...questions));
  return parts;
}
