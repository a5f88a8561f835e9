"use strict";
// What is asked, as one object: the conversation, the fields and the model. A link holds it, and the history, where it is wanted.
const $ = (id) => document.getElementById(id);
const FIELDS = ["question", "context", "choices", "system", "temperature", "top_p", "max_tokens", "seed"];
const STORE = "cowest.history", MOST_KEPT = 30, LONGEST_LINK = 16000;
let turns = []; // {question, answer}: what came before

function messages() {
  const system = $("system").value.trim(), earlier = turns.flatMap(({ question, answer }) => [["user", question], ["assistant", answer]]);
  return [...(system ? [["system", system]] : []), ...earlier, ["user", $("question").value.trim()]].map(([role, content]) => ({ role, content }));
}

function sampling() {
  const told = ["temperature", "top_p", "max_tokens", "seed"].filter((id) => $(id).value.trim());
  return Object.fromEntries(told.map((id) => [id, Number($(id).value)]));
}

function state() {
  const filled = FIELDS.filter((id) => $(id).value.trim()).map((id) => [id, $(id).value]);
  return { model: $("model").value, turns, ...Object.fromEntries(filled) };
}

function restore(found) { // from a link or the store: nothing in it is to be trusted, and all of it ends in fields and text nodes
  if (typeof found !== "object" || found === null) return;
  for (const id of FIELDS) $(id).value = typeof found[id] === "string" ? found[id] : "";
  const said = Array.isArray(found.turns) ? found.turns : [];
  turns = said.filter((turn) => typeof turn?.question === "string" && typeof turn?.answer === "string").map(({ question, answer }) => ({ question, answer }));
  if ([...$("model").options].some((option) => option.value === found.model)) $("model").value = found.model;
  $("how").open = ["system", "temperature", "top_p", "max_tokens", "seed"].some((id) => $(id).value);
  $("about").open = ["context", "choices"].some((id) => $(id).value);
  showTurns();
}

function paragraph(kind, text) {
  const made = document.createElement("p");
  made.className = kind;
  made.textContent = text;
  return made;
}

function showTurns() {
  $("turns").replaceChildren(...turns.map(({ question, answer }) => {
    const item = document.createElement("li");
    item.append(paragraph("asked", question), paragraph("answered", answer));
    return item;
  }));
  $("conversation").hidden = turns.length === 0;
}

const encoded = (text) => btoa(Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("")).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
const decoded = (text) => new TextDecoder().decode(Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0)));

function fromLink() { // a fragment is never sent to a server
  if (!location.hash.startsWith("#s=")) return;
  try { restore(JSON.parse(decoded(location.hash.slice(3)))); } catch { return "The link is damaged: what it holds cannot be read."; }
}

async function share() {
  const text = encoded(JSON.stringify(state()));
  if (text.length > LONGEST_LINK) return "This is too long for a link.";
  history.replaceState(null, "", "#s=" + text);
  try { await navigator.clipboard.writeText(location.href); } catch { return "The link is in the address bar. It holds question, conversation and settings, and no key."; }
  return "The link is copied. It holds question, conversation and settings, and no key.";
}

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE));
    return Array.isArray(found) ? found.filter((entry) => typeof entry?.state?.question === "string") : null;
  } catch { return null; }
}

function keep(entries) {
  try {
    if (entries) localStorage.setItem(STORE, JSON.stringify(entries.slice(0, MOST_KEPT)));
    else localStorage.removeItem(STORE);
  } catch { /* full, or switched off: there is no history, and nothing else is lost */ }
}

function remember(asked, answers) {
  if ($("remember").checked) keep([{ at: Date.now(), state: asked, answers }, ...(kept() ?? [])]);
}

function showHistory(onChosen) {
  const entries = kept();
  $("remember").checked = entries !== null;
  $("history").replaceChildren(...(entries ?? []).map((entry) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const date = new Date(entry.at);
    button.type = "button";
    button.textContent = `${isNaN(date) ? "" : date.toLocaleString() + ": "}${entry.state.question.slice(0, 160)}`;
    button.addEventListener("click", () => onChosen(entry));
    item.append(button);
    return item;
  }));
  $("forget").hidden = !entries?.length;
}

function showExamples(examples) {
  $("examples").querySelector(".tries").replaceChildren(...examples.map((example) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = example.input.length > 110 ? example.input.slice(0, 109) + "…" : example.input;
    button.addEventListener("click", () => {
      $("question").value = example.input;
      $("context").value = example.context ?? "";
      $("choices").value = (example.choices ?? []).join("\n");
      $("about").open = Boolean(example.context || example.choices?.length);
      $("question").focus();
    });
    return button;
  }));
  $("examples").hidden = examples.length === 0;
}
