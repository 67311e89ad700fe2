"use strict";
(() => {
  const { config, safe, shown, color, styles, axis, layout, logTicks, extent, smoothed, reachOf, empty, legend, fill } =
    Charts;
  const KINDS = { weights: "Weight", eigenvalues: "Largest eigenvalue" };

  const problems = JSON.parse(document.getElementById("data").textContent);

  function methodStyles(methods) {
    const rest = styles(methods.length);
    return methods.map((method) => {
      if (method.baseline) return { color: color("--baseline"), dash: "dot", width: 2.5 };
      if (method.plain) return { color: color("--ink"), dash: "solid", width: 2 };
      return rest.shift();
    });
  }

  class Page {
    constructor(article, data) {
      this.article = article;
      this.data = data;
      this.hidden = { weights: new Set(), eigenvalues: new Set() };
      this.pin = ResultTable.attach(article, data);
      this.curves = new Curves.Panels(article, data);
      for (const kind of Object.keys(KINDS)) {
        const methods = Object.keys(data[kind]);
        fill(this.choice(kind), methods.map((m) => [m, data.methods[m].name]));
        this.choice(kind).value = this.firstMethod(methods);
        this.choice(kind).addEventListener("change", () => {
          this.log(kind).removeAttribute("data-set");
          this.series(kind);
        });
        this.log(kind).addEventListener("change", () => {
          this.log(kind).setAttribute("data-set", "");
          this.series(kind);
        });
        this.smooth(kind).addEventListener("input", () => this.series(kind));
      }
      for (const kind of ["delta", "time", ...Object.keys(KINDS)])
        article.querySelector(`[data-svg="${kind}"]`).addEventListener("click", () => this.save(kind));
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

    // The first choice is the best method that does more than weigh all tasks the same.
    firstMethod(keys) {
      const worth = (key) => {
        const method = this.data.methods[key];
        return method.plain ? Infinity : (method.delta?.[0] ?? method.rank ?? 0);
      };
      return [...keys].sort((a, b) => worth(a) - worth(b))[0];
    }

    draw() {
      this.look = this.curves.look = methodStyles(this.data.methods);
      this.pin();
      Bars.delta(this.chart("delta"), this.data, this.look);
      Bars.time(this.chart("time"), this.data, this.look);
      this.curves.draw();
      for (const kind of Object.keys(KINDS)) this.series(kind);
    }

    // Whether to use a logarithmic axis: as the reader set it, else wherever it is possible.
    logarithmic(kind, low) {
      const box = this.log(kind);
      const possible = low > 0 && Number.isFinite(low);
      if (!box.hasAttribute("data-set")) box.checked = possible;
      if (!possible) box.checked = false;
      box.disabled = !possible;
      box.parentElement.title = possible ? "" : "Some values are zero or negative.";
      return box.checked;
    }

    series(kind) {
      const element = this.chart(kind);
      const key = this.choice(kind).value;
      if (key === "") {
        this.choice(kind).closest(".controls").hidden = true;
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
      const reach = reachOf(this.smooth(kind), series.step.length);
      const values = series.values.map((task) => smoothed(task, reach));
      const look = styles(this.data.tasks.length);
      const visible = this.data.tasks.map((_, task) => task).filter((task) => !hidden.has(task));
      const [low, high] = extent(visible.map((task) => values[task]));
      const log = this.logarithmic(kind, low);
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
          yaxis: axis(KINDS[kind], {
            zeroline: false,
            ...(log ? logTicks(low, high, element.clientHeight - 50) : { type: "linear", rangemode: "tozero" }),
          }),
        }),
        config,
      );
      const steps = Math.round(series.window * (2 * reach + 1));
      this.article.querySelector(`[data-window="${kind}"]`).textContent =
        steps > 1 ? ` and over windows of ${steps} steps` : "";
      this.article.querySelector(`[data-reach="${kind}"]`).textContent = reach ? `over ${steps} steps` : "off";
      const names = this.data.tasks.map((name, task) => ({ key: task, name }));
      legend(this.article.querySelector(`[data-legend="${kind}"]`), names, look, hidden, () =>
        this.series(kind),
      );
    }

    async save(kind) {
      const element = this.chart(kind);
      const look = styles(this.data.tasks.length);
      const entries =
        kind in KINDS
          ? this.data.tasks.map((name, i) => ({ name, style: look[i] })).filter((_, i) => !this.hidden[kind].has(i))
          : [];
      const text = await Export.svg(element, [{ element }], entries);
      Export.save(`${this.data.name}-${kind}.svg`, "image/svg+xml", text);
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
  addEventListener("resize", () => {
    for (const number of drawn) pages[number].pin();
  });
  show(0);
})();
