/**
 * One file out of the many that the bridge is made of: Node.js starts it in three fifths of the time, and how long a
 * bridge takes to start is how long its VMs wait for the one that follows it. What is seldom loaded stays outside: the
 * readers of configuration files and the log for terminals.
 */
import { readFile } from "node:fs/promises";
import { dirname, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build, type Plugin } from "esbuild";

/** The bridge as the compiler leaves it. */
export const BRIDGE_MAIN = fileURLToPath(new URL("../../host/bridge/main.js", import.meta.url));
const SELDOM = ["ajv", "jsonc-parser", "pino-pretty"];
/** What CommonJS modules have by themselves. */
const COMMON_JS = `import { createRequire as createRequire_ } from "node:module";
const require = createRequire_(import.meta.url);
const __filename = import.meta.filename, __dirname = import.meta.dirname;`;

/** Writes `target`, a file of the same package. */
export async function bundle(source: string, target: string): Promise<void> {
  await build({
    entryPoints: [source],
    outfile: target,
    bundle: true,
    format: "esm",
    platform: "node",
    target: "node20",
    external: SELDOM.flatMap((name) => [name, `${name}/*`]),
    banner: { js: COMMON_JS },
    plugins: [keepsPlaces(target)],
    logLevel: "error",
    allowOverwrite: true,
  });
}

/** Files that are found by the place of a module are found from the bundle's. */
function keepsPlaces(target: string): Plugin {
  return {
    name: "keeps-places",
    setup({ onLoad }) {
      onLoad({ filter: /\/build\/.*\.js$/ }, async ({ path }) => {
        const text = await readFile(path, "utf8");
        const place = JSON.stringify(relative(dirname(target), path));
        return {
          contents: text.replaceAll("import.meta.url", `new URL(${place}, import.meta.url).href`),
          loader: "js",
        };
      });
    },
  };
}
