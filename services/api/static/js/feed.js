/* The live feed: one WebSocket for the sections that the visible tab wants, opened again with back-off. */

const FIRST_WAIT = 1_000;
const LONGEST_WAIT = 15_000;
const SILENCE = 5_000; // no message for this long: the connection is dead, whatever the browser believes

export class Feed {
  /** onMessage(message); onState({connected, retryAt}) whenever the connection changes. */
  constructor(onMessage, onState) {
    this.onMessage = onMessage;
    this.onState = onState;
    this.sections = "";
    this.wait = FIRST_WAIT;
    this.socket = null;
    this.timer = null;
    this.heard = 0;
    setInterval(() => this.#listen(), 1_000);
    window.addEventListener("online", () => this.open());
  }

  /** Ask for other sections. */
  want(sections) {
    if (sections === this.sections && this.socket) return;
    this.sections = sections;
    this.open();
  }

  open() {
    clearTimeout(this.timer);
    const old = this.socket;
    this.socket = null;
    old?.close();
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws/metrics?include=${this.sections}`);
    this.socket = socket;
    this.heard = Date.now();
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.wait = FIRST_WAIT;
      this.heard = Date.now();
      this.onState({ connected: true, retryAt: null });
      this.onMessage(JSON.parse(event.data));
    };
    socket.onclose = () => { if (socket === this.socket) this.#retry(); };
  }

  #listen() {
    if (this.socket && Date.now() - this.heard > SILENCE) {
      const dead = this.socket;
      this.socket = null;
      dead.close();
      this.#retry();
    }
  }

  #retry() {
    this.socket = null;
    const wait = this.wait * (0.75 + Math.random() / 2);
    this.wait = Math.min(this.wait * 2, LONGEST_WAIT);
    this.onState({ connected: false, retryAt: Date.now() + wait });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), wait);
  }
}
