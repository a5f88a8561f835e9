const page = document.documentElement.dataset;
const DEGRADED = {
  weak_down: "The small model is down", weak_timeout: "The small model took too long", weak_breaker_open: "The small model has failed repeatedly",
  weak_prompt_too_long: "The question is too long for the small model", weak_rejected: "The small model cannot take this question",
  draft_empty: "The draft was empty", draft_refused: "The small model refused", draft_too_long: "The draft was too long",
  draft_repetition: "The draft went round in circles", no_question: "There was nothing to draft for",
  draft_no_room: "The draft did not fit beside the question",
};
let models = null, examples = {}, running = null, judged = null, verdict = null, answered = null;

class Column {
  constructor(name) {
    this.box = $(name);
    for (const part of ["state", "text", "note"]) this[part] = this.box.querySelector("." + part);
    this.time = this.box.querySelector("[data-is=time]");
    this.tokens = this.box.querySelector("[data-is=tokens]");
  }
  begin(what) {
    this.text.replaceChildren(document.createTextNode("")); // model text is only ever the data of a text node
    this.note.hidden = true;
    this.text.tabIndex = -1;
    this.text.removeAttribute("role");
    this.time.textContent = this.tokens.textContent = "–";
    this.box.setAttribute("aria-busy", "true");
    this.what = what;
    this.began = performance.now();
    this.tick();
    this.timer = setInterval(() => this.tick(), 100);
  }
  tick() { this.state.textContent = `${this.what} ${((performance.now() - this.began) / 1000).toFixed(1)} s`; }
  write(text) {
    const down = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 40;
    this.what = "writing";
    this.text.firstChild.appendData(text);
    if (down) this.text.scrollTop = this.text.scrollHeight;
    if (this.text.scrollHeight > this.text.clientHeight) { // it scrolls by keyboard, too, and then needs a name
      this.text.tabIndex = 0;
      this.text.setAttribute("role", "region");
      this.text.setAttribute("aria-labelledby", this.box.getAttribute("aria-labelledby"));
    }
  }
  end(state, note, bad) {
    clearInterval(this.timer);
    this.box.removeAttribute("aria-busy");
    this.state.textContent = state;
    if (note) this.say(note, bad);
  }
  say(note, bad) {
    this.note.textContent = note;
    this.note.classList.toggle("bad", Boolean(bad));
    this.note.hidden = false;
  }
  count(ms, first, usages) {
    const seconds = (n) => n < 1 ? "under 1\u00a0ms" : n < 999.5 ? Math.round(n) + "\u00a0ms" : (n / 1000).toFixed(n < 9950 ? 2 : 1) + "\u00a0s";
    if (typeof ms === "number") this.time.textContent = seconds(ms) + (typeof first === "number" ? `, first words ${seconds(first)}` : "");
    const known = usages.filter(Boolean);
    const sum = (key) => known.reduce((n, usage) => n + usage[key], 0);
    this.tokens.textContent = known.length ? `${sum("prompt_tokens")} in, ${sum("completion_tokens")} out` : "not reported";
  }
}
const weak = new Column("weak"), strong = new Column("strong"), both = new Column("both");

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: "Bearer " + key } : {}) };
}

class Failure extends Error {}

async function failure(response) {
  let told = null;
  try { told = (await response.json()).error; } catch { /* no JSON: the status has to do */ }
  if (response.status === 401) $("settings").hidden = $("key-field").hidden = false;
  const later = response.headers.get("Retry-After");
  const message = `${told?.message ?? response.statusText} (HTTP ${response.status}${told?.code ? ", " + told.code : ""}${later ? `; try again in ${later} s` : ""})`;
  return Object.assign(new Failure(message), { status: response.status });
}

async function call(path, options) {
  let response;
  try { response = await fetch(path, { headers: headers(), ...options }); }
  catch (error) { throw error.name === "AbortError" ? error : new Failure("The server cannot be reached. Is it still running?"); }
  if (!response.ok) throw await failure(response);
  return response;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", ended = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") { ended = true; continue; }
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Failure(event.error.message);
      yield event;
    }
  }
  if (!ended) throw new Failure("The answer broke off.");
}

async function ask(model, column, extension, onDraft, signal) {
  const body = {
    model, stream: true, stream_options: { include_usage: true }, cowest: { details: true, ...extension },
    messages: messages(), ...sampling(),
  };
  let details = null, id = null;
  const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  for await (const event of events(response)) {
    id = event.id ?? id;
    const text = event.choices?.[0]?.delta?.content;
    if (text) column.write(text);
    if (event.cowest?.timings_ms) details = event.cowest;
    else if (event.cowest) onDraft(event.cowest.draft);
  }
  return { details, id };
}

async function settled(column, work) {
  try { return await work(); }
  catch (error) {
    if (error.name === "AbortError") column.end("stopped");
    else column.end("failed", error instanceof Failure ? error.message : `The answer cannot be read (${error.message}).`, true);
    return null;
  }
}

async function askStrong(model, extension, signal) {
  if (!model) { strong.end("", "The strong model alone is not served here (--systems)."); return null; }
  strong.begin("waiting");
  return settled(strong, async () => {
    const { details } = await ask(model, strong, extension, () => {}, signal);
    strong.end("done");
    if (details) strong.count(details.timings_ms.total, details.timings_ms.first_token, [details.usage.strong]);
    return true;
  });
}

async function askBoth(model, extension, signal) {
  weak.begin("drafting");
  both.begin("waiting for the draft");
  let drafted = false;
  const onDraft = (draft) => { drafted = true; weak.write(draft); weak.end("done"); both.what = "waiting"; };
  const done = await settled(both, async () => {
    const { details, id } = await ask(model, both, { ...extension, early_draft: true }, onDraft, signal);
    both.end("done");
    if (details) finish(details);
    return id;
  });
  if (!drafted && weak.box.hasAttribute("aria-busy")) weak.end(done ? "no draft" : both.state.textContent);
  return done;
}

function finish(details) {
  both.count(details.timings_ms.total, details.timings_ms.first_token, [details.usage.weak, details.usage.strong]);
  if (details.timings_ms.draft !== null) weak.count(details.timings_ms.draft, null, [details.usage.weak]);
  if (details.mode === "weak_alone") both.say(details.degraded ? `The strong model failed (${details.degraded.replace("strong_", "")}): this is the draft.` : "The small model answers alone under this name.");
  else if (details.mode === "strong_alone") {
    const why = details.degraded ? (DEGRADED[details.degraded] ?? details.degraded) : "This name has no small model";
    weak.end("no draft", `${why}: the strong model answered alone.`, Boolean(details.degraded));
    both.say("Without a draft.");
  }
}

const parent = (id) => id.slice(0, id.lastIndexOf("."));

async function loadModels() {
  const cards = (await (await call("v1/models")).json()).data, listed = cards.map((card) => card.id);
  examples = Object.fromEntries(cards.map((card) => [card.id, card.cowest?.examples ?? []]));
  const alone = (id) => /\.(weak|strong)$/.test(id) && listed.includes(parent(id)) && !listed.some((other) => other.startsWith(id + "."));
  models = listed;
  const shown = listed.filter((id) => !alone(id));
  $("model").replaceChildren(...shown.map((id) => new Option(id, id)));
  $("model-field").hidden = shown.length < 2;
  $("settings").hidden = shown.length < 2 && $("key-field").hidden;
  const damaged = fromLink(); // now that the models are there, of which it names one
  if (damaged) say(damaged, true);
  showExamples(examples[$("model").value] ?? []);
  return damaged;
}

const strongOf = (id) => [id + ".strong", parent(id) + ".strong"].find((other) => models.includes(other)) ?? null;

function say(text, bad) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", Boolean(bad));
}

async function onAsk(event) {
  event.preventDefault();
  if (running) return;
  if (!$("question").value.trim()) { say("Write a question first.", true); $("question").focus(); return; }
  running = new AbortController();
  busy(true);
  resetFeedback();
  answered = null;
  $("follow").hidden = true;
  say("Asking …");
  try {
    if (!models) await loadModels();
    const choices = $("choices").value.split("\n").map((line) => line.trim()).filter(Boolean);
    const context = $("context").value.trim();
    const extension = { ...(context ? { context } : {}), ...(choices.length ? { choices } : {}) };
    const model = $("model").value, asked = state();
    const [id, alone] = await Promise.all([askBoth(model, extension, running.signal), askStrong(strongOf(model), extension, running.signal)]);
    const failed = (!id ? 1 : 0) + (strongOf(model) && !alone ? 1 : 0);
    say(running.signal.aborted ? "Stopped." : failed ? "Not all of it was answered; the columns say why." : "All answers are there.", failed && !running.signal.aborted);
    const texts = Object.fromEntries([["weak", weak], ["strong", strong], ["both", both]].map(([name, column]) => [name, column.text.textContent]));
    if (id && texts.both) {
      answered = { question: asked.question.trim(), answer: texts.both };
      $("follow").hidden = false;
      remember(asked, texts);
      showHistory(chosen);
    }
    if (id && page.collect === "yes") { judged = id; $("feedback").hidden = false; }
  } catch (error) {
    say(error instanceof Failure ? error.message : `Something on this page failed: ${error.message}`, true);
    if (error.status === 401) $("key").focus();
  }
  running = null;
  busy(false);
}

function busy(now) { // aria-disabled and not disabled: a button that has the focus keeps it
  $("ask").setAttribute("aria-disabled", String(now));
  $("stop").setAttribute("aria-disabled", String(!now));
}

function resetFeedback() {
  judged = verdict = null;
  $("feedback").hidden = true;
  $("answer").value = $("told").textContent = "";
  for (const id of ["helpful", "unhelpful"]) $(id).setAttribute("aria-pressed", "false");
}

async function sendFeedback() {
  const answer = $("answer").value.trim(), told = $("told");
  const body = { id: judged, ...(verdict === null ? {} : { helpful: verdict }), ...(answer ? { answer } : {}) };
  told.textContent = "";
  try {
    await call("v1/feedback", { method: "POST", body: JSON.stringify(body) });
    told.textContent = "Kept. Thank you; what you send last counts.";
    told.classList.remove("bad");
  } catch (error) {
    told.textContent = error.message;
    told.classList.add("bad");
  }
}

function judge(helpful) {
  verdict = helpful;
  $("helpful").setAttribute("aria-pressed", String(helpful));
  $("unhelpful").setAttribute("aria-pressed", String(!helpful));
  sendFeedback();
}

function followUp() {
  turns = [...turns, answered];
  answered = null;
  $("follow").hidden = true;
  $("question").value = "";
  showTurns();
  say("The answer is part of the conversation now. Write what you ask next.");
  $("question").focus();
}

function chosen(entry) {
  if (running) return;
  restore(entry.state);
  resetFeedback();
  for (const [name, column] of [["weak", weak], ["strong", strong], ["both", both]]) {
    column.begin("");
    const text = entry.answers?.[name];
    if (typeof text === "string") column.write(text);
    column.end("from the history");
  }
  answered = typeof entry.answers?.both === "string" ? { question: entry.state.question.trim(), answer: entry.answers.both } : null;
  $("follow").hidden = answered === null;
  say("This is from the history.");
  $("question").focus();
}

$("form").addEventListener("submit", onAsk);
$("form").addEventListener("invalid", (event) => { event.target.closest("details").open = true; }, true); // a closed one hides what is wrong
$("follow").addEventListener("click", followUp);
$("fresh").addEventListener("click", () => { turns = []; showTurns(); say(""); $("question").focus(); });
$("share").addEventListener("click", async () => { const told = await share(); say(told); });
$("remember").addEventListener("change", () => { keep($("remember").checked ? [] : null); showHistory(chosen); });
$("forget").addEventListener("click", () => { keep([]); showHistory(chosen); $("remember").focus(); });
$("model").addEventListener("change", () => showExamples(examples[$("model").value] ?? []));
$("stop").addEventListener("click", () => running?.abort());
$("helpful").addEventListener("click", () => judge(true));
$("unhelpful").addEventListener("click", () => judge(false));
$("correction").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("answer").value.trim()) sendFeedback();
  else $("answer").focus();
});
for (const id of ["question", "context", "choices", "system"]) {
  $(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
}
$("key").addEventListener("change", () => { // with the right key the models are there before the first question
  models = null;
  loadModels().then((damaged) => { if (!damaged && $("status").classList.contains("bad")) say(""); }, (error) => { if (!running) say(error.message, true); });
});
showHistory(chosen);
$("base").textContent = new URL("v1", location.href).href;
$("kept").hidden = page.collect !== "yes";
if (page.key === "yes") $("settings").hidden = $("key-field").hidden = false;
else loadModels().catch((error) => say(error.message, true));
