"use strict";
// Builds each task's list of queries from its JSON. Model text goes through textContent only.
(() => {
  const PAGE = 20;
  const CLIP = 1200; // characters shown before "show all"
  const MARK = { helped: "▲", hurt: "▼", same: "=", unscored: "?" };

  const el = (tag, cls, text) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const textBox = (text, cls) => {
    const wrap = el("div", "textwrap");
    const box = el("div", "text " + (cls || ""), text.length > CLIP ? text.slice(0, CLIP) + "…" : text);
    box.dir = "auto";
    wrap.append(box);
    if (text.length > CLIP) {
      const button = el("button", "all", `Show all ${text.length.toLocaleString("en")} characters`);
      button.type = "button";
      button.addEventListener("click", () => {
        box.textContent = text;
        box.classList.add("long");
        box.tabIndex = 0; // a box that scrolls must be reachable by keyboard
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", "Full text");
        button.remove();
        box.focus({ preventScroll: true });
      });
      wrap.append(button);
    }
    return wrap;
  };

  const labelled = (title, text, cls) => {
    const part = el("div", "part");
    part.append(el("h6", "", title), textBox(text, cls));
    return part;
  };

  const verdictChip = (value) => {
    const full = value >= 1 - 1e-9, none = value <= 1e-9;
    const chip = el("span", "score " + (full ? "full" : none ? "none" : "partial"));
    chip.textContent = (full ? "✓ " : none ? "✗ " : "") + "score " + value.toFixed(2).replace(/\.00$/, "");
    return chip;
  };

  const answerColumn = (system, answer, weakText) => {
    const col = el("section", "col");
    const head = el("h5");
    const dot = el("i", "dot s" + system.colour);
    dot.setAttribute("aria-hidden", "true");
    head.append(dot, el("span", "", system.label));
    col.append(head);
    if (!answer) {
      col.append(el("p", "missing", "No answer recorded."));
      return col;
    }
    const result = el("p", "result");
    const said = el("bdi", "answer", answer.answer === null ? "no answer found" : answer.answer);
    if (answer.answer === null) said.classList.add("missing");
    result.append(said);
    if (answer.value !== null) result.append(verdictChip(answer.value));
    else result.append(el("span", "score unscored", "unscored"));
    col.append(result);
    if (answer.draft !== null) {
      if (answer.draft === weakText) col.append(el("p", "missing", "Draft: the same text as the weak model alone."));
      else col.append(labelled("Draft by the weak model", answer.draft, "draft"));
    }
    if (answer.text !== null) col.append(labelled(answer.draft !== null ? "Refined by the strong model" : "Text", answer.text));
    if (answer.error !== null) col.append(labelled("Failed", answer.error, "error"));
    return col;
  };

  const card = (query, data, baseline) => {
    const item = el("article", "query");
    item.tabIndex = -1;
    const head = el("header");
    const outcome = query.outcomes[baseline];
    if (outcome) {
      item.dataset.outcome = outcome;
      head.append(el("span", "badge is-" + outcome, MARK[outcome] + " " + outcome));
    }
    head.append(el("code", "id", query.id));
    const ask = el("div", "ask");
    ask.append(labelled("Query", query.input, "question"));
    const reference = el("div", "part");
    reference.append(el("h6", "", query.references.length > 1 ? "References (any)" : "Reference"));
    for (const text of query.references) reference.append(textBox(text, "reference"));
    ask.append(reference);
    item.append(head);
    if (query.turns.length) {
      const earlier = el("details", "context");
      earlier.append(el("summary", "", query.turns.length === 1 ? "1 earlier turn" : `${query.turns.length} earlier turns`));
      earlier.addEventListener("toggle", () => {
        if (earlier.open && earlier.children.length === 1) for (const [role, text] of query.turns) earlier.append(labelled(role, text));
      });
      item.append(earlier);
    }
    item.append(ask);
    if (query.context) {
      const more = el("details", "context");
      more.append(el("summary", "", "Context"));
      more.addEventListener("toggle", () => { if (more.open && more.children.length === 1) more.append(textBox(query.context)); });
      item.append(more);
    }
    const columns = el("div", "cols");
    const weakIndex = data.systems.findIndex((s) => s.name === "weak");
    const weak = query.answers[weakIndex];
    data.systems.forEach((system, i) => columns.append(answerColumn(system, query.answers[i], weak ? weak.text : undefined)));
    item.append(columns);
    return item;
  };

  const haystack = (query) => {
    if (query.hay === undefined) {
      const parts = [query.id, query.input, query.context, ...query.turns.map((turn) => turn[1]), ...query.references];
      for (const a of query.answers) if (a) parts.push(a.text, a.answer, a.draft, a.error);
      query.hay = parts.filter((p) => p !== null).join("\n").toLowerCase();
    }
    return query.hay;
  };

  const start = (root) => {
    const data = JSON.parse(document.getElementById(root.dataset.queries).textContent);
    const form = root.querySelector("form"), list = root.querySelector(".list");
    const status = root.querySelector(".status"), more = root.querySelector(".more");
    const search = form.querySelector("input[type=search]");
    const chosen = (suffix) => {
      const input = form.querySelector(`input[name$="-${suffix}"]:checked`);
      return input ? input.value : null;
    };
    let found = [], shown = 0;

    const grow = () => {
      const baseline = chosen("baseline"), part = document.createDocumentFragment();
      const next = found.slice(shown, shown + PAGE).map((q) => card(q, data, baseline));
      part.append(...next);
      list.append(part);
      shown += next.length;
      more.hidden = shown >= found.length;
      more.textContent = `Show ${Math.min(PAGE, found.length - shown)} more`;
      status.textContent = found.length
        ? `Showing ${shown.toLocaleString("en")} of ${found.length.toLocaleString("en")} queries.`
        : "No query matches.";
      return next[0];
    };

    const update = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const baseline = chosen("baseline"), outcome = chosen("outcome") || "all";
      const matching = words.length ? data.queries.filter((q) => words.every((w) => haystack(q).includes(w))) : data.queries;
      const counts = { all: matching.length };
      for (const q of matching) counts[q.outcomes[baseline]] = (counts[q.outcomes[baseline]] || 0) + 1;
      for (const node of form.querySelectorAll("[data-count]")) node.textContent = (counts[node.dataset.count] || 0).toLocaleString("en");
      found = outcome === "all" ? matching : matching.filter((q) => q.outcomes[baseline] === outcome);
      shown = 0;
      list.replaceChildren();
      grow();
    };

    let waiting = 0;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", (event) => { if (event.target !== search) update(); });
    search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 120); });
    more.addEventListener("click", () => {
      const first = grow();
      if (first) first.focus({ preventScroll: true });
    });
    form.reset(); // browsers remember radio buttons over a reload; the list would then disagree with them
    form.hidden = false;
    update();
  };

  for (const root of document.querySelectorAll("[data-queries]")) start(root);
})();
