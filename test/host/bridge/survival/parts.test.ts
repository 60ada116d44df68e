/** The parts by themselves, with a bridge that lives: what is wrong here has nothing to do with deaths. */
import test from "ava";
import { Crashes } from "./crashes.js";
import { EVERYTHING, PARTS } from "./parts.js";

test("each part leaves nothing behind, twice", async (t) => {
  const crashes = await Crashes.start(t);
  for (let round = 0; round < 2; round++)
    for (const part of [...PARTS, EVERYTHING]) t.false(await crashes.play(part), part.name);
});
