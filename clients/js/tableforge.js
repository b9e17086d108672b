/**
 * The JavaScript client of `tableforge.v1`: one ES module for browsers and Node 22+.
 *
 * It keeps one connection to a service, goes on in every room where it stopped, sends again what was not
 * acknowledged, renews its token, and follows the server to another instance without a gap. All times that an
 * application gives are in seconds.
 */

const SUBPROTOCOL = "tableforge.v1";
const RESEND_RESERVE_BYTES = 128; // what a repetition adds to a frame: it must fit where the first one did
const DOUBTFUL_TRIES = 3; // sends in all where a repetition may mend a refusal but need not
const LONGEST_ASKED_SECONDS = 300; // what a server may ask a client to wait
const LONGEST_TIMER_SECONDS = 86_400; // timers further away overflow
const MOST_SOCKET_BYTES = 1_048_576; // publishes wait while so much has not left the socket
const STAYS = "home"; // the reason of a `migrate` after which the link goes on, where the client doesn't follow
const LONGEST_OPEN_ELSEWHERE_SECONDS = 3; // for one instance of its own: there are the application's addresses

const DEFAULTS = Object.freeze({
  token: null,
  onState: null,
  allowedHosts: [],
  connectTimeout: 30,
  reconnectTimeout: Infinity,
  openTimeout: 10,
  backoffBase: 0.5,
  backoffLongest: 30,
  stableAfter: 5,
  pingInterval: 20,
  pingTimeout: 20,
  maxPending: 1000,
  roomBuffer: 1024,
  WebSocket: null,
});

/** The base of everything this client rejects with on purpose; `code` is the protocol's. */
export class TableForgeError extends Error {
  constructor(code, message, retryAfter = null) {
    super(message ? `${code}: ${message}` : code);
    this.name = new.target.name;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The server refused a command. Refusals that pass (`rate_limited`, `unavailable`) are retried instead. */
export class RefusedError extends TableForgeError {}

/** Sent again, and the log no longer reaches back to tell whether the first one arrived. Not sent a third time. */
export class UnknownOutcomeError extends RefusedError {}

/** The client is closed, by the application or by a server that wants no reconnect. */
export class ClosedError extends TableForgeError {}

/** No token, or one that the server refuses, and no way to get a new one. */
export class UnauthorizedError extends ClosedError {}

/** The room was left, by this client or because the server removed it. */
export class RoomLeftError extends TableForgeError {}

/**
 * Connect to a service.
 *
 * @param {string|string[]} url one address (`wss://…/ws`), or several of the same service
 * @param {object} [options]
 * @param {null|string|function(): (string|Promise<string>)} [options.token] a JWT, or a function that gets one: it
 *   is called again before a token expires and where the server refuses one
 * @param {function(object): void} [options.onState] told every `{state, url, instance, reason, retryIn}`;
 *   `state` is `connecting`, `connected`, `reconnecting` or `closed`
 * @param {string[]} [options.allowedHosts] hosts, with or without a port, beside those of `url` that a server may
 *   send this client to (`migrate`)
 * @param {number} [options.connectTimeout] how long the first connection may take, all attempts together
 * @param {number} [options.reconnectTimeout] after how long without a connection the client gives up
 * @param {number} [options.maxPending] publishes that may be unanswered; more are refused with `queue_full`
 * @param {number} [options.roomBuffer] messages a room keeps for an application that is slow to take them; the
 *   rest stays in the room's log and is read from there later
 * @returns {Promise<Client>} a connected client. Rejects with ClosedError.
 */
export async function connect(url, options = {}) {
  const client = new Client(Array.isArray(url) ? [...url] : [url], { ...DEFAULTS, ...options });
  await client._start();
  return client;
}

/** A connection to a service that mends itself. Made by `connect`. */
export class Client {
  constructor(urls, options) {
    if (urls.length === 0) throw new TypeError("no address to connect to: give at least one URL");
    for (const name of Object.keys(options)) {
      if (!(name in DEFAULTS)) throw new TypeError(`unknown option ${name}: ${Object.keys(DEFAULTS).join(", ")}`);
    }
    this.options = options;
    this._urls = urls;
    this._WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (!this._WebSocket) throw new TypeError("no WebSocket here: give one as options.WebSocket");
    this._rooms = new Map();
    this._directs = [];
    this._place = 0;
    this._keyPrefix = randomText();
    this._pending = new Set();
    this._idle = [];
    this._link = null;
    this._next = null; // the link that takes over, while a migration is under way
    this._goal = null; // an address that a server named, to be tried once before those of the application
    this._failures = 0;
    this._refusedTokens = 0;
    this._token = undefined;
    this._timers = new Set();
    this.state = "connecting";
    this._ended = null;
  }

  /** The instance connected to; null while reconnecting. */
  get instance() {
    return this._link?.welcome?.instance ?? null;
  }

  /** Who the server says this is; null while reconnecting. */
  get user() {
    return this._link?.welcome?.user ?? null;
  }

  /**
   * Join a room and stay in it over reconnects. A room that is joined already is given again.
   *
   * @param {string} name
   * @param {object} [options]
   * @param {string} [options.pos] go on after this place, of the last item handled in an earlier run
   * @param {boolean} [options.presence] also get `members` items
   * @returns {Promise<Room>} rejects with RefusedError or ClosedError
   */
  join(name, { pos = null, presence = false } = {}) {
    if (this._ended) return Promise.reject(this._ended);
    let room = this._rooms.get(name);
    if (room === undefined) {
      room = new Room(this, name, pos, presence);
      this._rooms.set(name, room);
      if (this._link) room._enter(this._link);
    }
    return room._joined.promise;
  }

  /** One's own personal log: the direct messages to this user, on whatever device. See `join`. */
  inbox({ pos = null } = {}) {
    return this.join("@", { pos });
  }

  /**
   * Send a message to one user, who may be away. Resolves with `{pos}` once it is stored.
   */
  direct(to, event, data = null, { key = null } = {}) {
    const publication = this._publication({ type: "direct", to, event, data, key });
    if (publication.error) return Promise.reject(publication.error);
    this._directs.push(publication);
    this._sendDirects();
    return publication.answer.promise;
  }

  /** Seconds to the instance and back. */
  async ping() {
    const began = Date.now();
    await this._ask({ type: "ping" });
    return (Date.now() - began) / 1000;
  }

  /** Wait until what was published is acknowledged (at most so many seconds), then close. */
  async close({ flushTimeout = 5 } = {}) {
    if (this._ended) return;
    if (this._pending.size > 0 && flushTimeout > 0) {
      await Promise.race([
        new Promise((resolve) => this._idle.push(resolve)),
        new Promise((resolve) => this._later(flushTimeout, resolve)),
      ]);
    }
    this._finish(new ClosedError("closed", "closed by the application"), true);
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }

  // Connecting, again and again

  _start() {
    this._first = deferred();
    this._startTimer = this._later(this.options.connectTimeout, () => {
      this._finish(
        new ClosedError("unreachable", `not connected within ${this.options.connectTimeout} s${this._because()}`),
        false,
      );
    });
    this._attempt();
    return this._first.promise;
  }

  _because() {
    return this._lastEnd ? `; the last attempt: ${this._lastEnd}` : "";
  }

  _tell(state, more = {}) {
    this.state = state;
    const listener = this.options.onState;
    // in a turn of its own: what the application's function throws must not end the client
    if (listener) queueMicrotask(() => listener({ state, instance: this.instance, reason: "", ...more }));
  }

  async _attempt() {
    if (this._ended) return;
    const goal = this._goal;
    this._goal = null;
    const link = await this._dial(goal ?? this._anyUrl(), goal !== null);
    if (link === null) return;
    if (this._ended) return link.close(1000);
    this._link = link;
    this._refusedTokens = 0;
    this._clear(this._startTimer);
    this._clear(this._giveUpTimer);
    this._stableTimer = this._later(this.options.stableAfter, () => (this._failures = 0));
    this._tell("connected", { url: link.url });
    this._first.resolve();
    this._welcomed(link);
    for (const room of this._rooms.values()) room._enter(link);
    this._sendDirects();
  }

  /** One of the application's addresses, another than `but` where there is one. */
  _anyUrl(but = null) {
    const others = this._urls.filter((url) => url !== but);
    const urls = others.length > 0 ? others : this._urls;
    return urls[Math.floor(Math.random() * urls.length)];
  }

  /** A welcomed link, or null where it failed: then what comes next is arranged. */
  async _dial(url, isGoal) {
    let token;
    try {
      token = await this._currentToken();
    } catch (error) {
      this._over({ code: "no_token", message: `the token function threw ${error}`, verdict: { again: true } });
      return null;
    }
    const link = new Link(this, url, token);
    try {
      await link.welcomed;
      return link;
    } catch (end) {
      if (this._ended) return null;
      // that instance is gone, or lets nobody in: the application's own addresses, at once
      if (isGoal && !end.verdict.newToken && !end.verdict.atLeast) this._attempt();
      else this._over(end);
      return null;
    }
  }

  async _currentToken() {
    if (this._token === undefined) await this._freshToken();
    return this._token;
  }

  async _freshToken() {
    const token = this.options.token;
    this._token = typeof token === "function" ? await token() : token;
    return this._token;
  }

  _welcomed(link) {
    const expiry = typeof this.options.token === "function" ? expiresAt(this._token) : null;
    if (expiry === null) return;
    const ahead = (link.welcome.time ?? Date.now() / 1000) - Date.now() / 1000; // expiry goes by the server's clock
    const left = expiry - (Date.now() / 1000 + ahead);
    const wait = Math.min(LONGEST_TIMER_SECONDS, Math.max(1, left - Math.min(60, left * 0.2)));
    this._clear(this._renewTimer);
    this._renewTimer = this._later(wait, async () => {
      if (this._link !== link) return;
      try {
        if (left - wait < 120) {
          const token = await this._freshToken();
          await link.ask({ type: "auth", token });
        }
      } catch {
        // refused or lost: the server closes with 4401 at expiry, and then a new one is asked for
      }
      if (this._link === link) this._welcomed(link);
    });
  }

  /** A link has ended, or was never made; `blameless`: not at one of the application's addresses. */
  _over(end, blameless = false) {
    if (this._ended) return;
    this._lastEnd = end.message ? `${end.code}: ${end.message}` : `${end.code}`;
    const { verdict } = end;
    if (verdict.newToken) {
      if (this.options.token === null) {
        return this._finish(new UnauthorizedError(end.code, "a token is required, and none was given"), false);
      }
      this._token = undefined;
      this._refusedTokens += 1;
      if (typeof this.options.token !== "function" || this._refusedTokens >= 2) {
        return this._finish(new UnauthorizedError(end.code, end.message || "the token was refused"), false);
      }
    } else if (!verdict.again) {
      return this._finish(new ClosedError(end.code, end.message), false);
    }
    const first = this.state === "connecting";
    const ceiling = Math.min(this.options.backoffLongest, this.options.backoffBase * 2 ** Math.min(this._failures, 30));
    if (!blameless) this._failures += 1;
    const wait = (verdict.newToken ? 0 : Math.random() * ceiling) + (verdict.atLeast ?? 0);
    if (!first && this._giveUpTimer === undefined && Number.isFinite(this.options.reconnectTimeout)) {
      this._giveUpTimer = this._later(this.options.reconnectTimeout, () => {
        const limit = this.options.reconnectTimeout;
        this._finish(new ClosedError("unreachable", `not reconnected within ${limit} s${this._because()}`), false);
      });
    }
    this._tell(first ? "connecting" : "reconnecting", { reason: this._lastEnd, retryIn: wait });
    this._later(wait, () => this._attempt());
  }

  _lost(link, end) {
    link.forget();
    if (link === this._next) {
      this._next = null; // the migration failed: everything is still on the old link, unless that went first
      for (const room of this._rooms.values()) room._stay(link, this._link);
      if (this._link === null && !this._ended) this._over(end);
      return;
    }
    if (link !== this._link) return;
    this._link = null;
    this._clear(this._stableTimer);
    this._clear(this._renewTimer);
    this._returnDirects(link);
    if (this._next !== null && this._next.welcome) {
      this._settle(this._next, link); // it is already waiting: no need to come back later
      return;
    }
    for (const room of this._rooms.values()) room._disconnected(link);
    this._clear(this._moveTimer);
    const elsewhere = !this._urls.includes(link.url);
    if (this._next !== null) return; // on its way already
    if (link.moveTo !== null) this._goal = link.moveTo;
    else if (elsewhere && end.code === "1006") this._goal = link.url; // perhaps only the way there was broken
    this._over(end, elsewhere);
  }

  _finish(error, byChoice) {
    if (this._ended) return;
    this._ended = error;
    for (const timer of this._timers) clearTimeout(timer);
    this._timers.clear();
    for (const link of [this._link, this._next]) {
      if (link) {
        link.forget();
        link.close(1000);
      }
    }
    this._link = this._next = null;
    for (const room of this._rooms.values()) room._end(error, byChoice);
    this._rooms.clear();
    for (const publication of this._pending) publication.answer.reject(error);
    this._pending.clear();
    for (const resolve of this._idle.splice(0)) resolve();
    this._first.reject(error);
    this._tell("closed", { reason: byChoice ? "" : error.message });
  }

  // Moving to another instance

  _migrate(link, event) {
    if (link !== this._link) return;
    this._stopMoving(); // the newest counts
    const stays = event.reason === STAYS;
    const there = event.url ? this._destination(event.url, link.url) : null;
    if (there === link.url || (there === null && stays)) return;
    link.moveTo = there; // where the link ends before the new one stands, that is where to go
    this._moveTimer = this._later(Math.min(event.after ?? 0, LONGEST_ASKED_SECONDS), () => {
      if (this._link === link && this._next === null) this._moveTo(there ?? this._anyUrl(link.url), link, stays);
    });
  }

  async _moveTo(url, link, stays) {
    const next = new Link(this, url, this._token);
    this._next = next;
    try {
      await next.welcomed;
    } catch {
      // the old link serves on until it is closed; what comes then is an ordinary reconnect
      if (this._next !== next) return;
      this._next = null;
      const named = link.moveTo !== null;
      link.moveTo = null;
      if (this._ended) return;
      if (this._link === null) this._attempt();
      else if (named && !stays) this._moveTo(this._anyUrl(link.url), link, stays); // any other will do
      return;
    }
    if (this._ended || this._next !== next) return next.close(1000);
    if (this._link === null) return this._settle(next, link);
    for (const room of this._rooms.values()) room._move(next);
    this._moved();
  }

  /** Everything stays on the present link. */
  _stopMoving() {
    this._clear(this._moveTimer);
    const next = this._next;
    if (this._link !== null) this._link.moveTo = null;
    if (next === null) return;
    this._next = null;
    for (const room of this._rooms.values()) room._stay(next, this._link);
    next.forget();
    next.close(1000);
  }

  /**
   * Where `url`, a path on the host that is connected to or a whole address, leads; null where it must not be
   * followed. A query of the present address goes along to the same host, where the asked one has none.
   */
  _destination(url, current) {
    try {
      const asked = new URL(url, current);
      const here = new URL(current);
      if (asked.protocol !== "wss:" && !(asked.protocol === "ws:" && here.protocol === "ws:")) return null;
      const named = [here, ...this._urls.map((each) => new URL(each))];
      const { allowedHosts } = this.options;
      const known = named.some((each) => sameHost(each, asked));
      if (!known && !allowedHosts.includes(asked.host) && !allowedHosts.includes(asked.hostname)) return null;
      if (asked.search === "" && sameHost(asked, here)) asked.search = here.search;
      asked.hash = "";
      return asked.href;
    } catch {
      return null; // no address at all
    }
  }

  /** Called whenever a room has arrived on the next link: once all have, the old one is closed. */
  _moved() {
    const next = this._next;
    if (next === null || !next.welcome) return;
    for (const room of this._rooms.values()) if (room._link !== next) return;
    const old = this._link;
    this._settle(next, old);
    if (old !== null) {
      old.forget();
      old.close(1000);
    }
  }

  _settle(next, old) {
    this._next = null;
    this._link = next;
    if (old !== null) this._returnDirects(old);
    this._welcomed(next);
    this._tell("connected", { url: next.url });
    for (const room of this._rooms.values()) {
      if (room._link !== next && room._target !== next) {
        room._disconnected(old);
        room._enter(next);
      }
    }
    this._sendDirects();
  }

  // Publishing

  _publication({ type, to, room, event, data, key, echo = true, volatile = false }) {
    if (this._ended) return { error: this._ended };
    if (this._pending.size >= this.options.maxPending) {
      return { error: new RefusedError("queue_full", `${this.options.maxPending} publishes wait for their answers`, 1) };
    }
    let json;
    try {
      json = JSON.stringify(data);
    } catch (error) {
      return { error };
    }
    if (json === undefined) return { error: new TypeError("data has no form in JSON") };
    this._place += 1;
    const publication = {
      place: this._place,
      type,
      to,
      room,
      event,
      json,
      key: key ?? `${this._keyPrefix}-${this._place}`,
      echo,
      volatile,
      since: null,
      sent: false,
      refusals: 0,
      answer: deferred(),
    };
    this._pending.add(publication);
    return publication;
  }

  _answered(publication) {
    this._pending.delete(publication);
    if (this._pending.size === 0) for (const resolve of this._idle.splice(0)) resolve();
  }

  /** Whether it was sent; false where the server asked for patience or the socket is full. */
  _sendPublication(link, publication, pos, done) {
    if (link.holdUntil > Date.now() || link.bufferedAmount > MOST_SOCKET_BYTES) {
      link.resumeLater();
      return false;
    }
    const again = publication.sent;
    const command = { type: publication.type, room: publication.room, to: publication.to, event: publication.event };
    if (!publication.volatile) command.key = publication.key;
    else command.volatile = true;
    if (!publication.echo) command.echo = false;
    if (again && publication.since !== null) command.since = publication.since;
    const frame = link.frame(command, publication.json, (reply) => done(reply, link));
    const largest = link.welcome.maxPayloadBytes ?? Infinity;
    const size = utf8Length(frame.text);
    if (!again && size + RESEND_RESERVE_BYTES > largest) {
      link.unexpect(frame.id);
      this._answered(publication);
      publication.failed = true;
      const most = largest - RESEND_RESERVE_BYTES;
      publication.answer.reject(
        new RefusedError("too_large", `the message makes a frame of ${size} bytes; ${most} are allowed`),
      );
      return true;
    }
    if (!again) {
      publication.sent = true;
      publication.since = pos;
    }
    link.send(frame.text);
    return true;
  }

  /** What an error reply means for a publication: true where it has to go again. */
  _refused(link, publication, error) {
    const doubtful = error.code === "internal" || error.code === "not_joined";
    publication.refusals += doubtful ? 1 : 0;
    if (error.code === "rate_limited" || error.code === "unavailable") {
      if (!publication.volatile) {
        link.hold(error.retryAfter);
        return true;
      }
    } else if (doubtful && publication.refusals < DOUBTFUL_TRIES) {
      if (error.code === "internal") link.hold(error.retryAfter);
      return true;
    }
    this._answered(publication);
    publication.answer.reject(refusal(error));
    return false;
  }

  _sendDirects() {
    const link = this._link;
    if (!link) return;
    while (this._directs.length > 0) {
      const publication = this._directs[0];
      // a direct's place is in a log that the sender doesn't read: no `since` to name
      const sent = this._sendPublication(link, publication, null, (reply, through) => {
        through.directs.delete(publication);
        if (reply.type === "ack") {
          this._answered(publication);
          publication.answer.resolve({ pos: reply.pos });
        } else if (this._refused(through, publication, reply)) {
          insertByPlace(this._directs, publication);
          this._sendDirects();
        }
      });
      if (!sent) return;
      this._directs.shift();
      if (!publication.failed) link.directs.add(publication);
    }
  }

  _returnDirects(link) {
    for (const publication of link.directs) insertByPlace(this._directs, publication);
    link.directs.clear();
  }

  // Small things

  _ask(command) {
    if (this._ended) return Promise.reject(this._ended);
    if (!this._link) return Promise.reject(new TableForgeError("not_connected", "reconnecting: try again in a moment"));
    return this._link.ask(command);
  }

  _later(seconds, what) {
    const timer = setTimeout(() => {
      this._timers.delete(timer);
      what();
    }, seconds * 1000);
    this._timers.add(timer);
    return timer;
  }

  _clear(timer) {
    if (timer === undefined) return;
    clearTimeout(timer);
    this._timers.delete(timer);
    if (timer === this._giveUpTimer) this._giveUpTimer = undefined;
  }

  _resume() {
    this._sendDirects();
    for (const room of this._rooms.values()) room._send();
  }
}

/**
 * A room. `for await (const item of room)` gives, each once and in order:
 *
 *   {type: "message", room, event, from, seq, pos, ts, data}   a volatile one has no seq and pos
 *   {type: "direct", event, from, pos, ts, data}               in one's own inbox
 *   {type: "reset", room, pos, reason}                         what follows continues nothing: read the state anew
 *   {type: "members", room, joined, left, rev}                 where presence was asked for
 *
 * Iterating ends where the application leaves the room or closes the client; where the server ends it, it throws.
 */
export class Room {
  constructor(client, name, pos, presence) {
    this.name = name;
    /** The `pos` of the last item taken: `join(name, {pos})` goes on after it, in a later run too. */
    this.pos = pos;
    this._client = client;
    this._presence = presence;
    this._joined = deferred();
    this._items = [];
    this._takers = [];
    this._at = pos; // up to where the room's history is in _items or was taken
    this._seq = pos === null ? null : seqOf(pos);
    this._lagging = false;
    this._askedAgainAt = null;
    this._link = null; // where it is joined
    this._target = null; // where a join is under way
    this._outbox = [];
    this._inflight = new Map();
    this._left = null;
    this._lastReceived = null;
  }

  /** Whether the present connection is in the room. */
  get joined() {
    return this._link !== null;
  }

  /**
   * Publish. Resolves with `{pos, seq}` once the message is in the room's log; it is sent again after a lost
   * connection and arrives once. A `volatile` one has no place in the log and is not sent again.
   */
  publish(event, data = null, { key = null, echo = true, volatile = false } = {}) {
    if (this._left) return Promise.reject(this._left);
    const wanted = { type: "publish", room: this.name, event, data, key, echo, volatile };
    const publication = this._client._publication(wanted);
    if (publication.error) return Promise.reject(publication.error);
    this._outbox.push(publication);
    this._send();
    return publication.answer.promise;
  }

  /** Who is here: `{members: [{user, since, sockets}], count, rev}`. */
  async presence() {
    const { members, count, rev } = await this._client._ask({ type: "presence", room: this.name });
    return { members, count, rev };
  }

  /** Older messages: `{messages, pos, complete}`, the `last` so many, or those `after` a `pos`. */
  async history({ after, last } = {}) {
    const reply = await this._client._ask({ type: "history", room: this.name, after, last });
    return { messages: reply.messages, pos: reply.pos, complete: reply.complete };
  }

  /** In one's own inbox: everything up to `pos` is handled, on all devices that ask without a place. */
  received(pos = this.pos) {
    if (pos === null || pos === this._lastReceived) return;
    this._lastReceived = pos;
    this._link?.post({ type: "received", pos });
  }

  /** The next item; waits for it. Rejects with the reason once nothing comes any more. */
  receive() {
    const item = this._take();
    if (item !== undefined) return Promise.resolve(item);
    if (this._left) return Promise.reject(this._left);
    const taker = deferred();
    this._takers.push(taker);
    return taker.promise;
  }

  async *[Symbol.asyncIterator]() {
    while (true) {
      let item;
      try {
        item = await this.receive();
      } catch (error) {
        if (this._leftByChoice) return;
        throw error;
      }
      yield item;
    }
  }

  /** Leave once all publishes to it are answered. */
  async leave() {
    const waits = [...this._inflight.values(), ...this._outbox].map((each) => each.answer.promise);
    await Promise.allSettled(waits);
    if (this._left) return;
    for (const link of new Set([this._link, this._target])) link?.post({ type: "leave", room: this.name });
    this._client._rooms.delete(this.name);
    this._end(new RoomLeftError("left", `room ${this.name} was left`), true);
    this._client._moved();
  }

  // The connection's side

  /** Join it on this link. */
  _enter(link) {
    this._target = link;
    const asked = this._at;
    const command = { type: "join", room: this.name };
    if (asked !== null) command.pos = asked;
    if (this._presence) command.presence = true;
    link.expect(command, (reply) => this._onJoinReply(link, asked, reply));
  }

  /** A migration: join it on the next link as well; until that has answered, the old one counts. */
  _move(next) {
    if (this._target !== next) this._enter(next);
  }

  /** The migration failed, or was given up: it goes on on the link where it was, if that is still there. */
  _stay(next, old) {
    if (this._target === next) this._target = null;
    if (this._link !== next) return;
    this._disconnected(next);
    if (old !== null) this._enter(old);
  }

  _onJoinReply(link, asked, reply) {
    if (this._left || this._target !== link) return;
    this._target = null;
    if (reply.type === "error") {
      if (reply.code === "rate_limited" || reply.code === "unavailable" || reply.code === "internal") {
        const wait = waitSeconds(reply.retryAfter);
        this._client._later(wait, () => {
          if (link.open && !this._left && this._target === null && this._link !== link) this._enter(link);
        });
        return;
      }
      this._client._rooms.delete(this.name);
      this._end(refusal(reply), false);
      return;
    }
    const moving = this._link !== null && this._link !== link;
    if (moving) this._takeBack(); // what the old one did not acknowledge goes again here, first
    this._link = link;
    this._lagging = false;
    if (asked === null) {
      this._at = reply.pos;
      this._seq = seqOf(reply.pos);
    } else if (reply.recovered !== true) {
      this._reset(reply.pos, reply.reason);
    }
    this._joined.resolve(this);
    this._send();
    this._client._moved();
  }

  _disconnected(link) {
    if (this._target === link) this._target = null;
    if (this._link !== link) return;
    this._link = null;
    this._takeBack();
  }

  _takeBack() {
    const volatile = [];
    const again = [];
    for (const each of [...this._inflight.values(), ...this._outbox]) (each.volatile && each.sent ? volatile : again).push(each);
    this._inflight.clear();
    this._outbox = again.sort((one, other) => one.place - other.place);
    for (const each of volatile) {
      this._client._answered(each);
      each.answer.reject(new TableForgeError("unavailable", "the connection was lost, and a volatile message is not sent again"));
    }
  }

  _send() {
    const link = this._link;
    while (link !== null && this._link === link && this._outbox.length > 0) {
      const publication = this._outbox[0];
      const sent = this._client._sendPublication(link, publication, this._at, (reply, through) =>
        this._onReply(publication, reply, through),
      );
      if (!sent) return;
      this._outbox.shift();
      if (!publication.failed) this._inflight.set(publication.place, publication);
    }
  }

  _onReply(publication, reply, link) {
    const here = this._inflight.get(publication.place) === publication;
    if (reply.type === "ack") {
      this._inflight.delete(publication.place);
      if (!here) this._outbox = this._outbox.filter((each) => each !== publication);
      this._client._answered(publication);
      // the acknowledgement stands where the sender's own copy would have
      if (!publication.echo && link === this._link && !this._lagging && reply.seq === this._seq + 1) {
        this._seq = reply.seq;
        this._at = reply.pos;
        if (this._items.length === 0) this.pos = reply.pos;
      }
      publication.answer.resolve({ pos: reply.pos, seq: reply.seq });
      return;
    }
    if (!here) return; // it goes again elsewhere already
    this._inflight.delete(publication.place);
    if (!this._client._refused(link, publication, reply)) return;
    insertByPlace(this._outbox, publication);
    if (reply.code === "not_joined" && this._link === link) {
      this._link = null;
      this._takeBack();
      this._enter(link);
    }
  }

  _on(link, event) {
    if (link !== this._link || this._left) return;
    switch (event.type) {
      case "message":
      case "direct":
        this._onMessage(event);
        break;
      case "reset":
        if (!this._lagging) this._reset(event.pos, event.reason);
        break;
      case "members":
        this._put(event);
        break;
      case "left":
        this._client._rooms.delete(this.name);
        this._end(new RoomLeftError("removed", `the server removed this user from room ${this.name}`), false);
    }
  }

  _onMessage(event) {
    const volatile = event.pos === undefined;
    if (this._lagging || (this._items.length >= this.bufferSize && volatile)) return;
    if (volatile) return this._put(event);
    const seq = seqOf(event.pos);
    if (this._seq !== null && seq <= this._seq) return; // came over the other connection already
    if (this._items.length >= this.bufferSize) {
      this._lagging = true; // the log is the buffer
      return;
    }
    if (this._seq !== null && seq !== this._seq + 1) {
      if (this._askedAgainAt !== this._seq) {
        this._askedAgainAt = this._seq;
        this._refill();
        return;
      }
      this._put({ type: "reset", room: this.name, pos: event.pos, reason: "gap" });
    }
    this._seq = seq;
    this._at = event.pos;
    this._put(event);
  }

  get bufferSize() {
    return this._client.options.roomBuffer;
  }

  /** Ask the log for what follows the last message that was kept. */
  _refill() {
    const link = this._link;
    if (link === null) return;
    this._lagging = true;
    this._link = null;
    this._takeBack();
    link.post({ type: "leave", room: this.name });
    this._enter(link);
  }

  _reset(pos, reason) {
    this._at = pos ?? null;
    this._seq = pos ? seqOf(pos) : null;
    const last = this._items[this._items.length - 1];
    if (last?.type === "reset") this._items.pop(); // one is as good as two in a row
    this._put({ type: "reset", room: this.name, pos, reason: reason ?? "unknown" });
  }

  _put(item) {
    this._items.push(item);
    while (this._takers.length > 0 && this._items.length > 0) this._takers.shift().resolve(this._take());
  }

  _take() {
    const item = this._items.shift();
    if (item === undefined) return undefined;
    if (item.pos) this.pos = item.pos;
    if (this._lagging && this._items.length <= this.bufferSize / 2) this._refill();
    return item;
  }

  _end(error, byChoice) {
    if (this._left) return;
    this._left = error;
    this._leftByChoice = byChoice;
    this._link = this._target = null;
    for (const each of [...this._inflight.values(), ...this._outbox]) {
      this._client._answered(each);
      each.answer.reject(error);
    }
    this._inflight.clear();
    this._outbox = [];
    this._joined.reject(error);
    for (const taker of this._takers.splice(0)) taker.reject(error);
  }
}

/** One WebSocket to one instance: frames, and which answer belongs to which command. */
class Link {
  constructor(client, url, token) {
    this.url = url;
    this.welcome = null;
    this.open = true;
    this.holdUntil = 0;
    this.directs = new Set();
    this.moveTo = null;
    this._client = client;
    this._waiting = new Map();
    this._number = 0;
    this._lastError = null;
    this._heard = Date.now();
    const welcomed = deferred();
    this.welcomed = welcomed.promise;
    this._welcomed = welcomed;
    try {
      this._socket = new client._WebSocket(url, [SUBPROTOCOL]);
    } catch (error) {
      this.open = false;
      welcomed.reject({ code: "bad_url", message: String(error), verdict: { again: false } });
      return;
    }
    let { openTimeout } = client.options;
    if (!client._urls.includes(url)) openTimeout = Math.min(openTimeout, LONGEST_OPEN_ELSEWHERE_SECONDS);
    this._openTimer = setTimeout(() => this._fail("no_welcome", `no welcome within ${openTimeout} s`), openTimeout * 1000);
    this._socket.onopen = () => {
      if (token) this._write({ type: "auth", token });
    };
    this._socket.onmessage = ({ data }) => this._onFrame(data);
    this._socket.onclose = ({ code, reason }) => this._onClose(code, reason);
    this._socket.onerror = () => {}; // a close event follows
  }

  get bufferedAmount() {
    return this._socket.bufferedAmount;
  }

  _write(command) {
    this.send(JSON.stringify(command));
  }

  send(text) {
    if (this.open && this._socket.readyState === 1) this._socket.send(text);
  }

  /** Send a command whose answer nobody waits for. */
  post(command) {
    this._write(command);
  }

  /** Send a command; `onReply` gets the event or error that answers it, or nothing where the link ends. */
  expect(command, onReply) {
    this._number += 1;
    this._waiting.set(this._number, onReply);
    this._write({ ...command, id: this._number });
  }

  unexpect(id) {
    this._waiting.delete(id);
  }

  /** A command's text with `data` as it was encoded once, not yet sent. */
  frame(command, json, onReply) {
    this._number += 1;
    this._waiting.set(this._number, onReply);
    const rest = JSON.stringify({ ...command, id: this._number });
    return { id: this._number, text: `${rest.slice(0, -1)},"data":${json}}` };
  }

  /** Send a command and wait for its answer. */
  ask(command) {
    const answer = deferred();
    this._asked ??= new Set();
    this._asked.add(answer);
    this.expect(command, (reply) => {
      this._asked.delete(answer);
      if (reply.type === "error") answer.reject(refusal(reply));
      else answer.resolve(reply);
    });
    return answer.promise;
  }

  /** Publish nothing for a while: the server asked for it. */
  hold(retryAfter) {
    this.holdUntil = Math.max(this.holdUntil, Date.now() + waitSeconds(retryAfter) * 1000);
    this.resumeLater();
  }

  resumeLater() {
    if (this._resumeTimer !== undefined) return;
    const wait = Math.max(20, this.holdUntil - Date.now());
    this._resumeTimer = setTimeout(() => {
      this._resumeTimer = undefined;
      if (this.open) this._client._resume();
    }, wait);
  }

  close(code) {
    this.open = false;
    try {
      this._socket?.close(code);
    } catch {
      // never opened
    }
  }

  /** Nothing of it is of interest any more. */
  forget() {
    this.open = false;
    this._waiting.clear();
    clearTimeout(this._openTimer);
    clearTimeout(this._resumeTimer);
    clearInterval(this._pinging);
    for (const answer of this._asked ?? []) answer.reject(new TableForgeError("not_connected", "the connection ended"));
    this._asked?.clear();
  }

  _onFrame(text) {
    this._heard = Date.now();
    let events;
    try {
      events = JSON.parse(text);
    } catch {
      return this._fail("bad_frame", "the server sent what is not JSON");
    }
    for (const event of Array.isArray(events) ? events : [events]) if (this.open) this._onEvent(event);
  }

  _onEvent(event) {
    if (event.id !== undefined) {
      const onReply = this._waiting.get(event.id);
      if (onReply !== undefined) {
        this._waiting.delete(event.id);
        onReply(event);
        return;
      }
    }
    const client = this._client;
    switch (event.type) {
      case "welcome":
        clearTimeout(this._openTimer);
        this.welcome = event;
        this._pinging = setInterval(() => this._probe(), client.options.pingInterval * 1000);
        this._welcomed.resolve();
        break;
      case "error":
        this._lastError = event;
        break;
      case "migrate":
        client._migrate(this, event);
        break;
      case "direct":
        client._rooms.get("@")?._on(this, event);
        break;
      default:
        if (event.room !== undefined) client._rooms.get(event.room)?._on(this, event);
    }
  }

  _probe() {
    const { pingInterval, pingTimeout } = this._client.options;
    if (Date.now() - this._heard > (pingInterval + pingTimeout) * 1000) this._fail("timeout", "the server went silent");
    else this.post({ type: "ping" });
  }

  _fail(code, message) {
    if (!this.open) return;
    this._over({ code, message, verdict: { again: true } });
    this.close(1000);
  }

  _onClose(code, reason) {
    if (!this.open) return;
    const text = this._lastError ? `${this._lastError.code}: ${this._lastError.message}` : reason;
    this._over({ code: String(code), message: text, verdict: afterClose(code, this._lastError) });
  }

  _over(end) {
    this.open = false;
    clearTimeout(this._openTimer);
    clearInterval(this._pinging);
    if (this.welcome === null) this._welcomed.reject(end);
    else this._client._lost(this, end);
  }
}

/** Whether to come back after a close, with what, and how much later at least. */
function afterClose(code, error) {
  const atLeast = Math.min(error?.retryAfter ?? 0, LONGEST_ASKED_SECONDS);
  if (code === 4401) return { again: true, newToken: true };
  if (code === 4429) return { again: true, atLeast: Math.max(60, atLeast) };
  if ([1002, 1003, 1007, 1009, 4400, 4403].includes(code)) return { again: false };
  return { again: true, atLeast };
}

/** A place's number in its room. */
function seqOf(pos) {
  return Number.parseInt(pos, 10);
}

function refusal(error) {
  const Kind = error.code === "unknown_key" ? UnknownOutcomeError : RefusedError;
  return new Kind(error.code, error.message, error.retryAfter ?? null);
}

function waitSeconds(retryAfter) {
  // a little of one's own, so that not all come back at once
  return Math.max(0.05, Math.min(retryAfter ?? 1, 60)) * (1 + Math.random() / 4);
}

function insertByPlace(list, publication) {
  let index = list.length;
  while (index > 0 && list[index - 1].place > publication.place) index -= 1;
  list.splice(index, 0, publication);
}

/** The Unix time in a JWT's `exp`, unverified; null for tokens of another kind. */
function expiresAt(token) {
  try {
    const payload = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const { exp } = JSON.parse(atob(payload));
    return typeof exp === "number" ? exp : null;
  } catch {
    return null;
  }
}

function sameHost(one, other) {
  return one.hostname === other.hostname || (isLocal(one.hostname) && isLocal(other.hostname));
}

function isLocal(host) {
  return host === "localhost" || host === "[::1]" || /^127(\.\d{1,3}){3}$/.test(host);
}

function utf8Length(text) {
  return new TextEncoder().encode(text).length;
}

function randomText() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_");
}

function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {}); // who doesn't wait for it need not hear of it
  return made;
}
