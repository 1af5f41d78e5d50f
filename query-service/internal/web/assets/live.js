// Keeps the live parts of a page fresh while it is looked at. What changed comes as server-sent events
// (data-events); the parts are then fetched from the page itself, so what the server renders is the only
// rendering. Without script a page that has something under way reloads itself.
(() => {
  const main = document.querySelector("main");
  const link = document.getElementById("link");
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

  function replace(part, fresh) {
    const active = part.contains(document.activeElement) ? document.activeElement.id : "";
    const open = [...part.querySelectorAll("details[open][id]")].map((d) => d.id);
    const scrolled = [...part.querySelectorAll(".scroll")].map((s) => s.scrollLeft);
    part.replaceWith(document.adoptNode(fresh));
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    fresh.querySelectorAll(".scroll").forEach((s, i) => { s.scrollLeft = scrolled[i] || 0; });
    if (active) document.getElementById(active)?.focus();
  }

  async function renew() {
    due = 0;
    if (busy) { again = true; return; }
    busy = true;
    last = Date.now();
    try {
      const res = await fetch(main.dataset.self || location.pathname + location.search, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(10000) });
      const page = parser.parseFromString(await res.text(), "text/html");
      if (!page.getElementById("gone")) throw new Error("something else answers"); // a proxy, of a server that is down
      hear();
      for (const part of document.querySelectorAll("[data-live]")) {
        const fresh = page.querySelector(`[data-live="${part.dataset.live}"]`);
        // What somebody is typing in is left alone.
        if (fresh && fresh.outerHTML !== part.outerHTML && !part.querySelector("input:focus:not([type=hidden]), textarea:focus")) replace(part, fresh);
      }
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
