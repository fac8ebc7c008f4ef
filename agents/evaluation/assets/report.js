"use strict";
// Gantt pictures: two schedules of one problem under one time axis. Zoom with the buttons, by pinching or
// with Ctrl and the wheel; drag to move; point at an operation for its times.
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const GUTTER = 34, AXIS = 20;
  const tip = document.getElementById("tip");

  const make = (tag, attributes, parent) => {
    const node = document.createElementNS(NS, tag);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (parent) parent.appendChild(node);
    return node;
  };
  const colour = (job) => `hsl(${Math.round((job * 137.508) % 360)} 58% ${[64, 72, 56][job % 3]}%)`;

  // start (and end, where shutdowns stretch operations) travel in the page; the rest follows from the route.
  const operations = (problem, run) => {
    const list = [];
    for (let j = 0; j + 1 < problem.job_ptr.length; j++) {
      for (let o = problem.job_ptr[j]; o < problem.job_ptr[j + 1]; o++) {
        const start = run.start[o], end = run.end ? run.end[o] : start + problem.duration[o];
        const last = o + 1 === problem.job_ptr[j + 1];
        const leave = problem.blocking && !last ? run.start[o + 1] : end;
        list.push({ job: j, op: o - problem.job_ptr[j], of: problem.job_ptr[j + 1] - problem.job_ptr[j],
          machine: problem.machine[o], start, end, leave, duration: problem.duration[o] });
      }
    }
    return list;
  };

  const ticks = (from, to) => {
    const raw = (to - from) / 8, power = 10 ** Math.floor(Math.log10(raw));
    const step = Math.max(1, [1, 2, 5, 10].find((m) => m * power >= raw) * power), found = [];
    for (let t = Math.ceil(from / step) * step; t <= to; t += step) found.push(t);
    return found;
  };

  class Explorer {
    constructor(root, problems) {
      this.problems = problems;
      this.pickProblem = root.querySelector(".pick-problem");
      this.panels = [...root.querySelectorAll(".chart")].map((chart) => ({
        chart, pick: chart.querySelector("select"), svg: chart.querySelector("svg"), says: chart.querySelector(".says") }));
      problems.forEach((p, k) => this.pickProblem.add(new Option(p.name, k)));
      this.pickProblem.addEventListener("change", () => this.show());
      this.panels.forEach((panel) => {
        panel.pick.addEventListener("change", () => { this.reset(); });
        this.listen(panel);
      });
      root.querySelectorAll("button").forEach((b) => b.addEventListener("click", () => this.press(b.dataset.do)));
      new ResizeObserver(() => this.draw()).observe(root);
      this.show();
    }

    get problem() { return this.problems[this.pickProblem.value]; }

    show() {
      const names = Object.keys(this.problem.runs);
      this.panels.forEach((panel, k) => {
        const before = panel.pick.value || this.problem.first[k];
        panel.pick.replaceChildren(...names.map((name) => new Option(`${name} (${this.problem.runs[name].makespan})`, name)));
        panel.pick.value = names.includes(before) ? before : names[Math.min(k, names.length - 1)];
      });
      this.reset();
    }

    reset() {
      this.from = 0;
      this.to = this.whole = 1.02 * Math.max(...this.panels.map((p) => this.problem.runs[p.pick.value].makespan), 1);
      this.draw();
    }

    press(what) {
      if (what === "reset") return this.reset();
      if (what === "in" || what === "out") return this.zoom(what === "in" ? 0.6 : 1 / 0.6, (this.from + this.to) / 2);
      return this.move((what === "left" ? -0.3 : 0.3) * (this.to - this.from));
    }

    zoom(factor, around) {
      const span = Math.min(Math.max((this.to - this.from) * factor, 8), this.whole);
      const share = (around - this.from) / (this.to - this.from);
      this.from = around - share * span;
      this.to = this.from + span;
      this.move(0);
    }

    move(by) {
      const span = this.to - this.from;
      this.from = Math.min(Math.max(this.from + by, 0), this.whole - span);
      this.to = this.from + span;
      this.draw();
    }

    draw() {
      if (this.pending) return;
      this.pending = requestAnimationFrame(() => { this.pending = 0; this.panels.forEach((p) => this.paint(p)); });
    }

    paint(panel) {
      const problem = this.problem, run = problem.runs[panel.pick.value];
      const width = Math.max(panel.chart.clientWidth, 200);
      const lane = problem.machines > 16 ? 15 : problem.machines > 10 ? 18 : 24;
      const height = lane * problem.machines + AXIS;
      const x = (t) => GUTTER + ((t - this.from) / (this.to - this.from)) * (width - GUTTER - 2);
      panel.time = (px) => this.from + ((px - GUTTER) / (width - GUTTER - 2)) * (this.to - this.from);
      panel.says.textContent = `makespan ${run.makespan}` + (run.gap === null ? "" : `, gap ${run.gap.toFixed(1)} % (${run.against})`);
      const svg = panel.svg;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.replaceChildren();
      const hatch = make("pattern", { id: "down", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        make("defs", {}, svg));
      make("rect", { width: 6, height: 6, fill: "var(--bad)", "fill-opacity": 0.1 }, hatch);
      make("rect", { width: 2, height: 6, fill: "var(--bad)", "fill-opacity": 0.55 }, hatch);
      const clip = make("clipPath", { id: `${panel.svg.id}-clip` }, svg.firstChild);
      make("rect", { x: GUTTER, y: 0, width: width - GUTTER, height }, clip);
      for (let m = 0; m < problem.machines; m++) {
        if (m % 2 === 0) make("rect", { class: "lane", x: GUTTER, y: m * lane, width: width - GUTTER, height: lane }, svg);
        make("text", { x: GUTTER - 6, y: m * lane + lane / 2 + 4, "text-anchor": "end" }, svg).textContent = `M${m}`;
      }
      for (const t of ticks(this.from, this.to)) {
        make("line", { class: "grid", x1: x(t), x2: x(t), y1: 0, y2: height - AXIS }, svg);
        make("text", { x: x(t), y: height - 5, "text-anchor": "middle" }, svg).textContent = t;
      }
      const plot = make("g", { "clip-path": `url(#${panel.svg.id}-clip)` }, svg);
      const seen = (a, b) => b >= this.from && a <= this.to;
      for (const [m, from, to] of problem.downtime) {
        if (from < run.makespan && seen(from, to)) {
          const down = make("rect", { class: "down", x: x(from), y: m * lane, width: x(to) - x(from), height: lane }, plot);
          down.says = `machine ${m} is down from ${from} to ${to}`;
        }
      }
      panel.bars = [];
      run.operations ??= operations(problem, run);
      for (const op of run.operations) {
        if (!seen(op.start, op.leave)) continue;
        const y = op.machine * lane + 2, bar = make("g", {}, plot);
        bar.job = op.job;
        bar.says = `job ${op.job}, operation ${op.op + 1} of ${op.of}, machine ${op.machine}\n${op.start} to ${op.end}` +
          (op.end - op.start > op.duration ? ` (takes ${op.duration}, interrupted)` : ` (takes ${op.duration})`) +
          (op.leave > op.end ? `\nblocks the machine until ${op.leave}` : "");
        if (op.leave > op.end)
          make("rect", { class: "op", x: x(op.end), y: y + 3, width: x(op.leave) - x(op.end), height: lane - 10, fill: colour(op.job), "fill-opacity": 0.35 }, bar);
        make("rect", { class: "op", x: x(op.start), y, width: Math.max(x(op.end) - x(op.start), 0.8), height: lane - 4, rx: 2, fill: colour(op.job) }, bar);
        const from = Math.max(x(op.start), GUTTER), to = Math.min(x(op.end), width);
        if (to - from > 20)
          make("text", { class: "name", x: (from + to) / 2, y: y + lane / 2 + 1.5, "text-anchor": "middle" }, bar).textContent = op.job;
        panel.bars.push(bar);
      }
      make("line", { class: "finish", x1: x(run.makespan), x2: x(run.makespan), y1: 0, y2: height - AXIS }, plot);
    }

    point(panel, event) {
      let node = event.target;
      while (node && node !== panel.svg && !node.says) node = node.parentNode;
      const hit = node && node.says ? node : null;
      for (const p of this.panels)
        for (const bar of p.bars ?? []) bar.classList.toggle("dim", hit !== null && hit.job !== undefined && bar.job !== hit.job);
      tip.hidden = hit === null;
      if (!hit) return;
      tip.textContent = hit.says;
      tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4))}px`;
      tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
    }

    listen(panel) {
      const svg = panel.svg, down = new Map();
      const at = (event) => panel.time(event.clientX - svg.getBoundingClientRect().left);
      svg.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // plain scrolling scrolls the page
        event.preventDefault();
        this.zoom(Math.exp(event.deltaY * 0.004), at(event));
      }, { passive: false });
      svg.addEventListener("dblclick", (event) => this.zoom(0.4, at(event)));
      svg.addEventListener("pointerdown", (event) => {
        down.set(event.pointerId, event.clientX);
        this.point(panel, event);
      });
      svg.addEventListener("pointermove", (event) => {
        const before = down.get(event.pointerId);
        if (before === undefined) return this.point(panel, event);
        const scale = (this.to - this.from) / Math.max(svg.clientWidth - GUTTER, 1);
        if (down.size === 1) {
          if (Math.abs(event.clientX - before) < 3) return;
          svg.setPointerCapture(event.pointerId);
          svg.classList.add("dragging");
          down.set(event.pointerId, event.clientX);
          this.move((before - event.clientX) * scale);
        } else {
          const other = [...down].find(([id]) => id !== event.pointerId)[1];
          const [old, now] = [Math.abs(before - other), Math.abs(event.clientX - other)];
          down.set(event.pointerId, event.clientX);
          if (old > 8 && now > 8) this.zoom(old / now, panel.time((event.clientX + other) / 2 - svg.getBoundingClientRect().left));
        }
      });
      const release = (event) => {
        down.delete(event.pointerId);
        svg.classList.remove("dragging");
      };
      svg.addEventListener("pointerup", release);
      svg.addEventListener("pointercancel", release);
      svg.addEventListener("pointerleave", (event) => {
        if (!down.size) this.point(panel, { target: null });
        else if (event.pointerType !== "mouse") release(event);
      });
    }
  }

  const data = JSON.parse(document.getElementById("gantt").textContent);
  document.querySelectorAll(".gantt").forEach((root) => new Explorer(root, data[root.dataset.world]));
})();
