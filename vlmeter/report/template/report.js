/* What the page can do beyond being read. Each part finds its elements by itself and is of no use to the others. */
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/* ---- packed data: base64 of gzip, unpacked when first wanted ---- */

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

let tablePromise;
const theTable = () => (tablePromise ??= unpack("table-data").then(JSON.parse));

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
const csv = (rows) => rows.map((row) => row.map((value) => quoted(String(value ?? ""))).join(",")).join("\n") + "\n";

/* ---- tables: sort by a heading, filter by words, download what is shown ---- */

function makeGrid(grid) {
  const body = $("tbody", grid);
  const rows = [...body.rows];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
  };
  const compare = (a, b) => {
    if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b), "en", { numeric: true });
    return Number.isNaN(a) - Number.isNaN(b) || a - b;
  };
  $$("th", grid).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      $$("th", grid).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const missing = (row) => Number.isNaN(value(row, column)) || value(row, column) === "";
      rows.sort((a, b) => missing(a) - missing(b) || (down ? -1 : 1) * compare(value(a, column), value(b, column)));
      body.append(...rows);
    });
  });
  const tools = $(".tools", grid);
  if (!tools) return;
  tools.hidden = false;
  $("[data-filter]", tools).addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    $("[data-shown]", tools).textContent = `${shown} of ${rows.length} rows`;
  });
  $("[data-csv]", tools).addEventListener("click", () => {
    const shown = [$("thead tr", grid), ...rows.filter((row) => !row.hidden)];
    const text = csv(shown.map((row) => [...row.cells].map((cell) => cell.textContent.trim())));
    save(`${grid.dataset.grid}.csv`, "text/csv", text);
  });
}

/* ---- figures: the SVG as it was drawn, without the variables that make it follow light and dark ---- */

function makeDownload(button) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const source = decodeURIComponent($("img", button.closest("figure")).src.replace(/^[^,]*,/, ""));
    const svg = source.replace(/var\(--c\w+,\s*(#\w+)\)/g, "$1").replace(/<style>@media.*?<\/style>/, "");
    save(button.dataset.svg, "image/svg+xml", svg);
  });
}

/* ---- claims: show one verdict ---- */

function makeVerdicts(tools) {
  tools.hidden = false;
  tools.addEventListener("click", (event) => {
    const chosen = event.target.closest("button");
    if (!chosen) return;
    $$("button", tools).forEach((button) => button.setAttribute("aria-pressed", button === chosen));
    $$("li[data-verdict]", tools.parentElement).forEach((claim) => {
      claim.hidden = chosen.dataset.verdict !== "" && claim.dataset.verdict !== chosen.dataset.verdict;
    });
  });
}

/* ---- the chart ---- */

const COUNTS = {
  vision_tokens: "vision tokens",
  prompt_tokens: "prompt tokens",
  crops: "crops",
  output_tokens: "output tokens",
};

async function makeChart() {
  const { columns, floors_ms: floors } = await theTable();
  const series = JSON.parse($("#series").textContent);
  const questions = Object.fromEntries(JSON.parse($("#questions").textContent));
  const form = $("#controls");
  const options = (name, entries) => {
    form.elements[name].replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  };
  const rowsOf = (experiment) => columns.cell_id.map((_, i) => i)
    .filter((i) => columns.experiment[i] === experiment && series[columns.kind[i]] && columns.median_ms[i] !== null);
  // experiments with cells of a kind that there are series for, in the order in which vlmeter knows them
  const order = [...new Set([...Object.keys(questions), ...columns.experiment])];
  const kindOf = (experiment) => columns.kind[rowsOf(experiment)[0]];
  const experiments = order.filter((name) => rowsOf(name).length);
  if (!experiments.length) {
    $("#chart").textContent = "Nothing was measured, so there is nothing to draw.";
    return;
  }
  options("experiment", experiments.map((name) => [name, questions[name] ?? name]));

  function choices() {
    const experiment = form.elements.experiment.value;
    const subjects = [...new Set(rowsOf(experiment).map((i) => columns.subject[i]))];
    options("subject", subjects.map((name) => [name, name]));
    const along = kindOf(experiment) === "generation" ? ["output_tokens", "vision_tokens", "prompt_tokens", "crops"]
      : ["vision_tokens", "prompt_tokens", "crops"];
    options("along", along.map((name) => [name, COUNTS[name]]));
    const measured = new Set(rowsOf(experiment).map((i) => [columns.arm[i], columns.phase[i], columns.clock[i]].join()));
    const boxes = series[kindOf(experiment)].flatMap(({ label, colour, glyph, shown, arm, phase, clock }, n) => {
      if (!measured.has([arm, phase, clock].join())) return []; // nothing would be drawn
      const box = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "checkbox", name: "phase", value: n, checked: shown });
      const mark = Object.assign(document.createElement("span"), { className: "mark", ariaHidden: true, textContent: glyph });
      mark.style.color = colour;
      box.append(input, mark, label);
      return [box];
    });
    $(".phases", form).replaceChildren($(".phases legend", form), ...boxes);
  }

  function traces() {
    const { experiment, subject, along } = form.elements;
    const style = getComputedStyle(document.documentElement);
    const rows = rowsOf(experiment.value).filter((i) => columns.subject[i] === subject.value);
    const chosen = $$("[name=phase]:checked", form).map((box) => series[kindOf(experiment.value)][box.value]);
    return chosen.flatMap(({ label, colour, symbol, arm, phase, clock }) => {
      const own = rows
        .filter((i) => columns.arm[i] === arm && columns.phase[i] === phase && columns.clock[i] === clock)
        .sort((a, b) => columns[along.value][a] - columns[along.value][b]);
      const number = (name) => own.map((i) => columns[name][i]);
      const span = (name, sign) => own.map((i) => {
        const end = columns[name][i];
        return end === null ? 0 : sign * (end - columns.median_ms[i]);
      });
      const measured = {
        name: label,
        x: number(along.value),
        y: number("median_ms"),
        error_y: { type: "data", symmetric: false, array: span("high_ms", 1), arrayminus: span("low_ms", -1), thickness: 1, width: 0 },
        mode: "markers",
        marker: { color: style.getPropertyValue(colour.slice(4, -1)).trim(), size: 8, symbol },
        text: own.map((i) => hover(columns, i)),
        hovertemplate: `<b>${label}</b><br>%{text}<extra></extra>`,
      };
      const floor = {
        name: `floor of ${label}`,
        x: measured.x,
        y: own.map((i) => floors[i]),
        mode: "markers",
        marker: { symbol: "line-ew", size: 14, line: { width: 2, color: measured.marker.color } },
        hovertemplate: `floor of <b>${label}</b><br>%{y:.4~g} ms<extra></extra>`,
      };
      return form.elements.floors.checked ? [measured, floor] : [measured];
    });
  }

  /* One count only: room about it, and a tick at it; there are no halves of tokens. */
  function reach() {
    const { experiment, subject, along } = form.elements;
    const rows = rowsOf(experiment.value).filter((i) => columns.subject[i] === subject.value);
    const counts = [...new Set(rows.map((i) => columns[along.value][i]).filter((count) => count !== null))];
    if (counts.length !== 1) return {};
    const ends = [0.9 * counts[0], 1.1 * counts[0]];
    return { range: form.elements.x.value === "log" ? ends.map(Math.log10) : ends, tickvals: counts };
  }

  function layout() {
    const style = getComputedStyle(document.body);
    const axis = { gridcolor: style.getPropertyValue("--line"), zeroline: false, automargin: true };
    return {
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      font: { color: style.color, family: style.fontFamily, size: 13 },
      margin: { l: 60, r: 12, t: 8, b: 48 },
      showlegend: false,
      hovermode: "closest",
      xaxis: { ...axis, ...reach(), type: form.elements.x.value, tickformat: ",", title: { text: COUNTS[form.elements.along.value] } },
      yaxis: {
        ...axis,
        type: form.elements.y.value,
        tickformat: ",",
        title: { text: "median and 95 % interval (ms)" },
        rangemode: "tozero",
      },
    };
  }

  $("#floors").hidden = floors.every((floor) => floor === null);
  choices();
  const script = document.createElement("script");
  script.textContent = await unpack("plotly-source");
  document.head.append(script);
  $("#chart").replaceChildren();
  const draw = () => Plotly.react("chart", traces(), layout(), { responsive: true, displaylogo: false, displayModeBar: false });
  form.addEventListener("change", (event) => {
    if (event.target.name === "experiment") choices();
    draw();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  form.hidden = false;
  await draw();
  $("#chart-svg").hidden = false;
  $("#chart-svg").addEventListener("click", async () => {
    const address = await Plotly.toImage("chart", { format: "svg", width: 900, height: 520 });
    save("chart.svg", "image/svg+xml", decodeURIComponent(address.replace(/^[^,]*,/, "")));
  });
}

function hover(columns, i) {
  const get = (name) => columns[name][i];
  const exact = (value) => Number(value.toPrecision(4)).toLocaleString("en");
  const lines = [`${exact(get("median_ms"))} ms`];
  lines[0] += get("low_ms") === null ? " (no interval)" : ` (${exact(get("low_ms"))} to ${exact(get("high_ms"))})`;
  lines.push(`${get("crops")} crops, ${get("vision_tokens")} vision tokens, ${get("prompt_tokens")} prompt tokens`);
  if (get("kind") === "generation") lines.push(`${get("output_tokens")} output tokens, image ${get("image_id")}`);
  else if (get("tiling_h") !== null) lines.push(`tiling ${get("tiling_h")} x ${get("tiling_w")}`);
  lines.push(`${get("samples")} samples, ${get("source")}${get("drifted") ? ", drifted" : ""}`);
  return lines.map((line) => line.replaceAll("<", "&lt;")).join("<br>");
}

/* ---- put together ---- */

$$(".grid").forEach(makeGrid);
$$("[data-svg]").forEach(makeDownload);
$$("[data-verdicts]").forEach(makeVerdicts);

$("#subject")?.addEventListener("change", (event) => {
  $$("[data-subject]").forEach((part) => {
    part.hidden = event.target.value !== "" && part.dataset.subject !== event.target.value;
  });
});

$("#table-csv").hidden = $("#table-json").hidden = false;
$("#table-csv").addEventListener("click", async () => {
  const { columns } = await theTable();
  const names = Object.keys(columns);
  save("table.csv", "text/csv", csv([names, ...columns[names[0]].map((_, i) => names.map((name) => columns[name][i]))]));
});
$("#table-json").addEventListener("click", async () => {
  const { columns } = await theTable();
  const names = Object.keys(columns);
  const rows = columns[names[0]].map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
  save("table.json", "application/json", JSON.stringify(rows, null, 1));
});

/* ---- what is wider than the page says so ---- */

function sayWidth(part) {
  const hint = part.previousElementSibling;
  const say = () => { hint.hidden = part.scrollWidth <= part.clientWidth + 1; };
  new ResizeObserver(say).observe(part);
  say();
}
$$(".hint + .scroll, .hint + .frame").forEach(sayWidth);

/* ---- on a phone, sections but the answers are folded, and their headings open them ---- */

function fold(section, shut) {
  section.classList.toggle("folded", shut);
  $(".fold", section)?.setAttribute("aria-expanded", !shut);
  if (!shut) dispatchEvent(new Event("resize")); // the chart has had no width until now
}

function makeFolds() {
  $$("main > section:not(.answers)").forEach((section) => {
    const heading = $("h2", section);
    const button = Object.assign(document.createElement("button"), { type: "button", className: "fold" });
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => fold(section, !section.classList.contains("folded")));
    fold(section, true);
  });
}
if (matchMedia("(max-width: 40rem)").matches) makeFolds();

/* A link to something folded away, and printing, unfold it. */
const unfold = () => {
  for (let part = document.getElementById(location.hash.slice(1)); part; part = part.parentElement) {
    if (part.tagName === "DETAILS") part.open = true;
    if (part.classList.contains("folded")) fold(part, false);
  }
};
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => {
  $$("details").forEach((part) => (part.open = true));
  $$(".folded").forEach((part) => fold(part, false));
});

/* The chart's library is large: it is unpacked when the reader comes near. */
new IntersectionObserver((seen, observer) => {
  if (!seen.some((entry) => entry.isIntersecting)) return;
  observer.disconnect();
  makeChart().catch((error) => {
    $("#chart").textContent = `The chart cannot be drawn in this browser (${error.message}); the tables hold the same numbers.`;
  });
}, { rootMargin: "600px" }).observe($("#explore"));
