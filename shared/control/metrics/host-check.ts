/**
 * Whom the status page answers: a page of somebody else's, in a browser that is here, could otherwise have a name of
 * its own lead to this address (DNS rebinding), and read it. So a request has to name this address as its host, or a
 * name that the operator gave.
 */

/** A Host header's name, in lower case and without its port; undefined where it is none. */
export function hostName(header: string | undefined): string | undefined {
  const [, name] = /^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?$/i.exec(header ?? "") ?? [];
  return name?.toLowerCase().replace(/\.$/, "");
}

/** The names that an address goes by, and those that were given. */
export function allowedHosts(address: string, given: readonly string[]): ReadonlySet<string> {
  const own = isLoopback(address) ? ["localhost", "127.0.0.1", "[::1]"] : [];
  const literal = address.includes(":") ? `[${address}]` : address;
  return new Set([...own, literal, ...given].map((each) => each.toLowerCase()));
}

export function isLoopback(address: string): boolean {
  return address === "::1" || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(address);
}
