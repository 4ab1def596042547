"use strict";
// Blocks of data are JSON, gzipped and in base64; each is unpacked when first needed.
const blocks = new Map();
function block(id) {
  if (!blocks.has(id)) blocks.set(id, unpack(document.getElementById(id).textContent));
  return blocks.get(id);
}
async function unpack(text) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this page needs a browser of 2023 or later");
  }
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}
const parsed = new Map();
function data(name) {
  if (!parsed.has(name)) parsed.set(name, block(`data-${name}`).then(JSON.parse));
  return parsed.get(name);
}
let loading = null;
function plotly() {
  loading ??= block("plotly").then((source) => {
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    return Plotly;
  });
  return loading;
}

// Theme
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
function showTheme() {
  themeButton.textContent = isDark() ? "Light theme" : "Dark theme";
  redraw();
}
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
prefersDark.addEventListener("change", showTheme);
// Paper is white and narrow; figures that were not near the screen yet are drawn too.
let screenTheme;
addEventListener("beforeprint", () => {
  screenTheme = root.dataset.theme;
  root.dataset.theme = "light";
  document.body.classList.add("printed");
  for (const place of places) drawOrSay(place);
});
addEventListener("afterprint", () => {
  document.body.classList.remove("printed");
  if (screenTheme) root.dataset.theme = screenTheme; else delete root.dataset.theme;
  redraw();
});
function color(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  root.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

// Figures
const places = [...document.querySelectorAll(".figure")];
const near = new Set(), stale = new Set(places);
const hidden = new Set();  // submissions, by rank
const chosen = {abscissa: "time", trials: "best", ordinate: "whole"};  // of the curves
function axis(given, style) {
  return {...given, ...style, title: {...given.title, font: {color: color("--soft")}}};
}
function themed(layout) {
  const style = {gridcolor: color("--line"), linecolor: color("--line")};
  const ink = color("--ink");
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {color: color("--soft"), family: getComputedStyle(document.body).fontFamily, size: 13},
    hoverlabel: {bgcolor: color("--band"), bordercolor: color("--edge"),
      font: {color: ink}, namelength: -1, align: "left"},
    xaxis: axis(layout.xaxis, style), yaxis: axis(layout.yaxis, style),
    shapes: (layout.shapes ?? []).map((shape) => ({...shape, line: {...shape.line, color: ink}})),
  };
}
function shown(trace) {
  const line = trace.marker?.line ? {line: {...trace.marker.line, color: color("--paper")}} : {};
  const marker = trace.marker ? {marker: {...trace.marker, ...line}} : {};
  return {...trace, ...marker, visible: !(trace.meta && hidden.has(trace.meta.rank))};
}
async function draw(place) {
  stale.delete(place);
  const figure = "curves" in place.dataset
    ? curves(await data("curves"), Number(place.dataset.curves))
    : (await data("figures"))[place.id];
  const library = await plotly();
  const options = {responsive: true, displayModeBar: false};
  await library.react(place, figure.data.map(shown), themed(figure.layout), options);
}
const drawOrSay = (place) => draw(place).catch((error) => { place.textContent = error.message; });
// Only figures near the screen are drawn, the others when they come near.
function redraw() {
  for (const place of places) stale.add(place);
  for (const place of near) drawOrSay(place);
}
const watcher = new IntersectionObserver((entries) => {
  for (const {isIntersecting, target} of entries) {
    if (isIntersecting) near.add(target); else near.delete(target);
    if (isIntersecting && stale.has(target)) drawOrSay(target);
  }
}, {rootMargin: "600px"});
places.forEach((place) => watcher.observe(place));

function curves(all, number) {
  const workload = all.workloads[number];
  const inSteps = chosen.abscissa === "step";
  const traces = all.submissions.flatMap((submission, rank) => {
    const trials = workload.trials.filter(
      (trial) => trial.rank === rank && (trial.best || chosen.trials === "all"));
    return trials.length ? curvePair(workload, submission, rank, trials, inSteps) : [];
  });
  const title = {text: inSteps ? "steps" : `submission time (${workload.unit})`};
  const layout = {...workload.layout, xaxis: {...workload.layout.xaxis, title}};
  if (chosen.ordinate === "near") {
    layout.yaxis = {...layout.yaxis, type: "linear", tickmode: "auto", range: workload.near};
  }
  return {data: traces, layout};
}
// A submission is one line, its trials apart by gaps, and the dots where it reached.
function curvePair(workload, submission, rank, trials, inSteps) {
  const line = {x: [], y: [], customdata: []}, dots = {x: [], y: [], customdata: []};
  const push = (to, trial, e) => {
    const time = trial.seconds[e] / workload.unit_seconds;
    to.x.push(inSteps ? trial.steps[e] : time);
    to.y.push(trial.values[e]);
    to.customdata.push([`study ${trial.study} trial ${trial.trial}`,
      Number(time.toPrecision(4)), trial.steps[e]]);
  };
  for (const trial of trials) {
    for (const e of thinned(trial, workload.most_points)) push(line, trial, e);
    for (const of_line of Object.values(line)) of_line.push(null);
    if (trial.hit >= 0) push(dots, trial, trial.hit);
  }
  const common = {
    type: "scatter", name: submission.label, meta: {rank},
    hovertemplate: `%{y:.6g} at %{customdata[1]} ${workload.unit}, step %{customdata[2]}`
      + "<br>%{customdata[0]}",
  };
  const isCrowded = workload.trials.length > workload.few_trials && chosen.trials === "all";
  const size = isCrowded ? 5 : 9;
  return [
    {...common, ...line, mode: "lines", opacity: isCrowded ? 0.6 : 1,
      line: {width: isCrowded ? 1.2 : 2, ...submission.look}},
    {...common, ...dots, mode: "markers",
      marker: {size, color: submission.look.color, line: {width: 1}}},
  ];
}
function thinned(trial, most) {
  const count = trial.steps.length;
  if (count <= most) return trial.steps.keys();
  const kept = new Set([trial.hit]);
  for (let k = 0; k < most; k++) kept.add(Math.round(k * (count - 1) / (most - 1)));
  return [...kept].filter((e) => e >= 0).sort((a, b) => a - b);
}
for (const input of document.querySelectorAll("#curves input")) {
  if (input.checked) chosen[input.name] = input.value;
  input.addEventListener("change", () => { chosen[input.name] = input.value; redraw(); });
}

// Legends: a button shows or hides a submission in every figure.
const keys = [...document.querySelectorAll(".legend button[data-rank]")];
function showKeys() {
  for (const key of keys) key.setAttribute("aria-pressed", !hidden.has(Number(key.dataset.rank)));
  redraw();
}
for (const key of keys) {
  key.addEventListener("click", () => {
    const rank = Number(key.dataset.rank);
    if (!hidden.delete(rank)) hidden.add(rank);
    showKeys();
  });
}
for (const button of document.querySelectorAll(".legend button[data-all]")) {
  button.addEventListener("click", () => {
    hidden.clear();
    if (button.dataset.all === "hide") keys.forEach((key) => hidden.add(Number(key.dataset.rank)));
    showKeys();
  });
}

// Tables: the button in a header sorts; what has no number stays last.
document.addEventListener("click", (event) => {
  const header = event.target.closest("th");
  if (header && event.target.closest("button")) sortBy(header);
});
function sortKey(cell) {
  if (!("value" in cell.dataset)) return cell.textContent;
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}
function sortBy(header) {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const before = header.getAttribute("aria-sort") ?? header.dataset.before ?? "descending";
  const sign = before === "descending" ? 1 : -1;
  const rows = [...body.rows].map((row) => [sortKey(row.cells[column]), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), undefined, {numeric: true});
  });
  body.append(...rows.map(([, row]) => row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
}

// Tables of trials are made when they are opened: there may be thousands of rows.
function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
function cell(value, name) {
  if (value === "inf" && name === "seconds to target") {
    return element("td", "miss", {class: "number miss", "data-value": ""});
  }
  if (typeof value === "number") {
    const text = Number.isInteger(value) ? value : Number(value.toPrecision(5));
    return element("td", text, {class: "number", "data-value": value});
  }
  if (value === null) return element("td", "", {"data-value": ""});
  if (name === "status") return element("td", value, {class: value});
  return element("td", value, name === "message" || name === "note" ? {class: "text"} : {});
}
async function showTrials(details) {
  if (details.querySelector("table")) return;
  const {columns, rows} = await data("trials");
  const mine = rows.filter((row) => row[0] === details.dataset.trials);
  const kept = columns.map((_, c) => c).filter(
    (c) => c > 0 && mine.some((row) => row[c] !== null));
  const table = element("table", "", {class: "trials"}), head = table.createTHead().insertRow();
  for (const c of kept) {
    const header = element("th", "", {scope: "col"});
    header.append(element("button", columns[c], {type: "button"}));
    if (mine.some((row) => typeof row[c] === "number")) header.className = "number";
    head.append(header);
  }
  const body = table.createTBody();
  for (const row of mine) body.insertRow().append(...kept.map((c) => cell(row[c], columns[c])));
  const wide = element("div", "", {class: "wide", tabindex: "0", role: "region",
    "aria-label": `table of trials of ${details.dataset.trials}`});
  wide.append(table);
  details.append(wide);
}
for (const details of document.querySelectorAll("details[data-trials]")) {
  details.addEventListener("toggle", () => { if (details.open) showTrials(details); });
  if (details.open) showTrials(details);
}

// Downloads
const quoted = (value) => /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
function csv(columns, rows) {
  const line = (row) => row.map((value) => value === null ? "" : quoted(String(value))).join(",");
  return [columns, ...rows].map(line).join("\n") + "\n";
}
async function table(name, number) {
  if (name === "trials") return data("trials");
  if (name !== "curves") return (await data("tables"))[name];
  const {submissions, workloads} = await data("curves");
  const columns = ["submission", "workload", "study", "trial", "step", "seconds", "metric", "value"];
  const wanted = number === undefined ? workloads : [workloads[number]];
  const rows = wanted.flatMap((workload) => workload.trials.flatMap((trial) =>
    trial.steps.map((step, e) => [submissions[trial.rank].name, workload.name, trial.study,
      trial.trial, step, trial.seconds[e], workload.metric, trial.values[e]])));
  return {columns, rows};
}
async function download(button) {
  const {csv: name, number, file} = button.dataset;
  const {columns, rows} = await table(name, number);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv(columns, rows)], {type: "text/csv"}));
  link.download = `${file ?? name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
for (const button of document.querySelectorAll("button[data-csv]")) {
  button.addEventListener("click", () => download(button));
}
showTheme();
