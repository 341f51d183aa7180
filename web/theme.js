// Runs before the first paint, so that a chosen theme does not flash; everything else is a module and comes later.
"use strict";
(() => {
    let theme = null;
    try {
        theme = localStorage.getItem("nakshatra.theme");
    } catch {
        // Storage may be forbidden; then the system's theme is used.
    }
    if (theme === "light" || theme === "dark")
        document.documentElement.dataset.theme = theme;
})();
