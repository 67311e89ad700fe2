"use strict";
// Bars of Delta-m and of times, one per method.
const Bars = (() => {
  const { config, safe, short, shown, color, axis, layout, logTicks, empty } = Charts;
  const HATCHES = { solid: "", dash: "/", dot: ".", dashdot: "x", longdash: "-" };
  // Room below the bars for ticks and title, whatever the number of bars.
  const BELOW = 50;
  const PER_BAR = 27;

  function bars(element, entries, title, more) {
    const height = 6 + PER_BAR * entries.length + BELOW;
    element.style.height = height + "px";
    // One trace per bar: a trace has either one hatch or one color per bar, not both.
    const traces = entries.map((entry, i) => ({
      type: "bar",
      orientation: "h",
      y: [i],
      x: [entry.value],
      marker: {
        color: entry.style.color,
        pattern: {
          shape: entry.baseline ? "" : HATCHES[entry.style.dash],
          fillmode: "overlay",
          fgcolor: color("--ground"),
          size: 6,
          solidity: 0.3,
        },
      },
      customdata: [entry.hover],
      hovertemplate: "%{customdata}<extra></extra>",
      width: 0.66,
      cliponaxis: false,
      ...more.trace(entry),
    }));
    const narrow = element.clientWidth < 420;
    return Plotly.react(
      element,
      traces,
      layout({
        height,
        barmode: "overlay",
        dragmode: false,
        margin: { l: 10, r: 14, t: 6, b: BELOW },
        xaxis: axis(title, {
          automargin: false,
          fixedrange: true,
          zeroline: true,
          zerolinewidth: 1.5,
          nticks: narrow ? 5 : 8,
          ...more.x,
        }),
        yaxis: axis("", {
          fixedrange: true,
          showgrid: false,
          zeroline: false,
          range: [entries.length - 0.5, -0.5],
          tickmode: "array",
          tickvals: entries.map((_, i) => i),
          ticktext: entries.map((entry) => safe(short(entry.name, narrow ? 16 : 28))),
          ticks: "",
        }),
        shapes: more.shapes || [],
      }),
      { ...config, displayModeBar: false },
    );
  }

  // Methods with a value and its error, the lowest first.
  function entriesOf(data, look, key) {
    return data.methods
      .map((method, i) => ({ ...method, style: look[i], pair: method[key] }))
      .filter((entry) => entry.pair !== null)
      .map((entry) => ({ ...entry, value: entry.pair[0], error: entry.pair[1] }))
      .sort((a, b) => a.value - b.value);
  }

  const spread = (entry) => (entry.error === null ? "" : " ± " + shown(entry.error));

  function delta(element, data, look) {
    const entries = entriesOf(data, look, "delta");
    if (!entries.length) {
      empty(element, "Δm is not known: there are no complete STL runs to compare with.");
      return;
    }
    for (const entry of entries) {
      const seeds = entry.seeds + (entry.seeds === 1 ? " seed" : " seeds");
      entry.hover = `<b>${safe(entry.name)}</b><br>Δm ${shown(entry.value)}${spread(entry)} %<br>${seeds}`;
    }
    bars(element, entries, "Δm against STL (%), lower is better", {
      trace: (entry) => ({
        error_x: {
          type: "data",
          visible: entry.error !== null,
          array: [entry.error ?? 0],
          color: color("--ink"),
          thickness: 1.2,
          width: 3,
        },
      }),
    });
  }

  function time(element, data, look) {
    const entries = entriesOf(data, look, "time");
    if (!entries.length) {
      const why = data.methods.some((method) => method.plain)
        ? "the machine was busy while the runs were trained"
        : `${data.plain} is not among the runs`;
      empty(element, `Time relative to ${data.plain} is not known: ${why}.`);
      return;
    }
    for (const entry of entries)
      entry.hover =
        `<b>${safe(entry.name)}</b><br>${shown(entry.value)}${spread(entry)} × ${safe(data.plain)}` +
        `<br>${shown(entry.seconds)} s per epoch`;
    const most = entries[entries.length - 1].value;
    const log = most / entries[0].value > 20;
    // Numbers stand to the right of the bars.
    const room = element.clientWidth < 420 ? 1.6 : 1.3;
    bars(element, entries, `Time per epoch (× ${short(data.plain, 20)})` + (log ? ", logarithmic" : ""), {
      trace: (entry) => ({
        text: [entry.value.toFixed(2) + (entry.error === null ? "" : ` ± ${entry.error.toFixed(2)}`)],
        textposition: "outside",
        textfont: { size: 11, color: color("--muted") },
      }),
      x: log
        ? {
            ...logTicks(entries[0].value / 1.5, most, element.clientWidth / 2, 40),
            range: [Math.log10(entries[0].value / 1.5), Math.log10(most) + Math.log10(room) * 3],
          }
        : { range: [0, most * room] },
      shapes: [
        {
          type: "line", xref: "x", yref: "paper", x0: 1, x1: 1, y0: 0, y1: 1,
          line: { color: color("--muted"), width: 1, dash: "dot" },
        },
      ],
    });
  }

  return { delta, time };
})();
