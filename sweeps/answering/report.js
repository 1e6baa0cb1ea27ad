"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const made = (tag, properties, parent) => {
    const element = Object.assign(document.createElement(tag), properties);
    if (parent) parent.append(element);
    return element;
  };

  // The comparison: two pictures of one image on top of each other, and a slider that uncovers the upper one.
  const cases = [...document.querySelectorAll(".case")];
  const stage = at("stage");
  // `reference`: what a clicked picture is compared with.
  const chosen = { index: 0, left: "baseline", right: "", reference: "baseline", cut: 50 };
  let show = () => {}, shown = {};
  if (stage && cases.length) {
    const pictures = (index) => [...cases[index].querySelectorAll("img.picture")];
    const seen = made("div", {}, stage), controls = made("div", { className: "controls" }, stage);
    const select = (label) => {
      const box = made("label", { textContent: `${label} ` }, controls);
      return made("select", {}, box);
    };
    const image = select("image");
    cases.forEach((each, index) => made("option", { value: index, textContent: each.dataset.title }, image));
    const left = select("left"), right = select("right");
    const frame = made("div", { className: "frame" }, seen);
    const lower = made("img", {}, frame), upper = made("img", { className: "upper" }, frame);
    const names = made("p", { className: "names note" }, seen);
    const slider = made("input", { type: "range", min: 0, max: 100, step: 0.5, ariaLabel: "where the left picture ends" }, seen);
    const flip = made("button", { type: "button", textContent: "Flip between the two" }, controls);

    show = () => {
      const found = pictures(chosen.index), roles = found.map((each) => each.dataset.role);
      // Of an image without the chosen role: the winner, or who has its place, and never the same picture twice.
      const known = (role) => /^(input|bicubic|baseline|target)/.test(role);
      const usual = [roles.find((role) => !known(role)), "target", "baseline", roles[0]].filter((role) => roles.includes(role));
      const pick = (role, taken) => found[roles.indexOf(roles.includes(role) && role !== taken ? role : usual.find((each) => each !== taken))];
      const one = pick(chosen.left), two = pick(chosen.right, one.dataset.role);
      image.value = chosen.index;
      shown = { left: one.dataset.role, right: two.dataset.role };
      for (const [box, each] of [[left, one], [right, two]]) {
        box.replaceChildren(...roles.map((role) => made("option", { value: role, textContent: role })));
        box.value = each.dataset.role;
      }
      for (const [place, each] of [[upper, one], [lower, two]]) {
        place.src = each.src;
        place.alt = each.alt;
      }
      const width = one.naturalWidth || 64;
      frame.style.width = `${width * Math.max(2, Math.floor(640 / width))}px`;
      frame.style.setProperty("--cut", `${chosen.cut}%`);
      slider.value = chosen.cut;
      const whole = chosen.cut >= 100 ? one : chosen.cut <= 0 ? two : null;
      names.textContent = whole ? `shown: ${whole.alt}` : `left: ${one.alt} · right: ${two.alt}`;
    };
    const set = (changes) => { Object.assign(chosen, changes); show(); };
    image.onchange = () => set({ index: Number(image.value) });
    // The picture that the other side has: they change places.
    left.onchange = () => set({ left: left.value, reference: left.value, right: left.value === right.value ? shown.left : right.value });
    right.onchange = () => set({ right: right.value, left: left.value === right.value ? shown.right : left.value });
    slider.oninput = () => set({ cut: Number(slider.value) });
    flip.onclick = () => set({ cut: chosen.cut > 50 ? 0 : 100 });
    const drag = (event) => {
      const box = frame.getBoundingClientRect();
      set({ cut: Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)) });
    };
    frame.onpointerdown = (event) => { frame.setPointerCapture(event.pointerId); drag(event); };
    frame.onpointermove = (event) => { if (event.buttons) drag(event); };
    upper.draggable = lower.draggable = false;
    cases.forEach((each, index) => pictures(index).forEach((picture) => {
      const open = () => {
        const role = picture.dataset.role;
        const others = [chosen.reference, "baseline", "target"].filter((each) => each !== role);
        set({ index, right: role, left: others[0] });
        stage.scrollIntoView({ block: "center" });
      };
      picture.tabIndex = 0;
      picture.setAttribute("role", "button");
      picture.onclick = open;
      picture.onkeydown = (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        open();
        slider.focus({ preventScroll: true });
      };
    }));
    stage.hidden = false;
  }

  // A newer report replaces this one only when the reader asks for it, and then at the same place.
  const key = `report ${location.pathname}`;
  const status = at("status");
  const keep = () => {
    const open = [...document.querySelectorAll("details")].map((each) => each.open);
    sessionStorage.setItem(key, JSON.stringify({ y: scrollY, open, chosen }));
  };
  try {
    const kept = JSON.parse(sessionStorage.getItem(key) || "null");
    sessionStorage.removeItem(key);
    if (kept) {
      Object.assign(chosen, kept.chosen, { index: Math.min(kept.chosen.index, Math.max(0, cases.length - 1)) });
      document.querySelectorAll("details").forEach((each, index) => { each.open = Boolean(kept.open[index]); });
      addEventListener("load", () => scrollTo(0, kept.y));
    }
  } catch { /* a browser that keeps nothing for pages from files */ }
  show();

  at("newer").onclick = () => {
    try { keep(); } catch { /* as above */ }
    location.reload();
  };
  window.sweepState = (state) => {
    at("news").textContent = state.running ? `${state.status} (${state.at})` : state.status;
    at("newer").hidden = state.version === status.dataset.version;
    if (state.running) setTimeout(ask, 5000);
  };
  function ask() {
    const script = made("script", { src: `state.js?${Date.now()}` }, document.body);
    script.onload = script.onerror = () => script.remove();
  }
  if (status.dataset.running === "1") ask();
})();
