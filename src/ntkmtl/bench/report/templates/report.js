"use strict";
(() => {
  const {
    config,
    safe,
    short,
    shown,
    colour,
    styles,
    axis,
    layout,
    logTicks,
    extent,
    smoothed,
    empty,
    legend,
    fill,
    faded,
  } = Charts;
  const HATCHES = { solid: "", dash: "/", dot: ".", dashdot: "x", longdash: "-" };
  const SHOWN_AT_FIRST = 8;

  const problems = JSON.parse(document.getElementById("data").textContent);

  function methodStyles(methods) {
    const rest = styles(methods.length);
    return methods.map((method) => {
      if (method.baseline) return { color: colour("--baseline"), dash: "dot", width: 2.5 };
      if (method.reference) return { color: colour("--ink"), dash: "solid", width: 2 };
      return rest.shift();
    });
  }

  function bars(element, entries, title, more) {
    const height = 62 + 27 * entries.length;
    element.style.height = height + "px";
    // One trace per bar: a trace has either one hatch or one colour per bar, not both.
    const traces = entries.map((entry, i) => ({
      type: "bar",
      orientation: "h",
      y: [i],
      x: [entry.value],
      marker: {
        color: entry.style.color,
        pattern: {
          shape: entry.plain ? "" : HATCHES[entry.style.dash],
          fillmode: "overlay",
          fgcolor: colour("--ground"),
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
        xaxis: axis(title, { fixedrange: true, zeroline: true, zerolinewidth: 1.5, ...more.x }),
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
      { ...config, modeBarButtons: [["toImage"]] },
    );
  }

  class Page {
    constructor(article, data) {
      this.article = article;
      this.data = data;
      this.hidden = { curves: this.hiddenAtFirst(), weights: new Set(), eigenvalues: new Set() };
      for (const kind of ["weights", "eigenvalues"]) {
        const methods = Object.keys(data[kind]);
        fill(this.choice(kind), methods.map((m) => [m, data.methods[m].name]));
        this.choice(kind).value = this.firstMethod(methods);
      }
      for (const kind of ["curves", "weights", "eigenvalues"]) {
        const draw = kind === "curves" ? () => this.curves() : () => this.series(kind);
        this.choice(kind).addEventListener("change", () => {
          this.log(kind).removeAttribute("data-set");
          draw();
        });
        this.log(kind).addEventListener("change", () => {
          this.log(kind).setAttribute("data-set", "");
          draw();
        });
        const smooth = this.smooth(kind);
        if (smooth) smooth.addEventListener("change", draw);
      }
      this.sorting();
    }

    chart(kind) {
      return this.article.querySelector(`[data-chart="${kind}"]`);
    }
    choice(kind) {
      return this.article.querySelector(`[data-choice="${kind}"]`);
    }
    log(kind) {
      return this.article.querySelector(`[data-log="${kind}"]`);
    }

    smooth(kind) {
      return this.article.querySelector(`[data-smooth="${kind}"]`);
    }

    // Twenty curves at once say little: the baselines and the best are shown first.
    hiddenAtFirst() {
      const methods = this.data.methods.map((method, key) => ({ ...method, key }));
      const worth = (m) => (m.baseline || m.reference ? -Infinity : (m.delta ?? m.rank ?? 0));
      const order = methods.sort((a, b) => (worth(a) < worth(b) ? -1 : worth(a) > worth(b) ? 1 : 0));
      return new Set(order.slice(SHOWN_AT_FIRST).map((m) => m.key));
    }

    // The first choice is the best method that does more than weigh all tasks the same.
    firstMethod(keys) {
      const worth = (key) => {
        const method = this.data.methods[key];
        return method.reference ? Infinity : (method.delta ?? method.rank ?? 0);
      };
      return [...keys].sort((a, b) => worth(a) - worth(b))[0];
    }

    draw() {
      this.look = methodStyles(this.data.methods);
      this.delta();
      this.time();
      this.curves();
      this.series("weights");
      this.series("eigenvalues");
    }

    delta() {
      const entries = this.data.methods
        .map((m, i) => ({ name: m.name, value: m.delta, error: m.error, seeds: m.seeds, plain: m.baseline, style: this.look[i] }))
        .filter((entry) => entry.value !== null)
        .sort((a, b) => a.value - b.value);
      if (!entries.length) {
        empty(this.chart("delta"), "Δm is not known: there are no complete STL runs to compare with.");
        return;
      }
      for (const entry of entries) {
        const spread = entry.error === null ? "" : " ± " + shown(entry.error);
        const seeds = entry.seeds + (entry.seeds === 1 ? " seed" : " seeds");
        entry.hover = `<b>${safe(entry.name)}</b><br>Δm ${shown(entry.value)}${spread} %<br>${seeds}`;
      }
      bars(this.chart("delta"), entries, "Δm against STL (%), lower is better", {
        trace: (entry) => ({
          error_x: {
            type: "data",
            visible: entry.error !== null,
            array: [entry.error ?? 0],
            color: colour("--ink"),
            thickness: 1.2,
            width: 3,
          },
        }),
      });
    }

    time() {
      const entries = this.data.methods
        .map((m, i) => ({ name: m.name, value: m.time, seconds: m.seconds, plain: m.baseline, style: this.look[i] }))
        .filter((entry) => entry.value !== null)
        .sort((a, b) => a.value - b.value);
      if (!entries.length) {
        empty(this.chart("time"), `Time relative to ${this.data.plain} is not known: ${this.data.plain} is not among the runs.`);
        return;
      }
      for (const entry of entries)
        entry.hover = `<b>${safe(entry.name)}</b><br>${shown(entry.value)} × ${safe(this.data.plain)}<br>${shown(entry.seconds)} s per epoch`;
      const most = entries[entries.length - 1].value;
      const log = most / entries[0].value > 20;
      bars(this.chart("time"), entries, `Training time per epoch (× ${this.data.plain})` + (log ? ", logarithmic" : ""), {
        trace: (entry) => ({
          text: [entry.value.toFixed(2)],
          textposition: "outside",
          textfont: { size: 11, color: colour("--muted") },
        }),
        x: log
          ? {
              ...logTicks(entries[0].value / 1.5, most),
              range: [Math.log10(entries[0].value / 1.5), Math.log10(most * 1.6)],
            }
          : { range: [0, most * 1.14] },
        shapes: [
          {
            type: "line", xref: "x", yref: "paper", x0: 1, x1: 1, y0: 0, y1: 1,
            line: { color: colour("--muted"), width: 1, dash: "dot" },
          },
        ],
      });
    }

    // Whether to use a logarithmic axis: as the reader set it, else where values differ much.
    logarithmic(kind, low, high, ratio) {
      const box = this.log(kind);
      const possible = low > 0;
      if (!box.hasAttribute("data-set")) box.checked = possible && high / low > ratio;
      if (!possible) box.checked = false;
      box.disabled = !possible;
      box.parentElement.title = possible ? "" : "Some values are zero or negative.";
      return box.checked;
    }

    curves() {
      const element = this.chart("curves");
      const keys = Object.keys(this.data.curves).map(Number);
      const index = Number(this.choice("curves").value);
      const metric = this.data.metrics[index];
      if (!keys.length) {
        empty(element, "The runs hold no validation metrics over epochs.");
        return;
      }
      const hidden = this.hidden.curves;
      const visible = keys.filter((key) => !hidden.has(key));
      const [low, high] = extent(visible.map((key) => this.data.curves[key].mean[index]));
      const log = this.logarithmic("curves", low, high, 8);
      const last = Math.max(...visible.map((key) => this.data.curves[key].epoch.at(-1)));
      const traces = [];
      const lines = [];
      for (const key of visible) {
        const curve = this.data.curves[key];
        const mean = curve.mean[index];
        const error = curve.stderr && curve.stderr[index];
        const style = this.look[key];
        const name = safe(this.data.methods[key].name);
        if (error) {
          const edge = (sign) =>
            mean.map((value, i) => {
              if (value === null) return null;
              const moved = value + sign * (error[i] ?? 0);
              return log && moved <= 0 ? value / 100 : moved;
            });
          const band = { x: curve.epoch, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
          traces.push({ ...band, y: edge(-1) });
          traces.push({ ...band, y: edge(1), fill: "tonexty", fillcolor: faded(style.color) });
        }
        lines.push({
          x: curve.epoch,
          y: mean,
          mode: curve.epoch.length > 1 ? "lines" : "markers",
          line: style,
          marker: { color: style.color },
          customdata: mean.map(
            (value, i) =>
              `<b>${name}</b><br>epoch ${curve.epoch[i]}: ${shown(value)}` +
              (error && error[i] !== null ? ` ± ${shown(error[i])}` : ""),
          ),
          hovertemplate: "%{customdata}<extra></extra>",
        });
      }
      const unit = metric.unit ? ` (${metric.unit})` : "";
      const title = safe(`${short(metric.label, 40)}${unit}, ${metric.higher ? "higher" : "lower"} is better`);
      Plotly.react(
        element,
        [...traces, ...lines],
        layout({
          xaxis: axis("Epoch", { zeroline: false, ...(last <= 12 ? { dtick: 1 } : {}) }),
          yaxis: axis(title, { zeroline: false, ...(log ? logTicks(low, high) : { type: "linear" }) }),
        }),
        config,
      );
      const names = keys.map((key) => ({ key, name: this.data.methods[key].name }));
      legend(this.article.querySelector('[data-legend="curves"]'), names, this.look, hidden, () =>
        this.curves(),
      );
    }

    series(kind) {
      const element = this.chart(kind);
      const key = this.choice(kind).value;
      const controls = this.choice(kind).closest(".controls");
      if (key === "") {
        controls.hidden = true;
        empty(
          element,
          kind === "weights"
            ? "The runs hold no task weights."
            : "None of the methods in this comparison reads eigenvalues, so there are none to show.",
        );
        return;
      }
      const series = this.data[kind][key];
      const hidden = this.hidden[kind];
      // A fiftieth of the training to either side.
      const reach = this.smooth(kind).checked ? Math.round(series.step.length / 50) : 0;
      const values = series.values.map((task) => (reach ? smoothed(task, reach) : task));
      const look = styles(this.data.tasks.length);
      const visible = this.data.tasks.map((_, task) => task).filter((task) => !hidden.has(task));
      const [low, high] = extent(visible.map((task) => values[task]));
      const log = this.logarithmic(kind, low, high, 1);
      const quantity = kind === "weights" ? "Weight" : "Largest eigenvalue";
      const traces = visible.map((task) => ({
        x: series.step,
        y: values[task],
        mode: series.step.length > 1 ? "lines" : "markers",
        connectgaps: true,
        line: { ...look[task], width: 1.6 },
        marker: { color: look[task].color },
        customdata: values[task].map(
          (value, i) => `<b>${safe(this.data.tasks[task])}</b><br>step ${series.step[i]}: ${shown(value)}`,
        ),
        hovertemplate: "%{customdata}<extra></extra>",
      }));
      Plotly.react(
        element,
        traces,
        layout({
          xaxis: axis("Step", { zeroline: false }),
          yaxis: axis(quantity, {
            zeroline: false,
            ...(log ? logTicks(low, high) : { type: "linear", rangemode: "tozero" }),
          }),
        }),
        config,
      );
      const window = Math.round(series.window * (2 * reach + 1));
      this.article.querySelector(`[data-window="${kind}"]`).textContent =
        window > 1 ? ` and over windows of ${window} steps` : "";
      const names = this.data.tasks.map((name, task) => ({ key: task, name }));
      legend(this.article.querySelector(`[data-legend="${kind}"]`), names, look, hidden, () =>
        this.series(kind),
      );
    }

    sorting() {
      const table = this.article.querySelector("table.results");
      const body = table.tBodies[0];
      const heads = [...table.tHead.rows[0].cells];
      heads.forEach((head, column) => {
        const button = head.querySelector("button");
        button.addEventListener("click", () => {
          const before = head.getAttribute("aria-sort");
          const first = button.hasAttribute("data-descending") ? "descending" : "ascending";
          const other = first === "ascending" ? "descending" : "ascending";
          const order = before === first ? other : first;
          heads.forEach((each) => each.setAttribute("aria-sort", "none"));
          head.setAttribute("aria-sort", order);
          const sign = order === "ascending" ? 1 : -1;
          const text = button.hasAttribute("data-text");
          const value = (row) => {
            const cell = row.cells[column];
            if (text) return cell.textContent;
            return cell.dataset.value === "" ? null : Number(cell.dataset.value);
          };
          const rows = [...body.rows].map((row) => ({
            row,
            top: row.classList.contains("baseline"),
            value: value(row),
          }));
          rows.sort((a, b) => {
            if (a.top !== b.top) return a.top ? -1 : 1;
            if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
            return sign * (text ? a.value.localeCompare(b.value) : a.value - b.value);
          });
          body.append(...rows.map((entry) => entry.row));
        });
      });
    }
  }

  const articles = [...document.querySelectorAll("article[data-problem]")];
  const pages = articles.map((article, i) => new Page(article, problems[i]));
  const drawn = new Set();

  function show(number) {
    articles.forEach((article, i) => (article.hidden = i !== number));
    for (const button of document.querySelectorAll("[data-show]"))
      button.setAttribute("aria-pressed", String(Number(button.dataset.show) === number));
    if (!drawn.has(number)) {
      drawn.add(number);
      pages[number].draw();
    }
  }

  for (const button of document.querySelectorAll("[data-show]"))
    button.addEventListener("click", () => show(Number(button.dataset.show)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const number of drawn) pages[number].draw();
  });
  show(0);
})();
