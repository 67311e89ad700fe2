"use strict";
// Files that a reader saves: texts as they are, charts as one SVG with titles and legend.
const Export = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const { color, STROKES } = Charts;

  function save(name, type, text) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  function part(parent, name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  // Legend entries in lines as long as the picture is wide; returns the height.
  function legend(root, entries, top, width) {
    let x = 4;
    let y = top + 18;
    for (const { name, style } of entries) {
      const size = 44 + 7.2 * name.length;
      if (x > 4 && x + size > width) {
        x = 4;
        y += 20;
      }
      part(root, "line", {
        x1: x, x2: x + 26, y1: y - 4, y2: y - 4,
        stroke: style.color, "stroke-width": 2.5, "stroke-dasharray": STROKES[style.dash],
      });
      part(root, "text", { x: x + 32, y, "font-size": 12, fill: color("--ink") }, name);
      x += size;
    }
    return entries.length ? y + 12 - top : 0;
  }

  // Charts as they stand on the page, within a container.
  async function svg(container, panels, entries) {
    const frame = container.getBoundingClientRect();
    const drawn = panels.filter(({ element }) => element.classList.contains("js-plotly-plot"));
    const root = document.createElementNS(SVG, "svg");
    root.setAttribute("font-family", Charts.FONT);
    const ground = part(root, "rect", { width: "100%", height: "100%", fill: color("--ground") });
    for (const { element, title } of drawn) {
      const box = element.getBoundingClientRect();
      const text = await Plotly.toImage(element, {
        format: "svg", width: Math.round(box.width), height: Math.round(box.height), imageDataOnly: true,
      });
      const inner = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
      inner.setAttribute("x", box.left - frame.left);
      inner.setAttribute("y", box.top - frame.top);
      root.append(inner);
      if (title)
        part(
          root,
          "text",
          { x: box.left - frame.left + 4, y: box.top - frame.top - 5, "font-size": 13, "font-weight": 600, fill: color("--ink") },
          title,
        );
    }
    const height = frame.height + legend(root, entries, frame.height, frame.width);
    for (const [key, value] of [["width", frame.width], ["height", height], ["viewBox", `0 0 ${frame.width} ${height}`]])
      root.setAttribute(key, value);
    ground.setAttribute("height", height);
    return new XMLSerializer().serializeToString(root);
  }

  return { save, svg };
})();
