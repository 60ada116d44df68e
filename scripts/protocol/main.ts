/**
 * `npm run protocol`: what other programs read of the protocol, from the tables in shared/spec, into docs/protocol/.
 */
import "../../shared/no-debugger.js";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { PROTOCOLS } from "../../shared/spec/messages.js";
import { kaitai, kaitaiCapture } from "./kaitai.js";
import { wireshark } from "./wireshark.js";

const ROOT = new URL("../../../", import.meta.url);

/** Texts by the name of their file in docs/protocol/. */
export function protocolFiles(): Readonly<Record<string, string>> {
  return {
    ...Object.fromEntries(PROTOCOLS.map((protocol) => [`${protocol.id}.ksy`, kaitai(protocol)])),
    "vfio_user_capture.ksy": kaitaiCapture(),
    "vfio-user.lua": wireshark(readFileSync(new URL("scripts/protocol/dissector.lua", ROOT), "utf8"), PROTOCOLS),
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const directory = new URL("docs/protocol/", ROOT);
  mkdirSync(directory, { recursive: true });
  for (const [name, text] of Object.entries(protocolFiles())) writeFileSync(new URL(name, directory), text);
}
