// Returns what is wrong with the layout of a page: nothing where all is right.
const out = {};
const shown = (element) => element.getClientRects().length > 0;
const all = (selector, root = document) => [...root.querySelectorAll(selector)].filter(shown);
const box = (element) => element.getBoundingClientRect();
const words = (element) => element.textContent.trim().slice(0, 30);
const overlap = (a, b) =>
  Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5 &&
  Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1.5;
const pairs = (elements, wrong) => {
  elements.forEach((a, i) =>
    elements.slice(i + 1).forEach((b) => {
      if (overlap(box(a), box(b))) wrong.push(`${words(a)} / ${words(b)}`);
    }));
};

out.tooWide = Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth);

// Texts of a chart: none over another, none cut off.
out.texts = [];
out.cut = [];
for (const chart of all(".js-plotly-plot")) {
  const texts = [...chart.querySelectorAll(".xtick text, .ytick text, .xtitle, .ytitle, .bartext")]
    .filter((text) => text.textContent.trim() && box(text).width)
    // The box around a text that stands aslant overlaps others where the text does not.
    .filter((text) => !/rotate\(-?45/.test(text.getAttribute("transform") || ""));
  const wrong = [];
  pairs(texts, wrong);
  out.texts.push(...wrong.map((what) => `${chart.dataset.chart}: ${what}`));
  const room = box(chart);
  for (const text of texts) {
    const inner = box(text);
    if (inner.left < room.left - 1 || inner.right > room.right + 1 ||
        inner.top < room.top - 1 || inner.bottom > room.bottom + 1)
      out.cut.push(`${chart.dataset.chart}: ${words(text)}`);
  }
}

// Parts of the page that stand beside or below each other.
out.blocks = [];
for (const group of all(".controls, .legend, .facts, .panels, figure, section, header, .panels > div"))
  pairs([...group.children].filter(shown), out.blocks);

// Nothing but scrolled tables reaches beyond the page.
out.beyond = all("main *")
  .filter((element) => !element.closest(".scroll, svg") && box(element).right > innerWidth + 1)
  .map(words);

// A column that has collapsed is narrow, and its rows are as high as a page.
out.narrow = all("th, td").filter((cell) => cell.textContent.trim() && box(cell).width < 34).map(words);
out.high = all("tr").filter((row) => box(row).height > 480).map(words);

// Blank stretches between what stands below each other.
out.blank = [];
const flow = all("h1, h2, h3, p, dl, table, img, figcaption, .chart, .controls, .legend, li, aside, footer")
  .map(box).sort((a, b) => a.top - b.top);
let bottom = 0;
for (const each of flow) {
  if (each.top - bottom > 90) out.blank.push(Math.round(each.top - bottom));
  bottom = Math.max(bottom, each.bottom);
}
if (document.documentElement.scrollHeight - bottom > 120) out.blank.push("end");

// Pinned columns stay where they are while the table is scrolled, side by side.
out.pinned = [];
out.inSight = [];
for (const table of all("table[data-results]")) {
  table.parentElement.scrollLeft = 1e6;
  const heads = [...table.tHead.rows[0].cells].filter((cell) => cell.matches(".pin:not(.free)"));
  pairs(heads, out.pinned);
  out.inSight.push(...heads.filter((cell) => box(cell).left >= 0 && box(cell).right <= innerWidth)
    .map((cell) => cell.querySelector("button").firstChild.textContent.trim()));
  table.parentElement.scrollLeft = 0;
}

// Contrast of texts with the ground they stand on, as WCAG has it.
const channels = (color) => {
  const parts = (color.match(/[\d.]+/g) || []).map(Number);
  if (color.startsWith("color(srgb")) return parts.slice(0, 3).concat(parts[3] ?? 1);
  return [...parts.slice(0, 3).map((value) => value / 255), parts[3] ?? 1];
};
const light = (color) => {
  const [r, g, b] = channels(color).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (channels(color)[3] > 0.99) return color;
  }
  return "rgb(255, 255, 255)";
};
out.faint = [];
for (const element of all("h1, h2, h3, p, dt, dd, th, td, li, figcaption, button, label, output, svg text")) {
  if (!element.textContent.trim() || element.matches('[aria-pressed="false"], :disabled')) continue;
  const style = getComputedStyle(element);
  const [a, b] = [light(element.closest("svg") ? style.fill : style.color), light(ground(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) out.faint.push(`${ratio.toFixed(2)} ${words(element)}`);
}
return out;
