// Light or dark: the system's theme, or the user's last choice. Runs before the page is drawn.

(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const key = "embedshare-theme";
  let chosen = null;
  try {
    chosen = localStorage.getItem(key);
  } catch {
    // storage is denied: the choice lasts as long as the page
  }

  function apply() {
    root.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
    dispatchEvent(new Event("themechange"));
  }

  system.addEventListener("change", apply);
  apply();
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      chosen = root.dataset.theme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem(key, chosen);
      } catch {
        // as above
      }
      apply();
    });
  });
})();
