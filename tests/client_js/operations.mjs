// What a test can have done with the JavaScript client, wherever it runs. What comes of it is told by `say`.
import { connect } from "../../clients/js/tableforge.js";

export function operator(say) {
  const clients = new Map();
  const rooms = new Map();
  const shown = (error) => ({ name: error.name, code: error.code ?? "", message: error.message });

  const operations = {
    async connect({ client, url, tokens, options = {} }) {
      let asked = 0;
      if (tokens) options.token = () => tokens[Math.min(asked++, tokens.length - 1)];
      options.onState = (change) => say({ client, state: change.state, instance: change.instance, reason: change.reason });
      const made = await connect(url, options);
      clients.set(client, made);
      return { instance: made.instance, user: made.user };
    },
    async join({ client, room, options, listen = true }) {
      const joined = await clients.get(client).join(room, options);
      rooms.set(`${client} ${room}`, joined);
      if (listen) operations.listen({ client, room });
      return { pos: joined.pos };
    },
    listen({ client, room }) {
      (async () => {
        try {
          for await (const item of rooms.get(`${client} ${room}`)) say({ client, item: { room, ...item } });
          say({ client, room, over: null });
        } catch (error) {
          say({ client, room, over: shown(error) });
        }
      })();
    },
    publish: ({ client, room, event, data, options }) => rooms.get(`${client} ${room}`).publish(event, data, options),
    direct: ({ client, to, event, data, options }) => clients.get(client).direct(to, event, data, options),
    received: ({ client, pos }) => rooms.get(`${client} @`).received(pos),
    history: ({ client, room, query }) => rooms.get(`${client} ${room}`).history(query),
    presence: ({ client, room }) => rooms.get(`${client} ${room}`).presence(),
    leave: ({ client, room }) => rooms.get(`${client} ${room}`).leave(),
    ping: ({ client }) => clients.get(client).ping(),
    look: ({ client }) => ({ instance: clients.get(client).instance, state: clients.get(client).state }),
    close: ({ client }) => clients.get(client).close(),
  };

  return (line) => {
    const { id, op, ...rest } = JSON.parse(line);
    Promise.resolve()
      .then(() => operations[op](rest))
      .then(
        (result) => say({ id, result: result ?? null }),
        (error) => say({ id, error: shown(error) }),
      );
  };
}
