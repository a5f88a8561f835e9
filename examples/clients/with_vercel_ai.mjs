// Vercel's AI SDK: its provider for compatible servers (chat), and its provider for OpenAI (responses) with our base URL.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";
import { key, model as name, question as prompt, tokens as maxOutputTokens, tryAll, url } from "./cells.mjs";

const compatible = createOpenAICompatible({ name: "cowest", baseURL: url, apiKey: key, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL: url, apiKey: key });
const schema = z.object({ answer: z.enum(["yes", "no"]) });
const tools = { judge: tool({ description: "Give a verdict", inputSchema: schema }) };

async function streamed(model) {
  let text = "";
  for await (const piece of streamText({ model, prompt, maxOutputTokens, onError: ({ error }) => { throw error; } }).textStream) text += piece;
  return text;
}
const structured = async (model) => (await generateText({ model, prompt, output: Output.object({ schema }) })).output.answer;
const called = async (model) => (await generateText({ model, prompt, tools, toolChoice: "required" })).toolCalls[0].input.answer;

await tryAll({
  chat: async () => (await generateText({ model: compatible(name), prompt, maxOutputTokens })).text,
  stream: () => streamed(compatible(name)),
  schema: () => structured(compatible(name)),
  tools: () => called(compatible(name)),
  responses: async () => (await generateText({ model: openai.responses(name), prompt, maxOutputTokens })).text,
  responses_stream: () => streamed(openai.responses(name)),
  responses_schema: () => structured(openai.responses(name)),
  responses_tools: () => called(openai.responses(name)),
  completions: async () => (await generateText({ model: compatible.completionModel(name), prompt, maxOutputTokens })).text,
});
