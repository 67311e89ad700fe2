(() => {
  const { config, safe, short, shown, color, styles, axis, layout, logTicks, extent, smoothed, empty, legend } =
    Charts;
  const [data] = JSON.parse(document.getElementById("data").textContent);
  const chart = (name) => document.querySelector(`[data-chart="${name}"]`);
  const choice = (name) => document.querySelector(`[data-choice="${name}"]`);
  const control = (name) => document.querySelector(`[data-control="${name}"]`);
  const look = styles(data.tasks.length);
  const hidden = new Set();
  const method = () => data.methods[Number(choice("method").value)];
  const mode = (list) => (list.length > 1 ? "lines" : "markers");
  // A twentieth of the training to either side: single steps are noisy.
  const eased = (list) => smoothed(list, Math.round(list.length / 20));

  // One line per task.
  function lines(element, step, values, title, { log, range, title_x = "Step" }) {
    const visible = data.tasks.map((_, task) => task).filter((task) => !hidden.has(task));
    const positive = (list) => list.map((value) => (log && value !== null && value <= 0 ? null : value));
    const drawn = visible.map((task) => positive(values[task]));
    if (!values.some((list) => list.some((value) => value !== null))) {
      empty(element, "Nothing is known of this: no kernel was to be had.");
      return;
    }
    const [low, high] = range || extent(drawn);
    const known = Number.isFinite(low) && (!log || low > 0);
    Plotly.react(
      element,
      visible.map((task, i) => ({
        x: step,
        y: drawn[i],
        mode: mode(step),
        connectgaps: true,
        line: { ...look[task], width: 1.6 },
        marker: { color: look[task].color, size: 8 },
        customdata: drawn[i].map(
          (value, at) => `<b>${safe(data.tasks[task])}</b><br>step ${step[at]}: ${shown(value)}`,
        ),
        hovertemplate: "%{customdata}<extra></extra>",
      })),
      layout({
        xaxis: axis(title_x, { zeroline: false }),
        yaxis: axis(title, {
          zeroline: false,
          ...(log && known ? logTicks(low, high, element.clientHeight - 50) : { type: "linear", rangemode: "tozero" }),
          ...(range && known && log ? { range: [Math.log10(low) - 0.05, Math.log10(high) + 0.05] } : {}),
          ...(range && !log ? { range: [0, 1.04 * high] } : {}),
        }),
      }),
      config,
    );
  }

  // One panel per method, with one range for all.
  function panels(name, kind, title, log, smooth) {
    const all = data.methods.map((each) => each.tasks[kind].map((list) => (smooth ? eased(list) : list)));
    const seen = all
      .flatMap((values) => values.filter((_, task) => !hidden.has(task)))
      .map((list) => list.filter((value) => value !== null && (!log || value > 0)));
    const range = extent(seen);
    data.methods.forEach((each, i) =>
      lines(chart(`${name}-${i}`), each.step, all[i], title, {
        log,
        range: Number.isFinite(range[0]) ? range : undefined,
      }),
    );
  }

  function eigenvalues() {
    const kind = control("weighted").checked ? "weighted" : "eigenvalues";
    const title = kind === "weighted" ? "Weight² × eigenvalue" : "Largest eigenvalue";
    panels("eigenvalues", kind, title, control("log").checked, control("smooth").checked);
  }

  function residuals() {
    if (!choice("residuals")) return;
    const kind = choice("residuals").value;
    const title = kind === "residual_traces" ? "Trace per point" : "Largest eigenvalue per point";
    panels("residuals", kind, title, true, true);
  }

  function ranks() {
    const { step, tasks } = method();
    lines(chart("rank"), step, tasks[choice("rank").value].map(eased), "Effective rank", { log: false });
  }

  function convergence() {
    const { step, tasks } = method();
    lines(chart("convergence"), step, tasks.convergence.map(eased), "Predicted steps", { log: true });
  }

  function pairs() {
    const element = chart("pairs");
    const kind = choice("pairs").value;
    const { step, pairs: all } = method();
    const values = all[kind].map(eased);
    if (!values.some((list) => list.some((value) => value !== null))) {
      empty(element, "Nothing is known of this: there are no blocks between tasks.");
      return;
    }
    const names = ["as it is", "under the weights"];
    const log = kind !== "rank";
    const [low, high] = extent(values);
    const title = { imbalance: "Imbalance", condition: "Condition number", rank: "Rank" }[kind];
    Plotly.react(
      element,
      values.map((list, side) => ({
        x: step,
        y: list,
        mode: mode(step),
        connectgaps: true,
        line: { color: side ? color("--bad") : color("--accent"), dash: side ? "dash" : "solid", width: 2 },
        marker: { color: side ? color("--bad") : color("--accent"), size: 8 },
        customdata: list.map((value, at) => `${names[side]}<br>step ${step[at]}: ${shown(value)}`),
        hovertemplate: "%{customdata}<extra></extra>",
      })),
      layout({
        xaxis: axis("Step", { zeroline: false }),
        yaxis: axis(title, {
          zeroline: false,
          ...(log ? logTicks(low, high, element.clientHeight - 50) : { type: "linear", rangemode: "tozero" }),
        }),
      }),
      config,
    );
  }

  function affinity() {
    const element = chart("affinity");
    const { affinity: windows, order } = method();
    const slider = control("window");
    slider.max = windows.length - 1;
    slider.disabled = windows.length < 2;
    const number = Math.min(Number(slider.value), windows.length - 1);
    const window_ = windows[number];
    const span = window_.first === window_.last ? `step ${window_.first}` : `steps ${window_.first} to ${window_.last}`;
    document.querySelector('[data-output="window"]').textContent =
      number === 0 && windows.length > 1 ? `whole training, ${span}` : span;
    const z = order.map((i) => order.map((j) => window_.values[i][j]));
    // One scale for all parts of the training, so that they can be compared.
    const off = windows.flatMap(({ values }) =>
      values.flatMap((row, i) => row.filter((value, j) => i !== j && value !== null)),
    );
    if (!off.length) {
      empty(element, "Nothing is known of this: there are no blocks between tasks.");
      return;
    }
    const most = Math.max(0.01, ...off.map(Math.abs));
    const names = order.map((task) => safe(short(data.tasks[task], 18)));
    const places = names.map((_, i) => i);
    const ticks = {
      tickmode: "array", tickvals: places, ticktext: names, showgrid: false, zeroline: false, fixedrange: true, ticks: "",
    };
    Plotly.react(
      element,
      [
        {
          type: "heatmap",
          x: places,
          y: places,
          z: z.map((row, i) => row.map((value, j) => (i === j ? null : value))),
          zmin: -most,
          zmax: most,
          colorscale: [[0, "#d9730d"], [0.5, color("--ground")], [1, "#0b7fab"]],
          xgap: 1,
          ygap: 1,
          customdata: z.map((row, i) =>
            row.map((value, j) => `${names[i]} and ${names[j]}<br>${shown(value)}`),
          ),
          hovertemplate: "%{customdata}<extra></extra>",
          colorbar: { thickness: 10, outlinewidth: 0, tickfont: { size: 11 } },
        },
      ],
      layout({
        xaxis: axis("", { ...ticks, tickangle: -45 }),
        yaxis: axis("", { ...ticks, autorange: "reversed" }),
      }),
      { ...config, modeBarButtons: [["toImage"]] },
    );
  }

  const below = () => {
    ranks();
    pairs();
    convergence();
    affinity();
  };

  function draw() {
    legend(
      document.querySelector('[data-legend="tasks"]'),
      data.tasks.map((name, key) => ({ key, name })),
      look,
      hidden,
      draw,
    );
    eigenvalues();
    residuals();
    below();
  }

  for (const name of ["weighted", "log", "smooth"]) control(name).addEventListener("change", eigenvalues);
  choice("residuals")?.addEventListener("change", residuals);
  choice("method").addEventListener("change", below);
  choice("rank").addEventListener("change", ranks);
  choice("pairs").addEventListener("change", pairs);
  control("window").addEventListener("input", affinity);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
