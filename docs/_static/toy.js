"use strict";
// Two tasks on a trunk of two numbers, under four ways to weigh them. Plain arithmetic in doubles.
const Toy = (() => {
  // Each task is a least squares problem: rows of what its head reads, and targets.
  const TASKS = [
    { rows: [[1.0, 0.2], [0.8, 0.1], [0.9, -0.1]], targets: [1.1, 0.85, 0.85] },
    { rows: [[-0.2, 1.0], [0.1, 0.9], [0.0, 1.2]], targets: [0.75, 0.95, 1.15] },
  ];
  const START = [-1.0, -0.6];
  const METHODS = ["ls", "ntkmtl", "si", "mgda"];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1];

  function look(task, scale, theta) {
    let loss = 0;
    const gradient = [0, 0];
    task.rows.forEach((row, s) => {
      const off = dot(row, theta) - task.targets[s];
      loss += (scale * off * off) / task.rows.length;
      for (const j of [0, 1]) gradient[j] += (2 * scale * off * row[j]) / task.rows.length;
    });
    return { loss, gradient };
  }

  function weights(method, looks, exponent) {
    const [a, b] = looks.map((one) => one.gradient);
    const eigenvalues = [dot(a, a), dot(b, b)];
    if (method === "ls") return [1, 1];
    if (method === "si") return looks.map((one) => 1 / one.loss);
    if (method === "ntkmtl") {
      const mean = (eigenvalues[0] + eigenvalues[1]) / 2;
      return eigenvalues.map((value) => (mean / value) ** exponent);
    }
    const both = eigenvalues[0] + eigenvalues[1] - 2 * dot(a, b); // the shortest mixture
    const first = Math.min(1, Math.max(0, (eigenvalues[1] - dot(a, b)) / both));
    return [first, 1 - first];
  }

  function run(method, { scale = 100, exponent = 0.5, steps = 80 } = {}) {
    let theta = [...START];
    const history = [];
    for (let step = 0; step < steps; step++) {
      const looks = TASKS.map((task, i) => look(task, i ? scale : 1, theta));
      const w = weights(method, looks, exponent);
      history.push({
        theta,
        losses: looks.map((one) => one.loss),
        eigenvalues: looks.map((one) => dot(one.gradient, one.gradient)),
        weights: w,
      });
      const d = [0, 1].map((j) => w[0] * looks[0].gradient[j] + w[1] * looks[1].gradient[j]);
      const length = (0.12 * 0.96 ** step) / Math.sqrt(dot(d, d));
      theta = [theta[0] - length * d[0], theta[1] - length * d[1]];
    }
    return history;
  }
  return { TASKS, START, METHODS, look, run };
})();

(() => {
  const root = document.getElementById("toy");
  if (!root) return;
  const COLORS = { ls: "#888888", ntkmtl: "#d9480f", si: "#1c7ed6", mgda: "#2b8a3e" };
  const NAMES = { ls: "plain sum", ntkmtl: "NTKMTL", si: "SI", mgda: "MGDA" };
  const make = (tag, attributes, parent) => {
    const element = Object.assign(document.createElement(tag), attributes);
    parent.append(element);
    return element;
  };
  const controls = make("div", { className: "toy-controls" }, root);
  const slider = (id, text, min, max, step, value) => {
    const label = make("label", { textContent: text + " " }, controls);
    const input = make("input", { type: "range", id, min, max, step, value }, label);
    const output = make("output", {}, label);
    return { input, output };
  };
  const scale = slider("toy-scale", "scale of the second loss", -3, 3, 0.1, 2);
  const exponent = slider("toy-exponent", "exponent of NTKMTL", 0, 1, 0.05, 0.5);
  const method = make("select", { id: "toy-method", ariaLabel: "method shown below" },
    make("label", { textContent: "eigenvalues and weights of " }, controls));
  for (const name of Toy.METHODS)
    make("option", { value: name, textContent: NAMES[name] }, method);
  method.value = "ntkmtl";
  const legend = make("div", { className: "toy-legend" }, root);
  for (const name of Toy.METHODS)
    make("span", { textContent: NAMES[name] }, legend).style.color = COLORS[name];
  const charts = make("div", { className: "toy-charts" }, root);
  const canvas = (id, title) => {
    const figure = make("figure", {}, charts);
    make("figcaption", { textContent: title }, figure);
    return make("canvas", { id, width: 560, height: 420 }, figure);
  };
  const plane = canvas("toy-plane", "the trunk's two numbers, from the same start");
  const losses = canvas("toy-losses", "losses, without their scale (solid: first, dashed: second)");
  const values = canvas("toy-values", "largest eigenvalues (solid: first task, dashed: second)");
  const weighs = canvas("toy-weights", "weights (solid: first task, dashed: second)");

  const line = (context, points, color, dashed) => {
    context.beginPath();
    points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.setLineDash(dashed ? [8, 6] : []);
    context.strokeStyle = color;
    context.lineWidth = 2.5;
    context.stroke();
    context.setLineDash([]);
  };
  const clear = (element) => {
    const context = element.getContext("2d");
    context.clearRect(0, 0, element.width, element.height);
    context.fillStyle = getComputedStyle(root).color;
    context.font = "26px sans-serif";  // a canvas is shown at half its size or less
    return context;
  };
  const curves = (element, series) => {
    const context = clear(element);
    const all = series.flatMap((s) => s.values).filter((v) => v > 0).map(Math.log10);
    const low = Math.floor(Math.max(Math.min(...all), -12)), high = Math.ceil(Math.max(...all)) || 1;
    const place = (v, i, n) => [
      80 + (i / (n - 1)) * 465,
      390 - ((Math.max(Math.log10(v || 1e-300), low) - low) / Math.max(high - low, 1)) * 370,
    ];
    context.fillText(`1e${high}`, 4, 26);
    context.fillText(`1e${low}`, 4, 396);
    context.fillText("step", 290, 416);
    for (const s of series)
      line(context, s.values.map((v, i) => place(v, i, s.values.length)), s.color, s.dashed);
  };
  const to = ([x, y]) => [280 + x * 190 - 20, 230 - y * 150];

  function draw() {
    const settings = { scale: 10 ** scale.input.value, exponent: Number(exponent.input.value) };
    scale.output.textContent = String(Number(settings.scale.toPrecision(2)));
    exponent.output.textContent = settings.exponent.toFixed(2);
    const runs = Object.fromEntries(Toy.METHODS.map((name) => [name, Toy.run(name, settings)]));
    const context = clear(plane);
    for (let x = 0; x < 560; x += 8)
      for (let y = 0; y < 420; y += 8) {
        const theta = [(x + 4 - 260) / 190, (230 - y - 4) / 150];
        const [first, second] = Toy.TASKS.map((task) => Toy.look(task, 1, theta).loss);
        context.fillStyle = `rgba(217, 72, 15, ${0.35 / (1 + 40 * first)})`;
        context.fillRect(x, y, 8, 8);
        context.fillStyle = `rgba(28, 126, 214, ${0.35 / (1 + 40 * second)})`;
        context.fillRect(x, y, 8, 8);
      }
    for (const name of Toy.METHODS)
      line(context, runs[name].map((row) => to(row.theta)), COLORS[name], false);
    curves(losses, Toy.METHODS.flatMap((name) => [0, 1].map((i) => ({
      values: runs[name].map((row) => row.losses[i] / (i ? settings.scale : 1)),
      color: COLORS[name], dashed: i === 1 }))));
    for (const [element, key] of [[values, "eigenvalues"], [weighs, "weights"]])
      curves(element, [0, 1].map((i) => ({
        values: runs[method.value].map((row) => row[key][i]),
        color: COLORS[method.value], dashed: i === 1 })));
    root.dataset.drawn = JSON.stringify(settings);
  }
  for (const input of [scale.input, exponent.input, method]) input.addEventListener("input", draw);
  draw();
})();
