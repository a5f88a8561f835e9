// The same as cells.py for JavaScript.
export const url = process.env.COWEST_BASE_URL, key = process.env.COWEST_API_KEY ?? "none", model = process.env.COWEST_MODEL;
export const question = "May a patient with Kasti take 45 mg of Velmo?", tokens = 24;

export async function tryAll(cells) {
  for (const [cell, run] of Object.entries(cells)) {
    let state, why = "";
    try {
      const found = await run();
      state = found ? "works" : "fails";
      if (!found) why = "nothing came back";
    } catch (error) {
      why = `${error.name}: ${error.message} ${error.responseBody ?? ""}`;
      state = JSON.stringify([why, error.code, error.data]).includes("unsupported_parameter") ? "refused" : "fails";
    }
    console.log(JSON.stringify({ cell, state, why: why.replace(/\s+/g, " ").slice(0, 300) }));
  }
}
