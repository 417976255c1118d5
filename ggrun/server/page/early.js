// Before anything is drawn: the theme that was chosen, so that a dark page never flashes white.
try {
  const theme = JSON.parse(localStorage.getItem("ggrun.theme"));
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch { /* storage is off: the system's theme */ }
