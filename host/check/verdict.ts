/** How a check ends that does not pass: thrown wherever that shows. */

/** The server does not do what the specification demands. */
export class Failure extends Error {
  override readonly name: string = "Failure";
  constructor(
    readonly expected: string,
    readonly came: string,
  ) {
    super(`expected ${expected}; came ${came}`);
  }
}

/** The check does not apply to this server or device. */
export class Skip extends Error {
  override readonly name = "Skip";
}

/** Nobody accepts connections any more. */
export class ServerGone extends Failure {
  override readonly name = "ServerGone";
}
