"use strict";
(() => {
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  const specs = read("specs"), search = read("search"), colours = read("colours");
  const theme = document.getElementById("theme"), filter = document.getElementById("filter");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const charts = [...document.querySelectorAll("[data-drawing]")];
  // Pixels: visible height of a figure, as in the style; width of a column with a label; largest width of labels.
  const FRAME = 736, LEAST = 15, BESIDE = 220;
  let wanted = "", printing = false;

  // Remembering the theme is optional: a page opened from a file may not be allowed to store it.
  const remembered = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("secateur-colours") || "";
      localStorage.setItem("secateur-colours", value);
    } catch { /* then it is not stored */ }
    return value || "";
  };

  const dark = () => !printing && (theme.value ? theme.value === "dark" : system.matches);
  const shade = () => { root.dataset.shade = dark() ? "dark" : "light"; };
  const colour = (value) => (dark() && colours.dark[value]) || value;

  // A copy with the colours of the theme. Only entries with these names are colours.
  const themed = (value, key) => {
    if (Array.isArray(value)) return /color$/i.test(key) ? value.map(colour) : value.map((one) => themed(one, ""));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, themed(one, name)]));
    }
    return typeof value === "string" && /color$/i.test(key) ? colour(value) : value;
  };

  const words = (name) => ((search.groups || {})[name] || []).map((at) => search.modules[at]).join(" ");
  const matches = (name) => !wanted || `${name} ${words(name)}`.toLowerCase().includes(wanted);

  // The points of a trace whose names match; every list of the same length as the names belongs to the points.
  const points = (trace) => {
    const told = trace.meta && trace.meta.names, names = typeof told === "string" ? trace[told] : told;
    if (!names || !wanted) return trace;
    const stay = names.map(matches);
    const chosen = (value) => {
      if (Array.isArray(value)) return value.length === names.length ? value.filter((_, at) => stay[at]) : value;
      if (value && typeof value === "object") {
        return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, chosen(one)]));
      }
      return value;
    };
    return chosen(trace);
  };

  // An axis of names keeps those that some point still has; on a vertical axis the first is on top.
  const axis = (spec, letter, traces) => {
    if (!spec || !spec.categoryarray) return spec;
    const used = new Set(wanted ? traces.flatMap((trace) => trace[letter] || []) : spec.categoryarray);
    const stay = spec.categoryarray.map((name) => used.has(name));
    const chosen = (list) => list.filter((_, at) => stay[at]);
    const ends = [-0.6, stay.filter(Boolean).length - 0.4];
    return {
      ...spec, categoryarray: chosen(spec.categoryarray), tickvals: chosen(spec.categoryarray), ticktext: chosen(spec.ticktext),
      range: letter === "y" ? ends.reverse() : ends,
    };
  };

  // Height, margins and legend of a figure, and the labels that fit its axes. If plotly computes the
  // margins itself, it draws a figure several times, which is too slow for thousands of points.
  const fitted = (layout, width, size) => {
    const { line, height = 400 } = layout.meta || {}, { xaxis = {}, yaxis = {} } = layout;
    const rows = (yaxis.categoryarray || []).length, columns = (xaxis.categoryarray || []).length;
    const found = {
      height: line ? Math.max(200, 120 + line * rows) : height,
      margin: { l: 12, r: 16, t: 34, b: 12 }, legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" },
    };
    if (rows) {
      const longest = Math.max(...yaxis.ticktext.map((text) => text.replace(/&\w+;/g, "_").length));
      found.margin.l = Math.round(14 + 0.62 * size * longest);
      yaxis.automargin = false;
    }
    const bare = columns * LEAST > width - found.margin.l - (rows ? 0 : 48);
    if (bare) Object.assign(xaxis, { showticklabels: false, showgrid: false, automargin: false });
    if (found.height > FRAME) {  // the bottom of the figure is not visible at first, so its axis is on top
      xaxis.side = "top";
      Object.assign(found.legend, { yref: "container", yanchor: "top" });
      found.margin.t = (width < 500 ? 66 : 42) + (bare ? 0 : 50);
    }
    return found;
  };

  const layoutOf = (spec, traces, width) => {
    const layout = themed(spec.layout, ""), size = width < 500 ? 11 : 13;
    const lines = { gridcolor: colour(colours.line), zerolinecolor: colour(colours.line), linecolor: colour(colours.line), automargin: true };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      layout[name] = { ...lines, ...axis(layout[name], name[0], traces) };
    }
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size, color: colour(colours.ink) },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hovermode: "closest", dragmode: width < 500 ? false : "zoom",
      hoverlabel: { align: "left", namelength: -1, bgcolor: colour(colours.paper), bordercolor: colour(colours.muted), font: { color: colour(colours.ink) } },
      modebar: { color: colour(colours.muted), activecolor: colour(colours.ink), bgcolor: "rgba(0,0,0,0)" },
      ...fitted(layout, width, size), ...layout,
    };
  };

  const draw = async (chart) => {
    const variants = specs[chart.dataset.drawing], choice = chart.querySelector("select");
    const spec = variants[choice ? choice.value : Object.keys(variants)[0]];
    const plot = chart.querySelector(".plot"), { column } = spec.layout.meta || {};
    if (column) plot.style.minWidth = `max(17rem, ${BESIDE + column * spec.layout.xaxis.categoryarray.length}px)`;
    const traces = spec.data.map(points).map((trace) => themed(trace, ""));
    await Plotly.react(plot, traces, layoutOf(spec, traces, plot.clientWidth), {
      displaylogo: false, responsive: true, displayModeBar: plot.clientWidth >= 500,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: chart.dataset.drawing },
    });
    // Read aloud, the words of a drawing make no sense; a label before it and a table after it describe it.
    for (const drawing of plot.querySelectorAll("svg.main-svg")) drawing.setAttribute("aria-hidden", "true");
    chart.dataset.drawn = "yes";
  };

  const drawAll = async () => {
    shade();
    for (const chart of charts) await draw(chart);
  };

  const narrow = () => {
    wanted = filter.value.trim().toLowerCase();
    const rows = [...document.querySelectorAll("tr[data-name]")];
    for (const row of rows) row.hidden = !matches(row.dataset.name);
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("found").textContent = wanted ? `${shown} of ${rows.length} rows shown` : "all rows shown";
    return drawAll();
  };

  theme.value = remembered();
  theme.addEventListener("change", () => { remembered(theme.value); drawAll(); });
  system.addEventListener("change", drawAll);
  for (const chart of charts) {
    const choice = chart.querySelector("select");
    if (choice) choice.addEventListener("change", () => draw(chart));
  }
  if (filter) {
    let timer;
    filter.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(narrow, 150); });
  }
  // Printed pages use the light theme, and all details are open.
  addEventListener("beforeprint", () => {
    printing = true;
    for (const fold of document.querySelectorAll("details:not([open])")) { fold.open = true; fold.dataset.folded = "yes"; }
    drawAll();
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const fold of document.querySelectorAll("details[data-folded]")) { fold.open = false; delete fold.dataset.folded; }
    drawAll();
  });
  drawAll().then(() => { root.dataset.drawn = "yes"; });
})();
