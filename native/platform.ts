/**
 * Where the compiled files are: a folder for each platform, the one of the machine that built them and those for which
 * they were cross-built (scripts/package/prebuild.sh).
 */
import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const PLATFORM = `${process.platform}-${process.arch}`;

/** The path of a compiled file for this platform. */
export function platformFile(name: string): string {
  return fileURLToPath(new URL(`./${PLATFORM}/${name}`, import.meta.url));
}

/** The addon; throws an Error that says for what it was built, where that is not this platform. */
export function loadAddon(): unknown {
  const path = platformFile("addon.node");
  try {
    return createRequire(import.meta.url)(path);
  } catch (error) {
    const [reason] = (error instanceof Error ? error.message : String(error)).split("\n", 1);
    const why = existsSync(path) ? reason : `it was built for ${builtFor().join(" and ") || "nothing"}`;
    const cure = 'Build it on this machine: "npm run build" in a clone.';
    throw new Error(`virtio-vfio-user's addon cannot be loaded on ${PLATFORM}: ${why}. ${cure}`);
  }
}

function builtFor(): string[] {
  const folder = fileURLToPath(new URL(".", import.meta.url));
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name);
}
