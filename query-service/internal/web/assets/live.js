// Renews the live parts of a page from the page itself: what the server renders is the only rendering.
// A page without a part that asks for it (data-refresh, milliseconds) is left alone.
(() => {
  const parser = new DOMParser();

  async function renew() {
    const asking = document.querySelector("[data-refresh]");
    if (!asking) return;
    if (document.hidden) {
      document.addEventListener("visibilitychange", renew, { once: true });
      return;
    }
    const url = new URL(location.href);
    url.hash = "";
    if (asking.dataset.wait) url.searchParams.set("wait", asking.dataset.wait);
    let pause = Number(asking.dataset.refresh);
    try {
      const res = await fetch(url);
      const page = parser.parseFromString(await res.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const fresh = page.querySelector(`[data-live="${part.dataset.live}"]`);
        if (fresh && fresh.innerHTML !== part.innerHTML) part.replaceWith(document.adoptNode(fresh));
      }
      if (!res.ok) pause = 2000;
    } catch {
      pause = 2000; // the service is away: keep what is shown, try again
    }
    setTimeout(renew, pause);
  }

  const asking = document.querySelector("[data-refresh]");
  if (asking) setTimeout(renew, asking.dataset.wait ? 0 : Number(asking.dataset.refresh));
})();
