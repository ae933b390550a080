// Where screens come from and answers go: a server, or the page's own data and this browser's storage.

const WAITS = [500, 1000, 2000, 4000, 8000];

/** 32 hexadecimal digits, new for each answer: the same answer sent twice is stored once. */
function newNonce() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class ServerAnswers {
  kept = "Your answers are saved as you go: close this page whenever you like, and go on later by the same link.";

  constructor(token) {
    this.headers = { Authorization: `Bearer ${token}` };
    this.images = new Map();
  }

  /** Screens and answers so far. Throws an Error whose message is for the rater. */
  async open() {
    const response = await fetch("api/study", { headers: this.headers }).catch(() => null);
    if (!response) throw new Error("The server cannot be reached. Reload this page to try again.");
    if (response.status === 401) throw new Error("This link is not known. Please check that you opened all of it.");
    if (!response.ok) throw new Error("The server has a problem. Reload this page to try again.");
    return response.json();
  }

  /** A URL of an image that is already here. */
  image(name) {
    if (!this.images.has(name)) {
      const loading = this.load(name);
      loading.catch(() => this.images.delete(name));
      this.images.set(name, loading);
    }
    return this.images.get(name);
  }

  async load(name) {
    for (const wait of [...WAITS, null]) {
      const response = await fetch(`api/images/${name}`, { headers: this.headers }).catch(() => null);
      if (response?.ok) return URL.createObjectURL(await response.blob());
      if (wait === null || (response && response.status < 500)) break;
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
    throw new Error("An image cannot be loaded. Reload this page to try again.");
  }

  /** Forget all images but these. */
  keep(names) {
    for (const [name, loading] of this.images) {
      if (names.has(name)) continue;
      this.images.delete(name);
      loading.then((url) => URL.revokeObjectURL(url), () => {});
    }
  }

  /** Returns when the answer is on the server's disk; until then it tries again and says so by `waiting`. */
  async save(question, choice, milliseconds, waiting) {
    const body = JSON.stringify({ nonce: newNonce(), question, choice, milliseconds });
    const headers = { ...this.headers, "Content-Type": "application/json" };
    for (let turn = 0; ; turn += 1) {
      const response = await fetch("api/answers", { method: "POST", headers, body }).catch(() => null);
      if (response?.ok) return;
      if (response && response.status >= 400 && response.status < 500) {
        throw new Error("The server refused this answer. Reload this page to try again.");
      }
      waiting();
      await new Promise((resolve) => setTimeout(resolve, WAITS[Math.min(turn, WAITS.length - 1)]));
    }
  }
}

export class FileAnswers {
  kept = "Your answers stay in this browser until you save them as a file at the end, and send that back.";

  constructor(data) {
    this.data = data;
    this.place = `diptych-study ${data.study} ${data.rater}`;
    this.list = [];
    this.lasting = true;
  }

  /** What is stored, by whichever tab. */
  read() {
    try {
      const stored = JSON.parse(localStorage.getItem(this.place) ?? "[]");
      if (Array.isArray(stored) && stored.length >= this.list.length) this.list = stored;
    } catch {
      this.lasting = false;
    }
  }

  async open() {
    this.read();
    const answers = Object.fromEntries(this.list.map((one) => [one.question, one.choice]));
    return { ...this.data, answers };
  }

  async image(name) {
    return `images/${name}.png`;
  }

  keep() {}

  async save(question, choice, milliseconds) {
    this.read();
    this.list.push({ nonce: newNonce(), question, choice, milliseconds });
    try {
      localStorage.setItem(this.place, JSON.stringify(this.list));
    } catch {
      this.lasting = false;
    }
  }

  /** The answers as a file, for whoever runs the study. */
  download() {
    const { study, rater, number } = this.data;
    const content = { format: "diptych-study-answers", study, rater, answers: this.list };
    const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
    const link = document.createElement("a");
    link.href = url;
    link.download = `answers-rater-${number}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}
