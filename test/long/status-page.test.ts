/**
 * The status page in a browser, by clicks and keys, in light and dark, with a driver VM that does something; and what
 * promtool has to say of /metrics. The pictures that it takes are left in $STATUS_PAGE_PICTURES, if that is set.
 */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import puppeteer, { type Page } from "puppeteer-core";
import { type BrowserTools, prepareBrowser } from "../../scripts/vm/environment.js";
import { Region } from "../../shared/spec/vfio-user.js";
import { PROGRAMS, ServiceProcess, socketArgs } from "../fakes/service-process.js";
import { memory, setUp } from "../host/bridge/set-up.js";
import { folder } from "../native/helpers.js";

/** What functions have that run in the page. */
// biome-ignore lint/suspicious/noExplicitAny: the browser's types are not these tests'
declare const document: any, getComputedStyle: any, innerWidth: number;

const MIB = 1024 * 1024;
let tools: BrowserTools;

test.before(async () => {
  tools = await prepareBrowser();
});

async function openPage(t: ExecutionContext, url: string, scheme: "light" | "dark"): Promise<Page> {
  const { program, args, environment } = tools.chromium;
  const browser = await puppeteer.launch({
    executablePath: program,
    args: [...args, "--disable-gpu"],
    env: { ...process.env, ...environment },
    headless: "shell",
  });
  t.teardown(() => browser.close());
  const page = await browser.newPage();
  await page.setViewport({ width: 1120, height: 1180 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  page.on("pageerror", (error) => t.fail(`${error}`));
  page.on("console", (message) => {
    if (message.type() === "error") t.log(message.text());
  });
  page.on("request", (request) => t.true(request.url().startsWith(url), request.url()));
  await page.goto(url);
  return page;
}

const textOf = (page: Page, selector: string) => page.$eval(selector, (found) => found.textContent ?? "");
const until = (page: Page, selector: string, pattern: string) =>
  page.waitForFunction(
    (where, what) => new RegExp(what, "s").test(document.querySelector(where)?.textContent ?? ""),
    { timeout: 30_000 },
    selector,
    pattern,
  );

async function picture(page: Page, name: string): Promise<void> {
  const folder = process.env.STATUS_PAGE_PICTURES;
  if (folder !== undefined) await page.screenshot({ path: join(folder, `${name}.png`) as `${string}.png` });
}

/** A bridge with two sessions, one of which has a driver VM that reads all the time. */
async function busyBridge(t: ExecutionContext) {
  const parts = await setUp(t, { sessions: 2, args: ["--metrics=0"] });
  const { bridge, connect } = parts;
  const url = /http:\/\/127\.0\.0\.1:\d+\//.exec(bridge.log)?.[0] ?? "";
  const client = await connect();
  for (let n = 0; n < 3; n++) {
    await client.mapMemory({ address: 0x100000 + n * 2 * MIB, size: MIB, fd: memory(t, MIB).fd });
  }
  await t.throwsAsync(client.unmapMemory(0x1000, 4097));
  let isOver = false;
  const reading = (async () => {
    while (!isOver) {
      for (let n = 0; n < 20; n++) await client.regionRead(Region.BAR0, 0, 4);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  })();
  t.teardown(async () => {
    isOver = true;
    await reading.catch(() => {});
  });
  return { ...parts, url, client };
}

test("it shows who is there, and what they do; sessions are chosen by click and by keyboard", async (t) => {
  const { url } = await busyBridge(t);
  const page = await openPage(t, url, "light");
  await until(page, "#connection", "live");
  await until(page, "#sessions tbody tr:first-child", "vfio-user-0.sock.*connected.*connected.*[1-9]");
  await until(page, "#command", "REGION_READ");
  t.is(await page.$eval("#command", ({ value }: { value?: string }) => value), "REGION_READ");
  t.regex(await textOf(page, "#maps"), /0x100000.*1 MiB.*read, write.*0x500000/s);
  t.regex(await textOf(page, "#warnings"), /warn refused a command of the client/);
  const words = await page.$eval("#picture svg", (svg) => svg.getAttribute("aria-label"));
  t.regex(words ?? "", /^Driver VM, connected; bridge; device VM, connected\. [\d.]+k? commands\/s/);
  await page.waitForFunction(
    () => (document.querySelector("#rates polyline")?.getAttribute("points") ?? "").split(" ").length > 4,
  );
  await picture(page, "light");

  await page.click("#sessions tbody tr:nth-child(2) button");
  t.is(await textOf(page, "#session-title"), "vfio-user-1.sock");
  t.regex(await textOf(page, "#maps-summary"), /^0 maps/);
  t.is(
    await page.$eval("#sessions tbody tr:nth-child(2) button", (button) => button.getAttribute("aria-pressed")),
    "true",
  );
  // The choice is in the address, so that it can be kept.
  t.is(new URL(page.url()).hash, "#vfio-user-1.sock");

  // By keyboard alone: the skip link comes first, then the button that pauses, then the sessions.
  await page.reload();
  await until(page, "#session-title", "vfio-user-1.sock");
  await page.keyboard.press("Tab");
  t.is(await page.evaluate(() => document.activeElement?.textContent), "To the session");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Space");
  await until(page, "#connection", "paused");
  await page.keyboard.press("Enter");
  await until(page, "#connection", "live");
  // A table that scrolls may be a stop of its own.
  for (let n = 0; n < 3; n++) {
    await page.keyboard.press("Tab");
    const name = await page.evaluate(() => document.activeElement?.textContent);
    if (name === "vfio-user-0.sock") break;
  }
  await page.keyboard.press("Enter");
  await until(page, "#session-title", "vfio-user-0.sock");
  // What is shown anew does not take the focus away.
  await until(page, "#about", "up");
  t.is(await page.evaluate(() => document.activeElement?.textContent), "vfio-user-0.sock");
});

test("dark, and narrow; a screen reader's tree has names for everything", async (t) => {
  const { url } = await busyBridge(t);
  const page = await openPage(t, url, "dark");
  await until(page, "#command", "REGION_READ");
  const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  t.is(ground, "rgb(17, 22, 29)");
  await page.waitForFunction(
    () => (document.querySelector("#rates polyline")?.getAttribute("points") ?? "").split(" ").length > 4,
  );
  await picture(page, "dark");
  await page.setViewport({ width: 360, height: 800 });
  t.true(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing is cut off");
  await picture(page, "narrow");
  const tree = JSON.stringify(await page.accessibility.snapshot());
  for (const name of [
    "Sessions",
    "Recent warnings",
    "Driver VM, connected",
    "commands a second now",
    "Command",
    "Pause",
  ])
    t.true(tree.includes(name), name);
  t.false(/"role":"(?:button|link|combobox)","name":""/.test(tree));
});

test("a device by itself; the page says when its program has ended", async (t) => {
  const device = new ServiceProcess(t, [...PROGRAMS.device, ...socketArgs("device", folder(t)), "--metrics=0"]);
  await device.serving();
  const page = await openPage(t, /http:\/\/127\.0\.0\.1:\d+\//.exec(device.log)?.[0] ?? "", "light");
  await until(page, "#connection", "live");
  const words = await page.$eval("#picture svg", (svg) => svg.getAttribute("aria-label"));
  t.regex(words ?? "", /^Driver VM, not there; device, in this process\./);
  t.is(await textOf(page, "#warnings"), "none");
  t.is(await device.stop(), 0);
  await until(page, "#connection", "no answer");
});

test("promtool has nothing to say of the metrics", async (t) => {
  const { url } = await busyBridge(t);
  let text = "";
  // Latencies are measured from the first question on.
  while (!/^vfio_user_command_duration_seconds_bucket\{.*command="REGION_READ".*\} [1-9]/m.test(text)) {
    text = await (await fetch(`${url}metrics`)).text();
  }
  const { status, stdout, stderr } = spawnSync(tools.promtool, ["check", "metrics"], { input: text, encoding: "utf8" });
  t.deepEqual([status, stdout, stderr], [0, "", ""]);
});
