// What the official clients for TypeScript see on a server. Usage: typescript.mjs HOME URL|COMMAND
// 1|legacy|auto < CALLS, where COMMAND is an array of JSON. `1` is the client of SDK 1.x, the others are that of 2.x in its two modes.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [home, target, mode] = process.argv.slice(2);
const require = createRequire(`${home}/`);

// Where the modules of each generation are: the client, and its two transports.
const MODULES = {
  1: ["sdk/client/index.js", "sdk/client/streamableHttp.js", "sdk/client/stdio.js"],
  2: ["client", "client", "client/stdio"],
};

function makeClient() {
  const found = MODULES[mode === "1" ? 1 : 2].map((name) => require(`@modelcontextprotocol/${name}`));
  const { Client, StreamableHTTPClientTransport, StdioClientTransport } = Object.assign({}, ...found);
  const client = new Client({ name: "interop", version: "1" }, mode === "1" ? {} : { versionNegotiation: { mode } });
  if (!target.startsWith("[")) return [client, new StreamableHTTPClientTransport(new URL(target))];
  const [command, ...args] = JSON.parse(target);
  return [client, new StdioClientTransport({ command, args, env: process.env, stderr: "ignore" })];
}

async function answer(client, call) {
  switch (call.method) {
    case "tools/call": {
      const progress = [];
      const note = ({ progress: done, total, message }) => progress.push([done, total ?? null, message ?? null]);
      const params = { name: call.name, arguments: call.arguments };
      const result =
        mode === "1"
          ? await client.callTool(params, undefined, { onprogress: note })
          : await client.callTool(params, { onprogress: note });
      return { ...result, progress };
    }
    case "resources/read":
      return client.readResource({ uri: call.uri });
    case "prompts/get":
      return client.getPrompt({ name: call.name, arguments: call.arguments });
    case "completion/complete":
      return client.complete({ ref: { type: "ref/prompt", name: call.name }, argument: call.argument });
  }
}

const [client, transport] = makeClient();
await client.connect(transport);
const seen = {
  tools: (await client.listTools()).tools,
  resources: (await client.listResources()).resources,
  resource_templates: (await client.listResourceTemplates()).resourceTemplates,
  prompts: (await client.listPrompts()).prompts,
  answers: [],
};
for (const call of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    seen.answers.push(await answer(client, call));
  } catch (error) {
    seen.answers.push({ error: { code: error.code, message: error.message } });
  }
}
await client.close();
console.log(JSON.stringify(seen));
process.exit(0);
