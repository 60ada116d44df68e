/** What a device's author is told of an error in the author's own code: the message, and the place in that code. */
import { fileURLToPath } from "node:url";

/** The package's own files: a place in them says nothing to the author. */
const PACKAGE = new URL("../", import.meta.url).href;
const FRAME = /(?:\(|\s)((?:file:\/\/)?\/[^()]*:\d+:\d+)\)?$/;

/**
 * The error's message with the innermost place of the author's, if there is one: "x is not defined (at
 * /home/a/dev.js:3:5)".
 */
export function placeOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const message = error.message.trim().replace(/\s*\n\s*/g, "; ");
  const what = error.name === "Error" || error.name === "UserError" ? message : `${error.name}: ${message}`;
  const frames = (error.stack ?? "").split("\n").map((line) => FRAME.exec(line)?.[1]);
  const place = frames.find((frame) => frame !== undefined && !isOurs(frame));
  return place === undefined ? what : `${what} (at ${place.startsWith("file:") ? toPath(place) : place})`;
}

function isOurs(frame: string): boolean {
  const url = frame.startsWith("file:") ? frame : `file://${frame}`;
  return url.startsWith(PACKAGE) || url.includes("/node_modules/virtio-vfio-user/");
}

/** "file:///home/a/dev.js:3:5" as a path. */
function toPath(frame: string): string {
  const [, url, position] = /^(.*?)(:\d+:\d+)$/.exec(frame) ?? [];
  return fileURLToPath(url) + position;
}
