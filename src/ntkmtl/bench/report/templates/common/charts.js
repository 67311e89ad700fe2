"use strict";
// What every page of charts is made with.
const Charts = (() => {
  // Okabe and Ito's colors without black and yellow, and an olive; all stand out on white and on
  // black. More curves than colors go on with other dashes.
  const COLORS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8c7a2b"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const STROKES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4" };
  const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';

  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtons: [["toImage", "resetScale2d"]],
    toImageButtonOptions: { format: "svg" },
    scrollZoom: false,
  };

  // Plotly reads a few HTML tags and entities in texts, so names must not hold any.
  const safe = (text) =>
    text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
  const minus = (text) => text.replace("-", "−");
  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e6 || size < 1e-4)) return minus(value.toExponential(2));
    return minus(String(Number(value.toPrecision(4))));
  };
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function styles(count) {
    return Array.from({ length: count }, (_, i) => ({
      color: COLORS[i % COLORS.length],
      dash: DASHES[Math.floor(i / COLORS.length) % DASHES.length],
      width: 2,
    }));
  }

  function axis(title, more) {
    return {
      title: { text: title, standoff: 10, font: { size: 13 } },
      gridcolor: color("--grid"),
      linecolor: color("--line"),
      zerolinecolor: color("--line"),
      tickcolor: color("--line"),
      automargin: true,
      exponentformat: "power",
      fixedrange: touch,
      ...more,
    };
  }

  function layout(more) {
    return {
      font: { family: FONT, size: 12, color: color("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 10, r: 14, t: 10, b: 10 },
      hovermode: "closest",
      hoverlabel: {
        bgcolor: color("--ground"),
        bordercolor: color("--line"),
        font: { family: FONT, size: 12, color: color("--ink") },
      },
      modebar: {
        bgcolor: "rgba(0,0,0,0)",
        color: color("--muted"),
        activecolor: color("--accent"),
      },
      showlegend: false,
      dragmode: touch ? false : "zoom",
      ...more,
    };
  }

  const labeled = (value) => {
    const size = Math.abs(Math.log10(value));
    return size < 4.5 ? String(Number(value.toPrecision(4))) : minus(value.toExponential(0).replace("e+", "e"));
  };

  // As many whole labels as find room in so many pixels: within a decade evenly spaced numbers, else
  // 1, 2 and 5 or powers of ten. A bare "2", as plotly has it, says nothing of its decade.
  function logTicks(low, high, pixels, each = 17) {
    // Plotly shows a decade to either side of a single value.
    if (!(high > low * (1 + 1e-9))) [low, high] = [low / 10, high * 10];
    const span = Math.log10(high / low);
    const perDecade = (0.9 * pixels) / span / each;
    let values = [];
    if (span < 0.7) {
      const rough = (high - low) / Math.max(2, Math.min(6, pixels / each / 2));
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough);
      for (let i = Math.max(1, Math.floor(low / step) - 1); i * step <= high + step; i++) values.push(i * step);
    } else {
      // The gap between 2 and 5 is 0.4 of a decade, those below and above 0.3.
      const factors = perDecade > 1 / 0.3 ? [1, 2, 5] : [1];
      const every = factors.length > 1 ? 1 : Math.max(1, Math.ceil(1 / perDecade));
      const to = Math.ceil(Math.log10(high)) + 1;
      for (let decade = Math.floor(Math.log10(low)) - 1; decade <= to; decade++)
        if (decade % every === 0) values.push(...factors.map((factor) => factor * 10 ** decade));
    }
    return { type: "log", tickmode: "array", tickvals: values, ticktext: values.map(labeled) };
  }

  function extent(lists) {
    let low = Infinity;
    let high = -Infinity;
    for (const list of lists)
      for (const value of list)
        if (value !== null) {
          if (value < low) low = value;
          if (value > high) high = value;
        }
    return [low, high];
  }

  // Means over as many points to the left as to the right; points without a value stay without.
  function smoothed(values, reach) {
    return values.map((value, at) => {
      if (value === null) return null;
      let sum = 0;
      let count = 0;
      const span = Math.min(reach, at, values.length - 1 - at);
      for (let i = at - span; i <= at + span; i++)
        if (values[i] !== null) {
          sum += values[i];
          count += 1;
        }
      return sum / count;
    });
  }

  // Points to either side that a slider takes in: up to a tenth of all.
  const reachOf = (slider, points) => Math.round((points * Number(slider.value)) / 200);

  function empty(element, sentence) {
    Plotly.purge(element);
    element.classList.add("empty");
    element.removeAttribute("role");
    element.removeAttribute("aria-label");
    element.textContent = sentence;
    const save = element.closest("figure").querySelector("[data-svg]");
    if (save) save.hidden = true;
  }

  // Buttons are made once and then kept, so that focus and double clicks survive a redraw.
  function legend(container, entries, look, hidden, redraw) {
    if (!container.children.length) {
      for (const entry of entries) {
        const button = document.createElement("button");
        button.type = "button";
        const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        svg.setAttribute("width", "26");
        svg.setAttribute("height", "8");
        svg.setAttribute("aria-hidden", "true");
        const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
        for (const [name, value] of [["x1", 0], ["x2", 26], ["y1", 4], ["y2", 4], ["stroke-width", 2.5]])
          line.setAttribute(name, value);
        svg.append(line);
        button.append(svg, document.createTextNode(entry.name));
        button.addEventListener("click", (event) => {
          if (event.detail === 2) {
            entries.forEach((other) => hidden.add(other.key));
            hidden.delete(entry.key);
          } else if (!hidden.delete(entry.key)) {
            hidden.add(entry.key);
          }
          redraw();
        });
        container.append(button);
      }
      const all = [
        ["all", () => hidden.clear()],
        ["none", () => entries.forEach((entry) => hidden.add(entry.key))],
      ];
      for (const [word, act] of all) {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "plain";
        button.textContent = word;
        button.addEventListener("click", () => {
          act();
          redraw();
        });
        container.append(button);
      }
    }
    entries.forEach((entry, i) => {
      const button = container.children[i];
      const style = look[entry.key];
      button.setAttribute("aria-pressed", String(!hidden.has(entry.key)));
      button.querySelector("line").setAttribute("stroke", style.color);
      button.querySelector("line").setAttribute("stroke-dasharray", STROKES[style.dash]);
    });
  }

  function fill(select, options) {
    select.replaceChildren();
    for (const [value, text] of options) {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = text;
      select.append(option);
    }
  }

  function faded(hex) {
    const channel = (at) => parseInt(hex.slice(at, at + 2), 16);
    return `rgba(${channel(1)},${channel(3)},${channel(5)},0.16)`;
  }

  return {
    FONT,
    STROKES,
    config,
    safe,
    short,
    shown,
    color,
    styles,
    axis,
    layout,
    logTicks,
    extent,
    smoothed,
    reachOf,
    empty,
    legend,
    fill,
    faded,
  };
})();
