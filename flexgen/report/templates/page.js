"use strict";
(() => {
  const data = JSON.parse(document.getElementById("flexgen-data").textContent);
  const show = (value, why) => (
    value === null ? `not defined${why ? `: ${why}` : ""}` : String(+value.toPrecision(4)));

  // A read-out of every line at the step nearest to the pointer, or moved by the arrow keys.
  for (const svg of document.querySelectorAll("svg.chart")) {
    const [left, right, first, end] = svg.dataset.axis.split(" ").map(Number);
    const group = svg.dataset.group;
    const metrics = svg.dataset.metrics.split(" ");
    const curves = Object.entries(group === undefined ? data.curves : data.grouped[group])
      .flatMap(([who, found]) => metrics.filter((metric) => found[metric]).map((metric) => {
        const name = data.labels[metric] + (who === "control" ? ", control" : "");
        const why = (data.undefined ?? {})[metric];
        return { name: group === undefined ? name : who, why, ...found[metric] };
      }));
    if (!curves.length) continue;
    const cursor = svg.querySelector(".cursor");
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.setAttribute("role", "status");
    svg.parentElement.append(tip);
    svg.tabIndex = 0;
    let shown = null;
    const nearest = (steps, wanted) => steps.reduce(
      (best, step, i) => (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0);
    const hide = () => { shown = null; tip.style.display = "none"; cursor.style.visibility = "hidden"; };
    const readOut = (wanted) => {
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      const at = curves[0].generator_steps[nearest(curves[0].generator_steps, wanted)];
      shown = at;
      const lines = curves.map((curve) => {
        const near = nearest(curve.generator_steps, wanted);
        const step = curve.generator_steps[near];
        const where = step === at ? "" : ` (step ${step.toLocaleString("en")})`;
        return `${curve.name}: ${show(curve.values[near], curve.why)}${where}`;
      });
      const x = left + (at - first) / (end - first) * (right - left);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.style.visibility = "visible";
      tip.replaceChildren(...[`step ${at.toLocaleString("en")}`, ...lines].map((text) => {
        const line = document.createElement("div");
        line.textContent = text;
        return line;
      }));
      tip.style.display = "block";
      const frame = svg.parentElement.getBoundingClientRect();
      const place = box.left - frame.left + x * scale;
      tip.style.left = `${Math.max(0, Math.min(frame.width - tip.offsetWidth, place + 12))}px`;
      tip.style.top = `${box.top - frame.top + 192 * scale}px`;  // below the axis, off the lines
    };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) readOut(end); });
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      readOut(first + ((event.clientX - box.left) / scale - left) / (right - left) * (end - first));
    });
    svg.addEventListener("keydown", (event) => {
      const steps = curves[0].generator_steps;
      const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length };
      if (event.key === "Escape") return hide();
      if (!(event.key in moves)) return;
      event.preventDefault();
      const from = nearest(steps, shown ?? end);
      readOut(steps[Math.max(0, Math.min(steps.length - 1, from + moves[event.key]))]);
    });
  }

  const groupBy = document.getElementById("group-by");
  groupBy?.addEventListener("change", () => {
    for (const part of document.querySelectorAll("[data-grouping]")) {
      part.hidden = part.dataset.grouping !== groupBy.value;
    }
  });

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.addEventListener("click", () => {
      const source = document.getElementById(button.dataset.copy);
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      // navigator.clipboard is missing where the page is opened as a file in some browsers.
      const done = () => { button.textContent = "Copied"; };
      const old = () => { if (document.execCommand("copy")) done(); };
      navigator.clipboard ? navigator.clipboard.writeText(source.textContent).then(done, old) : old();
    });
  }

  // A picture as large as the window takes it, by whole pixels where it is small.
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-label", "picture, enlarged");
  document.body.append(dialog);
  dialog.addEventListener("click", () => dialog.close());
  const pictures = [...document.querySelectorAll(".strip img")];
  let open = 0;
  const enlarge = (index) => {
    open = (index + pictures.length) % pictures.length;
    const image = pictures[open];
    const large = image.cloneNode();
    const [width, height] = [image.getAttribute("width"), image.getAttribute("height")].map(Number);
    const fit = Math.min(innerWidth * 0.94 / width, innerHeight * 0.9 / height);
    const scale = image.classList.contains("pixels") && fit > 2 ? Math.floor(fit) : fit;
    large.removeAttribute("tabindex");
    large.style.width = `${Math.round(width * scale)}px`;
    large.style.height = `${Math.round(height * scale)}px`;
    const caption = document.createElement("p");
    caption.textContent = image.alt;
    dialog.replaceChildren(large, caption);
    if (!dialog.open) dialog.showModal();
  };
  dialog.addEventListener("close", () => pictures[open].focus());
  dialog.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1 };
    if (event.key in moves) enlarge(open + moves[event.key]);
  });
  pictures.forEach((image, index) => {
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.addEventListener("click", () => enlarge(index));
    image.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      enlarge(index);
    });
  });
})();
