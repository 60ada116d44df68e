/**
 * The messages of the sources that an operator can meet: what a UserError says, and lines of the levels warn and error.
 * Found in the text, without a parser: the string literals of such a call, outside of its objects, with "…" for what is
 * filled in. Left out: messages that are put together elsewhere and handed over as a variable.
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const CALL = /\bnew UserError\(|\blog\??\.(?:warn|error)\(/gi;
/** Less is a word or a sign that is put between others. */
const MIN_LENGTH = 12;

/** Of all sources in host, guest and shared: each message with the files that have it. */
export function messagesOf(root: string): Map<string, string[]> {
  const found = new Map<string, string[]>();
  const listed = execFileSync("git", ["ls-files", "host/*.ts", "guest/*.ts", "shared/*.ts"], { cwd: root });
  for (const path of listed.toString().trim().split("\n")) {
    const text = readFileSync(join(root, path), "utf8").replace(/^\s*(?:\/\/|\*|\/\*\*).*$/gm, "");
    for (const match of text.matchAll(CALL)) {
      for (const message of literals(text, match.index + match[0].length)) {
        if (message.replaceAll("…", "").length < MIN_LENGTH || !message.includes(" ")) continue;
        found.set(message, [...new Set([...(found.get(message) ?? []), path])]);
      }
    }
  }
  return found;
}

/** The literals of a call's arguments; those that "+" joins are one. `at` is behind the opening parenthesis. */
function literals(text: string, at: number): string[] {
  const all: string[] = [];
  let [parentheses, braces, isJoined] = [1, 0, false];
  for (let n = at; parentheses > 0 && n < text.length; n++) {
    const sign = text[n];
    if (sign === "(") parentheses++;
    else if (sign === ")") parentheses--;
    else if (sign === "{") braces++;
    else if (sign === "}") braces--;
    else if (sign === "+") isJoined = true;
    else if (sign === "," || sign === "?" || sign === ":") isJoined = false;
    else if (sign === '"' || sign === "'" || sign === "`") {
      const [literal, end] = literalAt(text, n);
      n = end;
      if (braces > 0) continue;
      if (isJoined && all.length > 0) all[all.length - 1] += literal;
      else all.push(literal);
      isJoined = false;
    }
  }
  return all;
}

/** The literal that begins at `start`, and where it ends. */
function literalAt(text: string, start: number): [string, number] {
  let value = "";
  for (let n = start + 1; ; n++) {
    if (text[n] === text[start]) return [value, n];
    if (text[n] === "\\") value += text[++n];
    else if (text[start] === "`" && text.startsWith("${", n)) {
      n = endOfSubstitution(text, n + 2);
      value += "…";
    } else value += text[n];
  }
}

function endOfSubstitution(text: string, at: number): number {
  for (let n = at, braces = 1; ; n++) {
    if (text[n] === "`" || text[n] === '"') n = literalAt(text, n)[1];
    else if (text[n] === "{") braces++;
    else if (text[n] === "}" && --braces === 0) return n;
  }
}
