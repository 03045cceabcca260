// Draws the plots. Errors and what was drawn stand in the root element, for tests to read.
const root = document.documentElement;
root.dataset.errors = "";
window.addEventListener("error", (event) => { root.dataset.errors += event.message + ";"; });
window.addEventListener("unhandledrejection", (event) => {
  root.dataset.errors += event.reason + ";";
});

window.addEventListener("DOMContentLoaded", () => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const mouse = matchMedia("(hover: hover)").matches;

  function themed(layout) {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false,
                   automargin: true, showline: true };
    return {
      ...layout, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--text"), family: "system-ui, sans-serif", size: 12 },
      margin: { l: 50, r: 14, t: 22, b: 44 }, hovermode: "closest",
      hoverlabel: { align: "left" }, dragmode: mouse ? "zoom" : false,
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    };
  }

  async function draw() {
    const options = { responsive: true, displaylogo: false, displayModeBar: mouse ? "hover" : false };
    await Promise.all(Object.entries(figures).map(
      ([id, figure]) => Plotly.react(id, figure.data, themed(figure.layout), options)));
    root.dataset.traces = document.querySelectorAll(".plot g.trace").length;
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const visible = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", visible);
      for (const plot of button.closest("section").querySelectorAll(".plot")) {
        plot.data.forEach((trace, index) => {
          if (trace.meta === Number(button.dataset.curve)) Plotly.restyle(plot, { visible }, [index]);
        });
      }
    });
  }
  dark.addEventListener("change", draw);
  draw();
});
