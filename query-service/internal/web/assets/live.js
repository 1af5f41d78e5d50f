// Keeps the live parts of a page fresh while it is looked at. What changed comes as server-sent events
// (data-events); the parts are then fetched from the page itself, so what the server renders is the only
// rendering. Without script a page that has something under way reloads itself.
(() => {
  const main = document.querySelector("main");
  const link = document.getElementById("link");
  const parser = new DOMParser();
  const apart = 900; // milliseconds between two renewals
  let source, last = 0, due = 0, busy = false, again = false;

  function say(text, state) {
    link.textContent = text;
    link.className = "link " + state;
    link.hidden = !text;
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
      const res = await fetch(main.dataset.self || location.pathname + location.search, { headers: { Accept: "text/html" } });
      const page = parser.parseFromString(await res.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const fresh = page.querySelector(`[data-live="${part.dataset.live}"]`);
        // What somebody is typing in is left alone.
        if (fresh && fresh.outerHTML !== part.outerHTML && !part.querySelector("input:focus:not([type=hidden]), textarea:focus")) replace(part, fresh);
      }
      if (res.ok && page.title) document.title = page.title;
      const events = page.querySelector("main")?.dataset.events;
      if (res.ok && !events) close();
    } catch {
      // The service is away: what is shown stays, and the events' connection says when it is back.
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
    for (const name of ["projection", "generations", "ticket", "trouble"]) source.addEventListener(name, soon);
    source.addEventListener("end", () => { soon(); close(); });
    source.addEventListener("open", () => say("Live", "on"));
    source.addEventListener("error", () => {
      say("Reconnecting…", "off");
      if (source?.readyState === EventSource.CLOSED) { close(); setTimeout(open, 5000); }
    });
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); return; } // a hidden page holds no connection
    open();
    soon();
  });
  addEventListener("pagehide", close);
  open();
})();
