// The API reference: Swagger UI over this server's own openapi.json, without a request to anywhere else.
"use strict";

/** What Swagger UI leaves out for screen readers and keyboards. */
const accessible = ({ React }) => {
  const element = React.createElement;
  return {
    components: {
      // A link within the button that opens an operation would be a second control in the first.
      DeepLink: ({ text }) => element("span", null, text),
      // The place of a filter, which is off: the level between the title and the groups of operations.
      FilterContainer: () =>
        element("section", { className: "wrapper", "aria-label": "Operations" }, element("h2", null, "Operations")),
    },
    wrapComponents: {
      InfoContainer: (Original) => (props) =>
        element("section", { "aria-label": "About" }, element(Original, props)),
      TextArea: (Original) => (props) =>
        element(Original, { "aria-label": "Request body", ...props }),
    },
  };
};

function followColourScheme() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
  dark.addEventListener("change", apply);
  apply();
}

followColourScheme();
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  plugins: [accessible],
  // Would ask validator.swagger.io.
  validatorUrl: null,
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
});
