// OpenAI's package for JavaScript.
import OpenAI from "openai";
import { key, model, question, tokens, tryAll, url } from "./cells.mjs";

const client = new OpenAI({ baseURL: url, apiKey: key });
const messages = [{ role: "user", content: question }];
const parameters = { type: "object", properties: { answer: { enum: ["yes", "no"] } }, required: ["answer"], additionalProperties: false };

await tryAll({
  chat: async () => (await client.chat.completions.create({ model, messages, max_tokens: tokens })).choices[0].message.content,
  stream: async () => {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: tokens, stream: true })) text += chunk.choices[0]?.delta?.content ?? "";
    return text;
  },
  schema: async () => {
    const response_format = { type: "json_schema", json_schema: { name: "verdict", schema: parameters, strict: true } };
    return (await client.chat.completions.parse({ model, messages, response_format })).choices[0].message.parsed.answer;
  },
  tools: async () => {
    const tools = [{ type: "function", function: { name: "judge", parameters } }];
    return (await client.chat.completions.create({ model, messages, tools, tool_choice: "required" })).choices[0].message.tool_calls[0].function.arguments;
  },
  responses: async () => (await client.responses.create({ model, input: question, max_output_tokens: tokens })).output_text,
  responses_stream: async () => {
    const stream = client.responses.stream({ model, input: question, max_output_tokens: tokens });
    let deltas = "";
    for await (const event of stream) if (event.type === "response.output_text.delta") deltas += event.delta;
    const done = await stream.finalResponse();
    return done.output_text === deltas && deltas;
  },
  responses_schema: async () => JSON.parse((await client.responses.create({ model, input: question, text: { format: { type: "json_schema", name: "verdict", schema: parameters, strict: true } } })).output_text).answer,
  responses_tools: async () => (await client.responses.create({ model, input: question, tools: [{ type: "function", name: "judge", parameters, strict: true }], tool_choice: "required" })).output[0].arguments,
  completions: async () => (await client.completions.create({ model, prompt: question, max_tokens: tokens })).choices[0].text,
});
