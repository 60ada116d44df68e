/** docs/protocol/ is what the tables say, and names every message that there is. */
import { readFileSync } from "node:fs";
import test from "ava";
import { protocolFiles } from "../../../scripts/protocol/main.js";
import { LinkCommand } from "../../../shared/spec/link.js";
import { VFIO_USER, VIRTIO_VFIO_USER } from "../../../shared/spec/messages.js";
import { Command } from "../../../shared/spec/vfio-user.js";

test("docs/protocol/ is current: otherwise run `npm run protocol`", (t) => {
  for (const [name, text] of Object.entries(protocolFiles())) {
    const there = readFileSync(new URL(`../../../../docs/protocol/${name}`, import.meta.url), "utf8");
    t.true(there === text, `${name} is out of date`);
  }
});

test("every command has its messages", (t) => {
  const sorted = (numbers: number[]) => numbers.sort((a, b) => a - b);
  const commands = Object.values(Command) as number[];
  t.deepEqual(sorted(VFIO_USER.messages.map(({ command }) => command)), sorted([...commands]));
  const onLink = commands.filter((command) => command !== Command.VERSION);
  t.deepEqual(
    sorted(VIRTIO_VFIO_USER.messages.map(({ command }) => command)),
    sorted([...onLink, ...Object.values(LinkCommand)]),
  );
});
