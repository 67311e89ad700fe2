"use strict";
// Learning curves: one panel per metric or task, or one of them large.
const Curves = (() => {
  const { config, safe, short, shown, axis, layout, logTicks, extent, smoothed, reachOf, empty, legend, fill, faded } =
    Charts;
  const SHOWN_AT_FIRST = 8;
  const RATIO = 8;

  // Twenty curves at once say little: the baselines and the best are shown first.
  function hiddenAtFirst(data) {
    const worth = (m) => (m.baseline || m.plain ? -Infinity : (m.delta?.[0] ?? m.rank ?? Infinity));
    const order = data.methods
      .map((method, key) => ({ ...method, key }))
      .sort((a, b) => (worth(a) < worth(b) ? -1 : worth(a) > worth(b) ? 1 : 0));
    return new Set(order.slice(SHOWN_AT_FIRST).map((m) => m.key));
  }

  function itemsOf(data, kind) {
    if (kind === "training") return data.tasks.map((name) => ({ title: name, direction: "training loss" }));
    return data.metrics.map((metric) => ({
      title: short(metric.label, 40) + (metric.unit ? ` (${metric.unit})` : ""),
      direction: metric.higher ? "higher is better" : "lower is better",
    }));
  }

  class Panels {
    constructor(article, data) {
      this.article = article;
      this.data = data;
      this.hidden = hiddenAtFirst(data);
      this.list = [];
      const draw = () => this.draw();
      const reset = () => this.find("log").removeAttribute("data-set");
      this.refill();
      this.find("kind").addEventListener("change", () => {
        this.refill();
        reset();
        draw();
      });
      this.find("panels").addEventListener("change", () => {
        reset();
        draw();
      });
      this.find("log").addEventListener("change", () => {
        this.find("log").setAttribute("data-set", "");
        draw();
      });
      this.find("smooth").addEventListener("input", draw);
      this.find("seeds").addEventListener("change", draw);
      this.find("svg").addEventListener("click", () => this.save());
    }

    find(name) {
      const selectors = {
        kind: '[data-choice="kind"]',
        panels: '[data-choice="curves"]',
        log: '[data-log="curves"]',
        smooth: '[data-smooth="curves"]',
        reach: '[data-reach="curves"]',
        seeds: "[data-seeds]",
        svg: '[data-svg="curves"]',
        container: '[data-panels="curves"]',
        legend: '[data-legend="curves"]',
      };
      return this.article.querySelector(selectors[name]);
    }

    refill() {
      const items = itemsOf(this.data, this.find("kind").value);
      const all = items.length > 1 ? [["all", "all, side by side"]] : [];
      fill(this.find("panels"), [...all, ...items.map(({ title }, i) => [String(i), title])]);
    }

    // Elements are recreated only where other panels are shown, so that a redraw keeps zoom and focus.
    arrange() {
      const kind = this.find("kind").value;
      const choice = this.find("panels").value;
      const key = kind + " " + choice;
      if (this.arranged === key) return;
      this.arranged = key;
      const container = this.find("container");
      // Plotly may still be at work on margins.
      for (const { element, ready } of this.list) Promise.resolve(ready).then(() => Plotly.purge(element));
      container.replaceChildren();
      container.classList.toggle("single", choice !== "all");
      container.classList.toggle("small", choice === "all");
      this.list = itemsOf(this.data, kind)
        .map((item, index) => ({ ...item, index }))
        .filter(({ index }) => choice === "all" || index === Number(choice))
        .map((item) => {
          const panel = document.createElement("div");
          const title = document.createElement("h3");
          const direction = document.createElement("span");
          direction.textContent = item.direction;
          title.append(document.createTextNode(item.title + " "), direction);
          const element = document.createElement("div");
          element.className = "chart";
          element.dataset.chart = `curves-${item.index}`;
          element.setAttribute("role", "img");
          element.setAttribute("aria-label", `Learning curves of ${item.title} by method`);
          panel.append(title, element);
          container.append(panel);
          return { ...item, element };
        });
    }

    draw() {
      const kind = this.find("kind").value;
      const curves = this.data[kind];
      const keys = Object.keys(curves).map(Number);
      this.arrange();
      if (!keys.length) {
        this.find("container").classList.remove("small");
        this.list.slice(1).forEach(({ element }) => element.parentElement.remove());
        this.list.length = 1;
        empty(this.list[0].element, "The runs hold no epochs.");
        this.list[0].element.previousElementSibling.hidden = true;
        return;
      }
      const visible = keys.filter((key) => !this.hidden.has(key));
      const extents = this.list.map(({ index }) => extent(visible.map((key) => curves[key].mean[index])));
      const log = this.logarithmic(extents);
      this.list.forEach((panel, i) => {
        panel.ready = this.panel(panel, curves, visible, log && extents[i][0] > 0, extents[i]);
      });
      const points = Math.max(0, ...visible.map((key) => curves[key].epoch.length));
      const last = Math.max(0, ...visible.map((key) => curves[key].epoch.at(-1)));
      const reach = reachOf(this.find("smooth"), points);
      const epochs = Math.round((2 * reach + 1) * (points > 1 ? (last - 1) / (points - 1) : 1));
      this.find("reach").textContent = reach ? `over ${epochs} epochs` : "off";
      const names = keys.map((key) => ({ key, name: this.data.methods[key].name }));
      legend(this.find("legend"), names, this.look, this.hidden, () => this.draw());
    }

    // Whether to use logarithmic axes: as the reader set it, else where most panels span much.
    logarithmic(extents) {
      const box = this.find("log");
      const positive = extents.filter(([low]) => low > 0);
      const wide = positive.filter(([low, high]) => high / low > RATIO);
      if (!box.hasAttribute("data-set")) box.checked = wide.length > 0 && 2 * wide.length >= extents.length;
      box.disabled = !positive.length;
      if (!positive.length) box.checked = false;
      box.parentElement.title = positive.length ? "" : "Some values are zero or negative.";
      return box.checked;
    }

    panel({ index, element, direction }, curves, visible, log, [low, high]) {
      const single = this.list.length === 1;
      const separate = this.find("seeds").checked;
      const bands = [];
      const lines = [];
      for (const key of visible) {
        const curve = curves[key];
        if (separate && curve.seeds.length)
          for (const [seed, columns] of curve.seeds)
            lines.push(this.line(key, curve.seedEpoch, columns[index], null, `seed ${seed}, `, 1));
        else {
          const error = curve.stderr && curve.stderr[index];
          if (error) bands.push(...this.band(key, curve, index, log));
          lines.push(this.line(key, curve.epoch, curve.mean[index], error, "", 2));
        }
      }
      const last = Math.max(1, ...visible.map((key) => curves[key].epoch.at(-1)));
      const known = Number.isFinite(low);
      const nticks = element.clientWidth < 220 ? 4 : 6;
      return Plotly.react(
        element,
        [...bands, ...lines],
        layout({
          margin: single ? undefined : { l: 10, r: 8, t: 6, b: 20 },
          xaxis: axis(single ? "Epoch" : "", { zeroline: false, nticks: single ? 12 : nticks, ...(last <= 6 ? { dtick: 1 } : {}) }),
          yaxis: axis(single ? direction : "", {
            zeroline: false,
            nticks: single ? 8 : nticks,
            ...(log && known ? logTicks(low, high, element.clientHeight - 30) : { type: "linear" }),
          }),
        }),
        single ? config : { ...config, displayModeBar: false },
      );
    }

    line(key, epoch, values, error, what, width) {
      const style = this.look[key];
      const name = safe(this.data.methods[key].name);
      const drawn = smoothed(values, reachOf(this.find("smooth"), values.length));
      return {
        x: epoch,
        y: drawn,
        mode: epoch.length > 1 ? "lines" : "markers",
        line: { ...style, width },
        marker: { color: style.color },
        customdata: drawn.map(
          (value, i) =>
            `<b>${name}</b><br>${what}epoch ${epoch[i]}: ${shown(value)}` +
            (error && error[i] !== null ? ` ± ${shown(error[i])}` : ""),
        ),
        hovertemplate: "%{customdata}<extra></extra>",
      };
    }

    band(key, curve, index, log) {
      const reach = reachOf(this.find("smooth"), curve.epoch.length);
      const mean = smoothed(curve.mean[index], reach);
      const error = smoothed(curve.stderr[index], reach);
      const edge = (sign) =>
        mean.map((value, i) => {
          if (value === null) return null;
          const moved = value + sign * (error[i] ?? 0);
          return log && moved <= 0 ? value / 100 : moved;
        });
      const band = { x: curve.epoch, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
      return [
        { ...band, y: edge(-1) },
        { ...band, y: edge(1), fill: "tonexty", fillcolor: faded(this.look[key].color) },
      ];
    }

    async svg() {
      const kind = this.find("kind").value;
      const keys = Object.keys(this.data[kind]).map(Number).filter((key) => !this.hidden.has(key));
      const entries = keys.map((key) => ({ name: this.data.methods[key].name, style: this.look[key] }));
      return Export.svg(this.find("container"), this.list, entries);
    }

    async save() {
      Export.save(`${this.data.name}-${this.find("kind").value}.svg`, "image/svg+xml", await this.svg());
    }
  }

  return { Panels };
})();
