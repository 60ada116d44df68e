/** The bridge's state, as SIGUSR1 has it written: what an operator looks for when a device does not come. */
import test from "ava";
import { memory, setUp } from "./set-up.js";

const SIZE = 2 * 1024 * 1024;

test("sessions, the link's state, maps, doorbells, queues and limits", async (t) => {
  const { bridge, connect } = await setUp(t);
  const state = async (count: number) => {
    bridge.process.kill("SIGUSR1");
    await bridge.logged(/"msg":"state"/, count);
    const lines = bridge.log.split("\n").filter((line) => line.includes('"msg":"state"'));
    return JSON.parse(lines[count - 1]).state;
  };
  const before = await state(1);
  t.is(before.sessions.length, 1);
  t.like(before.sessions[0], { socketPath: bridge.socketPath, server: { connected: false }, link: { state: "ready" } });
  t.true(before.limits.MAX_DMA_MAPS > 0);
  const client = await connect();
  await client.mapMemory({ address: 0x10000, size: SIZE, fd: memory(t, SIZE).fd });
  const [{ server, link, window, frontEnd }] = (await state(2)).sessions;
  t.like(server, { connected: true, maps: 1 });
  t.like(link, {
    state: "connected",
    announced: true,
    client: { maps: 1, mapsInWindow: 1 },
    doorbells: { attached: true },
  });
  t.like(link.client.firstMaps[0], { address: "0x10000", size: SIZE, readable: true, writable: true });
  t.like(window, { permitted: true, maps: 1, waiting: 0 });
  t.like(frontEnd.queues[0], { enabled: true, running: true, kick: true });
});
