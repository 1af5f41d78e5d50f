// Keeps the live parts of a page fresh while it is looked at. What changed comes as server-sent events
// (data-events); the parts are then fetched from the page itself, so what the server renders is the only
// rendering. Without script a page that has something under way reloads itself.
(() => {
  const main = document.querySelector("main");
  const link = document.getElementById("link");
  const said = document.getElementById("said");
  const parser = new DOMParser();
  const apart = 900; // milliseconds between two renewals
  const patience = 20000; // milliseconds without a word, before the server is asked whether it is there
  const gone = document.getElementById("gone");
  let source, last = 0, due = 0, busy = false, again = false, heard = Date.now();

  function say(text, state) {
    link.textContent = text;
    link.className = "link " + state;
    link.hidden = !text;
  }

  // hear notes that the server has answered; miss says at the top of the page that it does not, since figures that stand
  // there unchanged would pass for figures of now.
  function hear() {
    heard = Date.now();
    gone.hidden = true;
    document.body.classList.remove("stale");
  }

  function miss() {
    if (!gone.hidden) return;
    gone.textContent = `The server does not answer. What is shown here is of ${new Date(heard).toISOString().slice(11, 19)} UTC and may be wrong by now. This page goes on by itself once the server is back.`;
    gone.hidden = false;
    document.body.classList.add("stale");
  }

  // patch makes node like fresh and changes only what differs, so that focus, selection and what was opened stay where they
  // are. Rows that move are told apart by their data-key or id.
  function patch(node, fresh) {
    if (node.nodeType !== Node.ELEMENT_NODE) {
      if (node.data !== fresh.data) patchText(node, fresh.data);
      return;
    }
    for (const { name, value } of [...fresh.attributes]) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
    for (const { name } of [...node.attributes]) {
      if (!fresh.hasAttribute(name) && !(name === "open" && node.localName === "details")) node.removeAttribute(name);
    }
    patchChildren(node, fresh);
  }

  // patchText replaces what differs in the middle only: a selection that begins or ends before it stays.
  function patchText(node, text) {
    const old = node.data, most = Math.min(old.length, text.length);
    let head = 0, tail = 0;
    while (head < most && old[head] === text[head]) head++;
    while (tail < most - head && old[old.length - 1 - tail] === text[text.length - 1 - tail]) tail++;
    node.replaceData(head, old.length - head - tail, text.slice(head, text.length - tail));
  }

  // stays reports whether a node answers the form that this page was sent for: a page asked for anew does not have it, and it
  // must be read before it goes.
  const stays = (n) => n?.nodeType === Node.ELEMENT_NODE && "stays" in n.dataset;
  const keyOf = (n) => n.nodeType === Node.ELEMENT_NODE ? n.dataset.key || n.id : "";

  function patchChildren(node, fresh) {
    const wanted = new Set([...fresh.childNodes].map(keyOf).filter(Boolean));
    const known = new Map();
    for (const child of [...node.childNodes]) {
      if (stays(child)) continue;
      const key = keyOf(child);
      if (key && !wanted.has(key)) child.remove();
      else if (key) known.set(key, child);
    }
    let at = node.firstChild;
    for (const child of [...fresh.childNodes]) {
      while (stays(at)) at = at.nextSibling;
      const key = keyOf(child), same = key ? known.get(key) : at && !keyOf(at) && at.nodeName === child.nodeName ? at : undefined;
      if (!same) {
        node.insertBefore(document.importNode(child, true), at);
        continue;
      }
      if (same === at) at = at.nextSibling;
      else node.insertBefore(same, at);
      patch(same, child);
    }
    while (at) {
      const next = at.nextSibling;
      if (!stays(at)) at.remove();
      at = next;
    }
  }

  const stateOf = () => document.querySelector(".hero .state")?.textContent.trim() || "";

  async function renew() {
    due = 0;
    if (busy) { again = true; return; }
    busy = true;
    last = Date.now();
    const state = stateOf(), focused = document.activeElement;
    try {
      const res = await fetch(main.dataset.self || location.pathname + location.search, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(10000) });
      const page = parser.parseFromString(await res.text(), "text/html");
      if (!page.getElementById("gone")) throw new Error("something else answers"); // a proxy, of a server that is down
      hear();
      for (const part of document.querySelectorAll("[data-live]")) {
        const fresh = page.querySelector(`[data-live="${part.dataset.live}"]`);
        // What somebody is typing in is left alone.
        if (fresh && fresh.outerHTML !== part.outerHTML && !part.querySelector("input:focus:not([type=hidden]), textarea:focus")) patch(part, fresh);
      }
      // A screen reader hears of another state, and not of each figure.
      if (stateOf() !== state) said.textContent = `${stateOf()}. ${document.querySelector("h1")?.textContent.trim() || ""}`;
      if (focused && !focused.isConnected) main.focus({ preventScroll: true });
      if (res.ok && page.title) document.title = page.title;
      const events = page.querySelector("main")?.dataset.events;
      if (res.ok && !events) close();
    } catch {
      miss(); // what is shown stays, and the events' connection says when it is back
    }
    busy = false;
    if (again) { again = false; soon(); }
  }

  function soon() {
    if (document.hidden) { again = true; return; }
    if (!due) due = setTimeout(renew, Math.max(0, last + apart - Date.now()));
  }

  function close() {
    source?.close();
    source = undefined;
    say("", "");
  }

  function open() {
    if (source || !main.dataset.events) return;
    source = new EventSource(main.dataset.events);
    for (const name of ["projection", "generations", "ticket", "trouble"]) source.addEventListener(name, () => { hear(); soon(); });
    source.addEventListener("end", () => { soon(); close(); });
    source.addEventListener("open", () => { say("Live", "on"); soon(); });
    source.addEventListener("error", () => {
      say("Reconnecting…", "off");
      soon(); // a stream ends now and then; whether the server is there, the page finds out
      if (source?.readyState === EventSource.CLOSED) { close(); setTimeout(open, 5000); }
    });
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); return; } // a hidden page holds no connection
    open();
    soon();
  });
  addEventListener("pagehide", close);
  setInterval(() => { if (source && !document.hidden && Date.now() - heard > patience) soon(); }, patience / 4);
  open();
})();
