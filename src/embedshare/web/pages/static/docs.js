// The description of this worker's routes, to read and to try out.

const dark = () => document.documentElement.classList.toggle(
  "dark-mode", document.documentElement.dataset.theme === "dark");
addEventListener("themechange", dark);
dark();

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  persistAuthorization: false,
  validatorUrl: null,
});
