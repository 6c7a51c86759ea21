"use strict";
(() => {
  const data = JSON.parse(document.getElementById("flexgen-data").textContent);
  const show = (value) => (value === null ? "nan" : String(+value.toPrecision(4)));

  // A read-out of every line at the step nearest to the pointer.
  for (const svg of document.querySelectorAll("svg.chart")) {
    const [left, right, first, end] = svg.dataset.axis.split(" ").map(Number);
    const cursor = svg.querySelector(".cursor");
    const tip = document.createElement("div");
    tip.className = "tip";
    svg.parentElement.append(tip);
    const hide = () => { tip.style.display = "none"; cursor.style.visibility = "hidden"; };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      const wanted = first + ((event.clientX - box.left) / scale - left) / (right - left) * (end - first);
      const lines = [];
      let at = null;
      for (const [who, curves] of Object.entries(data.curves)) {
        for (const metric of svg.dataset.metrics.split(" ")) {
          const curve = curves[metric];
          if (!curve) continue;
          const steps = curve.generator_steps;
          let near = 0;
          steps.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(steps[near] - wanted)) near = i; });
          at ??= steps[near];
          const step = steps[near] === at ? "" : ` (step ${steps[near].toLocaleString("en")})`;
          const name = data.labels[metric] + (who === "control" ? ", control" : "");
          lines.push(`${name}: ${show(curve.values[near])}${step}`);
        }
      }
      if (at === null) return hide();
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
    });
  }

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

  const dialog = document.createElement("dialog");
  document.body.append(dialog);
  dialog.addEventListener("click", () => dialog.close());
  for (const image of document.querySelectorAll(".strip img")) {
    image.addEventListener("click", () => {
      const large = image.cloneNode();
      dialog.replaceChildren(large);
      dialog.showModal();
    });
  }
})();
